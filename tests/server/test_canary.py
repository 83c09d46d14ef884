"""Canary and watch on a running server: who gets what, and how it ends by itself."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ops import trials
from ops.records import Adapter, AdapterState, Alias, now
from ops.registry import Registry
from ops.settings import ReleaseSettings
from ops.store import Store
from ops.trials import Rules
from server.canary import Canary
from server.protocol import read_envelope
from server.traffic import Role, Split, Sticky, who
from tests.fake_engine import PROGRAM, FakeEngine, add_adapter
from tests.server.conftest import Running, SharedPool, serving

WRONG = "```python\ndef add(a, b):\n    return a - b\n```"
SPEC = {"entry_point": "add", "examples": [{"input": [2, 1], "output": 3}], "candidates": 1}


def _examined(server: Running, fill: bytes) -> Adapter:
    adapter = add_adapter(server.registry, fill=fill)
    server.registry.examined(adapter.version, actor="gate", reason="better", evidence={})
    return adapter


def _champion(server: Running, fill: bytes) -> Adapter:
    adapter = _examined(server, fill)
    server.registry.promote(adapter.version, actor="gate", reason="better")
    # Whom one asks for, an arm may answer: this is what `code` means.
    server.until(
        lambda: server.http.get("/v1/adapters").json()["serving"]["version"] == adapter.version
    )
    return adapter


def _canary(server: Running, fill: bytes, share: float = 0.5) -> Adapter:
    adapter = _examined(server, fill)
    evidence = {"share": share}
    server.registry.canary(adapter.version, actor="gate", reason="better", evidence=evidence)
    # Enough people that no draw leaves all of them on one side.
    server.until(lambda: adapter.version in {_version(server, f"u{n}") for n in range(60)})
    return adapter


def _version(server: Running, user: str, **body: Any) -> int:
    response = server.chat(user=user, **{"store": False, **body})
    assert response.status_code == 200, response.text
    return int(response.json()["adapter"]["version"])


def _wrote(server: Running, *bad: int) -> None:
    """Let these versions write wrong programs."""
    names = {f"code@v{version}" for version in bad}
    server.engine.script = lambda body, index: WRONG if body["model"] in names else PROGRAM


def _ask_until(server: Running, done: Any) -> None:
    """Ask as many users do, until something happened by itself."""
    asked = 0
    while not done():
        _version(server, f"u{asked % 40}", store=True, io_spec=SPEC)
        asked += 1
        assert asked < 600


def test_a_canary_gets_its_share_and_who_asks_stays_with_it(server: Running) -> None:
    _champion(server, b"\1")
    canary = _canary(server, b"\2", share=0.25)
    first = {user: _version(server, user) for user in (f"user{n}" for n in range(80))}
    assert 4 <= Counter(first.values())[canary.version] <= 42
    assert set(first.values()) == {1, 2}
    again = {user: _version(server, user) for user in first}
    assert again == first
    streamed = next(user for user, version in first.items() if version == 2)
    chunks = list(
        server.openai.chat.completions.create(
            model="code", messages=[{"role": "user", "content": "x"}], user=streamed, stream=True
        )
    )
    assert chunks[-1].to_dict()["adapter"]["version"] == 2  # type: ignore[index]
    answer = server.http.post(
        "/v1/completions", json={"model": "code", "prompt": "x", "user": streamed}
    ).json()
    assert answer["adapter"]["version"] == 2
    assert _version(server, streamed, model="code@v1") == 1, "pins are not touched"
    text = server.http.get("/metrics").text
    assert 'journeyman_alias_requests_total{role="canary"}' in text
    listed = server.http.get("/v1/adapters").json()
    assert listed["aliases"] == {"champion": 1, "canary": 2}
    assert listed["trial"]["kind"] == "canary"
    assert listed["trial"]["share"] == 0.25


def test_a_worse_canary_leaves_by_itself_without_a_load(server: Running) -> None:
    _champion(server, b"\1")
    canary = _canary(server, b"\2")
    loads = len(server.engine.loads)
    _wrote(server, canary.version)
    _ask_until(server, lambda: server.registry.get(2).state is AdapterState.REJECTED)
    server.until(lambda: {_version(server, f"u{n}") for n in range(20)} == {1}, timeout_s=5)
    assert len(server.engine.loads) == loads
    last = server.store.transitions(2)[-1]
    assert last.actor.startswith("server:")
    assert "worse than code@v1 on live traffic" in last.reason
    assert last.evidence["verified"]["e_worse"] >= last.evidence["threshold"]
    assert last.evidence["verified"]["champion"]["passed"] > 0
    server.until(lambda: "code@v2" not in server.engine.adapters)
    text = server.http.get("/metrics").text
    assert 'journeyman_trials_total{decision="reject",trial="canary"}' in text
    assert "journeyman_rollback_seconds_count" in text


def test_a_worse_champion_is_taken_back_by_itself(server: Running) -> None:
    _champion(server, b"\1")
    for n in range(60):
        _version(server, f"u{n}", store=True, io_spec=SPEC)
    champion = _champion(server, b"\2")
    loads = len(server.engine.loads)
    _wrote(server, champion.version)
    _ask_until(server, lambda: server.registry.get(2).state is AdapterState.REJECTED)
    server.until(lambda: _version(server, "x") == 1, timeout_s=5)
    assert len(server.engine.loads) == loads
    assert server.store.aliases() == {Alias.CHAMPION: 1}
    back = server.store.transitions(1)[-1]
    assert (back.to_state, back.actor) == ("champion", server.store.transitions(2)[-1].actor)
    _wrote(server, 1)
    for n in range(30):
        _version(server, f"u{n}", store=True, io_spec=SPEC)
    assert server.registry.get(1).state is AdapterState.CHAMPION, "the way back is not left again"


def test_trials_end_well_survive_a_restart_and_two_servers_agree(
    engine: FakeEngine, pool: SharedPool, tmp_path: Path
) -> None:
    release = ReleaseSettings(canary_share=0.5, canary_requests=12, watch_requests=10)
    with serving(engine, tmp_path, checker=pool, release=release) as server:
        _champion(server, b"\1")
        adapter = _examined(server, b"\2")
        server.registry.canary(adapter.version, actor="gate", reason="better")
        server.until(lambda: 2 in {_version(server, f"u{n}") for n in range(12)})
        before = {f"u{n}": _version(server, f"u{n}", store=True) for n in range(12)}
    with (
        serving(engine, tmp_path, checker=pool, release=release) as server,
        serving(engine, tmp_path, checker=pool, release=release) as other,
    ):
        server.until(lambda: 2 in {_version(server, f"u{n}") for n in range(12)})
        other.until(lambda: 2 in {_version(other, f"u{n}") for n in range(12)})
        for one in (server, other):
            assert {user: _version(one, user) for user in before} == before
        asked = 0
        while server.registry.get(2).state is AdapterState.CANARY:
            _version((server, other)[asked % 2], f"u{asked % 12}", store=True)
            asked += 1
            assert asked < 200
        assert server.registry.get(2).state is AdapterState.CHAMPION
        for one in (server, other):
            one.until(lambda o=one: {_version(o, f"u{n}") for n in range(12)} == {2})  # type: ignore[misc]
        asked = 0
        while len(server.store.transitions(2)) < 5:
            _version((server, other)[asked % 2], f"u{asked % 12}", store=True)
            asked += 1
            assert asked < 200
        history = server.store.transitions(2)
        states = [t.to_state for t in history]
        assert states == ["built", "examined", "canary", "champion", "champion"]
        assert history[-2].reason.startswith("not worse than code@v1 in ")
        assert server.store.aliases() == {Alias.CHAMPION: 2, Alias.ROLLBACK: 1}


def test_a_control_goes_on_answering_a_share(
    engine: FakeEngine, pool: SharedPool, tmp_path: Path
) -> None:
    release = ReleaseSettings(control_share=0.5)
    with serving(engine, tmp_path, checker=pool, release=release) as server:
        _champion(server, b"\1")
        adapter = _examined(server, b"\2")
        server.registry.promote(adapter.version, actor="gate", reason="better")
        server.until(lambda: {_version(server, f"u{n}") for n in range(20)} == {1, 2})
        _wrote(server, 2)
        _ask_until(server, lambda: server.registry.get(2).state is AdapterState.REJECTED)
        server.until(lambda: {_version(server, f"u{n}") for n in range(20)} == {1}, timeout_s=5)


def test_a_canary_whose_engine_was_restarted_is_not_missed(server: Running) -> None:
    _champion(server, b"\1")
    _canary(server, b"\2")
    server.engine.restart()
    server.ready()
    assert {_version(server, f"u{n}") for n in range(20)} == {1, 2}


def test_under_load_a_canary_that_comes_and_goes_fails_no_request(server: Running) -> None:
    server.engine.script = lambda body, index: body["model"]
    server.engine.token_delay_s = 0.002
    _champion(server, b"\1")
    stop, problems = threading.Event(), list[str]()

    def ask(user: str) -> None:
        while not stop.is_set():
            response = server.chat(user=user, store=False)
            answer = response.json()
            if response.status_code != 200:
                problems.append(response.text)
            elif answer["choices"][0]["message"]["content"] != answer["model"]:
                problems.append(f"mixed: {answer}")

    threads = [threading.Thread(target=ask, args=(f"u{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for fill in (b"\2", b"\3", b"\4"):
        canary = _canary(server, fill)
        server.registry.reject(canary.version, actor="test", reason="r")
        server.until(lambda v=canary: v.name not in server.engine.adapters)  # type: ignore[misc]
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []


# --- the judge ------------------------------------------------------------------------------------


def _judge(store: Store, registry: Registry, **rules: Any) -> Canary:
    return Canary(store, registry, Rules(**rules), server="s", look_s=1.0, tell=lambda: None)


def test_hours_are_counted_by_a_clock_that_does_not_jump(
    store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = add_adapter(registry).version
    registry.examined(version, actor="gate", reason="r", evidence={})
    registry.canary(version, actor="gate", reason="r")
    judge = _judge(store, registry, canary_hours=1.0)
    assert judge.look() is False
    for jump in (timedelta(days=40), -timedelta(days=40)):
        monkeypatch.setattr("server.canary.now", lambda j=jump: now() + j)
        assert judge.look() is False
        assert registry.get(version).state is AdapterState.CANARY
    # One that starts after the jump back has no time behind it; after an hour it decides.
    late = _judge(store, registry, canary_hours=1.0)
    assert late.look() is False
    monkeypatch.undo()
    monkeypatch.setattr("server.canary.now", lambda: now() + timedelta(hours=2))
    assert _judge(store, registry, canary_hours=1.0).look() is True
    assert registry.get(version).state is AdapterState.CHAMPION
    assert (
        store.transitions(version)[-1].reason == "not worse than the base model in 0 live requests"
    )


def test_a_canary_whose_files_are_damaged_is_rejected_when_it_would_be_promoted(
    store: Store, registry: Registry
) -> None:
    version = add_adapter(registry).version
    registry.examined(version, actor="gate", reason="r", evidence={})
    registry.canary(version, actor="gate", reason="r")
    (Path(registry.get(version).directory) / "adapter_config.json").write_text("{}")
    judge = _judge(store, registry, canary_hours=1e-9)
    assert judge.look() is True
    assert registry.get(version).state is AdapterState.REJECTED
    assert "altered" in store.transitions(version)[-1].reason
    assert judge.look() is False


def test_who_is_second_finds_it_decided(
    store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = add_adapter(registry).version
    registry.promote(version, actor="gate", reason="r", force=True)
    first, second = (_judge(store, registry, watch_hours=1e-9) for _ in range(2))
    trial = trials.current(store, Rules())
    monkeypatch.setattr(trials, "current", lambda store, rules: trial)
    assert first.look() is True
    assert second.look() is True
    history = store.transitions(version)
    assert [t.to_state for t in history] == ["built", "champion", "champion"]


# --- who asks -------------------------------------------------------------------------------------


def _who(sticky: Sticky, *, key: str | None = None, tenant: str = "t", **body: Any) -> str:
    given = {"model": "code", "messages": [{"role": "user", "content": "x"}], **body}
    return who(read_envelope(given), key=key, tenant=tenant, sticky=sticky)


def test_what_a_request_lacks_gives_way_to_the_next() -> None:
    assert _who(Sticky.KEY, key="k", user="a") == _who(Sticky.KEY, key="k", user="b")
    assert _who(Sticky.KEY, user="a") == _who(Sticky.USER, key="k", user="a")
    assert _who(Sticky.USER, user="a") != _who(Sticky.USER, user="a", tenant="other")
    assert _who(Sticky.USER, user="a") != _who(Sticky.USER, user="b")
    one = _who(Sticky.CONVERSATION, user="a", episode_id="e")
    assert one == _who(Sticky.CONVERSATION, user="b", episode_id="e")


@pytest.mark.parametrize("name", ["messages", "input"])
def test_a_conversation_is_known_by_how_it_begins(name: str) -> None:
    begun = [{"role": "user", "content": "write a parser"}]
    more = [*begun, {"role": "assistant", "content": "…"}, {"role": "user", "content": "shorter"}]
    others = [{"role": "user", "content": "write a lexer"}]
    given = [{"messages": None, name: value} for value in (begun, more, others)]
    first, second, third = (_who(Sticky.KEY, **body) for body in given)
    assert first == second != third


@pytest.mark.parametrize("body", [{"prompt": ["a", "b"]}, {"input": 5}, {"prompt": None}, {}])
def test_whatever_a_body_holds_somebody_asks(body: dict[str, Any]) -> None:
    envelope = read_envelope({"model": "code", **body})
    assert who(envelope, key=None, tenant="t", sticky=Sticky.KEY).startswith("conversation")


def test_each_trial_draws_anew_and_shares_are_kept() -> None:
    people = [f"user\0t\0{n}" for n in range(2000)]

    def drawn(share: float, draw: str) -> set[str]:
        split = Split(version=2, share=share, role=Role.CANARY, draw=draw)
        return {person for person in people if split.takes(person)}

    assert 140 < len(drawn(0.1, "a")) < 260
    assert drawn(0.1, "a") < drawn(0.2, "a"), "a larger share keeps who was in the smaller one"
    assert drawn(0.1, "a") != drawn(0.1, "b")
    assert drawn(0.0, "a") == set()
