"""The console without a browser: who comes in, what the pages hold, what their forms do."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest

from ops import keys
from ops.errors import StoreUnavailable
from ops.records import (
    AdapterState,
    Alias,
    Cycle,
    CycleEvent,
    CycleState,
    DatasetRow,
    FeedbackSource,
    Metric,
    new_id,
    now,
)
from ops.registry import Registry
from ops.settings import KeySettings
from ops.store import Recording, Store
from server.console import charts, door
from server.console.charts import Measured, Node
from server.console.door import COOKIE
from server.console.examinations import examination, fate
from tests.fake_engine import BASE, RANK, FakeEngine, add_adapter, write_adapter
from tests.ops import records
from tests.server.conftest import Running, SharedPool, serving

HOSTILE = "</pre><script>alert('taken')</script><img src=x onerror=alert(1)>\"'{{1789*1789}}"
ADMIN, USER = "jm-admin-key", "jm-user-key"
SPEC = {
    "entry_point": "add",
    "examples": [
        {"input": [1, 2], "output": 3, "hidden": False},
        {"input": [20, 22], "output": 42, "hidden": True},
    ],
}
PAGES = ("", "/learning", "/adapters", "/cycles", "/interactions", "/try", "/rollback")
TOKEN = re.compile(r'name="token" value="([0-9a-f]{64})"')


class Audit(HTMLParser):
    """What can be told of a page's accessibility and origin from its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.labelled: set[str] = set()
        self.bare: list[str] = []
        self._in_label = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self._in_label += tag == "label"
        if tag == "label" and found.get("for"):
            self.labelled.add(str(found["for"]))
        if tag in ("input", "select", "textarea") and found.get("type") != "hidden":
            named = self._in_label or "aria-label" in found or found.get("id")
            if not named:
                self.bare.append(f"{tag} {found}")

    def handle_endtag(self, tag: str) -> None:
        self._in_label -= tag == "label"

    def of(self, *names: str) -> list[dict[str, str | None]]:
        return [found for tag, found in self.tags if tag in names]

    def problems(self) -> list[str]:
        said = list(self.bare)
        said += [
            f"{n} times <{t}>" for t in ("h1", "main", "header") if (n := len(self.of(t))) != 1
        ]
        ids = [str(found["id"]) for _, found in self.tags if found.get("id")]
        said += [f"two of id {one}" for one in set(ids) if ids.count(one) > 1]
        for found in self.of("input", "select", "textarea"):
            lonely = found.get("id") and not found.get("aria-label")
            if lonely and found.get("type") != "hidden" and found["id"] not in self.labelled:
                said.append(f"no label for {found['id']}")
        for _, found in self.tags:
            for name in ("aria-labelledby", "aria-describedby"):
                said += [
                    f"{name} {one}" for one in str(found.get(name, "")).split() if one not in ids
                ]
            said += [f"inline {name}" for name in found if name == "style" or name.startswith("on")]
            for name in ("href", "src", "action"):
                if not str(found.get(name, "/")).startswith(("/", "#")):
                    said.append(f"leads out: {found[name]}")
        said += ["an inline script" for found in self.of("script") if "src" not in found]
        said += [
            "a table without heads" for _ in range(bool(self.of("table")) > bool(self.of("th")))
        ]
        return said


def _page(http: httpx.Client, path: str, status: int = 200) -> str:
    answer = http.get(f"/console{path}")
    assert answer.status_code == status, (path, answer.text[:500])
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert Audit(answer.text).problems() == [], path
    return answer.text


def _post(http: httpx.Client, path: str, data: dict[str, Any], **more: Any) -> httpx.Response:
    """Send a form as the page that holds it would."""
    page = http.get("/console/try" if COOKIE in http.cookies or not more.pop("at", "") else "")
    found = TOKEN.search(page.text)
    assert found is not None
    return http.post(f"/console{path}", data={"token": found[1], **data}, **more)


@pytest.fixture(scope="module")
def shared(pool: SharedPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for all tests that do not stand in each other's way."""
    engine = FakeEngine()
    engine.start()
    with serving(engine, tmp_path_factory.mktemp("console"), checker=pool) as running:
        yield running
    engine.stop()


@pytest.fixture
def guarded(engine: FakeEngine, pool: SharedPool, tmp_path: Path) -> Iterator[Running]:
    """A server that asks for keys."""
    admitted = [
        KeySettings(name=name, sha256=hashlib.sha256(key.encode()).hexdigest(), scopes=scopes)
        for name, key, scopes in (
            ("boss", ADMIN, ("admin",)),
            ("user", USER, ("inference", "feedback")),
        )
    ]
    with serving(engine, tmp_path, checker=pool, keys=tuple(admitted)) as running:
        yield running


def _hostile(server: Running) -> str:
    """Everything that strangers write, as badly as they can."""
    message = {"role": "assistant", "content": HOSTILE}
    interaction = records.interaction(
        messages=[{"role": "user", "content": HOSTILE}],
        choices=[{"index": 0, "message": message}],
        spec={"summary": HOSTILE, "examples": SPEC["examples"]},
        user=HOSTILE,
        verified=False,
    )
    attempt = records.attempt(interaction, text=HOSTILE, program=HOSTILE)
    examples = [
        {"index": 0, "verdict": "WRONG", "hidden": False, "message": HOSTILE},
        {"index": 1, "verdict": "WRONG", "hidden": True, "message": "got 41, wanted 42"},
    ]
    execution = records.execution(attempt, verdict="WRONG", verified=False, examples=examples)
    said = [
        records.comment(interaction, HOSTILE),
        records.comment(interaction, HOSTILE, metric=Metric.DEMONSTRATION),
        records.comment(interaction, HOSTILE, metric="mood", source=FeedbackSource.MODEL),
    ]
    server.store.add(
        [
            Recording(
                interaction=interaction, attempts=[attempt], executions=[execution], feedback=said
            )
        ]
    )
    return interaction.id


# --- pages ------------------------------------------------------------------------------------


def test_every_page_shows_an_empty_installation(server: Running) -> None:
    for path in PAGES:
        _page(server.http, path)
    assert server.http.get("/").headers["location"] == "/console"


def test_cycles_come_in_pages(server: Running) -> None:
    cycles = [records.cycle(state=CycleState.SUCCEEDED) for _ in range(26)]
    for cycle in cycles:
        server.store.add_cycle(cycle)
    first = _page(server.http, "/cycles")
    assert cycles[0].id not in first
    assert f"before={cycles[1].id}" in first
    rest = _page(server.http, f"/cycles?before={cycles[1].id}")
    assert cycles[0].id in rest
    assert cycles[1].id not in rest


def test_what_is_not_there_is_a_page_too(shared: Running) -> None:
    for path in ("/nowhere", "/adapters/9", "/adapters/x", "/cycles/x", "/interactions/x"):
        assert "did not work" in _page(shared.http, path, 404), path
    _page(shared.http, "/try?id=x", 404)
    _page(shared.http, "/adapters/compare?first=0&second=9", 404)
    _page(shared.http, "/adapters/compare?first=a", 400)


def test_strangers_text_stays_text(shared: Running) -> None:
    interaction_id = _hostile(shared)
    cycle = records.cycle(
        recipe=HOSTILE, trigger=HOSTILE, error=HOSTILE, state=CycleState.FAILED, stage="build"
    )
    shared.store.add_cycle(cycle)
    event = CycleEvent(
        id=new_id(), cycle_id=cycle.id, created_at=now(), level="error", message=HOSTILE
    )
    shared.store.add_event(event)
    places = (
        "",
        "/learning",
        "/cycles",
        f"/cycles/{cycle.id}",
        "/interactions",
        f"/interactions/{interaction_id}",
        f"/try?id={interaction_id}",
    )
    for path in places:
        text = _page(shared.http, path)
        assert "<img" not in text, path
        assert "alert('taken')" not in text, path
        assert "3200521" not in text, path  # no template of theirs is computed
    assert "&lt;script&gt;" in _page(shared.http, f"/interactions/{interaction_id}")
    searched = shared.http.get("/console/interactions", params={"q": HOSTILE}).text
    assert "<img" not in searched
    assert interaction_id in searched


def test_what_is_hidden_stays_inside(shared: Running) -> None:
    interaction_id = _hostile(shared)
    for path in (f"/interactions/{interaction_id}", f"/try?id={interaction_id}"):
        text = _page(shared.http, path)
        assert "got 41" not in text
        assert not re.search(r"20,\s*22", text)
    assert "1 hidden example decides" in _page(shared.http, f"/interactions/{interaction_id}")


def test_the_record_is_searched_in_pages(server: Running) -> None:
    rows = [
        records.interaction(messages=[{"role": "user", "content": f"task number {number}"}])
        for number in range(30)
    ]
    wrong = records.interaction(verified=False, adapter_version=4)
    server.store.add([Recording(interaction=row) for row in (*rows, wrong)])
    first = _page(server.http, "/interactions?q=TASK+number")
    found = re.findall(r"task number \d+", first)
    assert len(set(found)) == 25
    link = re.search(r'href="(/console/interactions\?[^"]*before=[^"]*)"', first)
    assert link is not None
    rest = server.http.get(link[1].replace("&amp;", "&")).text
    assert len(set(re.findall(r"task number \d+", rest)) - set(found)) == 5
    for query in ("verdict=failed", "version=v4", "version=4&source=served"):
        text = _page(server.http, f"/interactions?{query}")
        assert wrong.id in text
        assert rows[0].id not in text
    assert "Nothing was found" in _page(server.http, "/interactions?q=absent&verdict=verified")
    assert "Nothing was found" in _page(server.http, "/interactions?feedback=comment")


def test_static_files_are_ours_alone(shared: Running) -> None:
    text = _page(shared.http, "")
    assets = re.findall(r'(?:src|href)="(/console/static/[^"]+)"', text)
    assert len(assets) == 4
    for path in assets:
        answer = shared.http.get(path)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert (
        shared.http.get("/console/static/console.css")
        .headers["content-type"]
        .startswith("text/css")
    )
    for name in ("..%2fbase.py", "nothing.js", ".", "%00"):
        assert shared.http.get(f"/console/static/{name}").status_code == 404


def test_vendored_files_keep_their_licence() -> None:
    static = {file.name for file in resources.files("server.console").joinpath("static").iterdir()}
    ours = {"console.css", "console.js", "icon.svg"}
    vendored = static - ours - {name for name in static if name.endswith(".LICENSE.txt")}
    assert vendored
    for name in vendored:
        assert f"{name.removesuffix('.min.js')}.LICENSE.txt" in static


# --- the door ---------------------------------------------------------------------------------


def test_only_an_admin_key_opens_the_door(guarded: Running) -> None:
    http = guarded.http
    for path in (*PAGES, "/cycles/x"):
        answer = http.get(f"/console{path}")
        assert answer.status_code == 303, path
        assert answer.headers["location"].startswith("/console/sign-in?next=")
    # A session is a cookie: a bearer key opens the API alone.
    bearer = {"authorization": f"Bearer {ADMIN}"}
    assert http.get("/console", headers=bearer).status_code == 303
    live = http.get("/console", headers={"hx-request": "true"})
    assert live.status_code == 204
    assert live.headers["hx-redirect"] == "/console/sign-in?next=/console"
    _page(http, "/sign-in")
    assert _sign_in(http, "wrong").status_code == 401
    assert _sign_in(http, "").status_code == 401
    assert _sign_in(http, USER).status_code == 403
    assert COOKIE not in http.cookies
    answer = _sign_in(http, ADMIN, next="/console/cycles")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/console/cycles"
    cookie = answer.headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/console"))
    assert ADMIN not in cookie
    for path in PAGES:
        _page(http, path)
    assert "boss" in _page(http, "")


def _sign_in(http: httpx.Client, key: str, **more: str) -> httpx.Response:
    found = TOKEN.search(http.get("/console/sign-in").text)
    assert found is not None
    return http.post("/console/sign-in", data={"token": found[1], "key": key, **more})


def test_behind_tls_the_session_is_sent_over_tls_only(guarded: Running) -> None:
    guarded.http.headers["x-forwarded-proto"] = "https"
    assert "Secure" in _sign_in(guarded.http, ADMIN).headers["set-cookie"]


def test_a_session_opens_nothing_but_the_console(guarded: Running) -> None:
    assert _sign_in(guarded.http, ADMIN).status_code == 303
    cookie = {COOKIE: guarded.http.cookies[COOKIE]}
    with httpx.Client(base_url=guarded.url, cookies=cookie) as http:
        assert http.get("/console").status_code == 200
        assert http.get("/v1/interactions").status_code == 401
        assert http.get("/consolex").status_code == 401


def test_a_session_ends_by_signing_out_and_with_its_key(guarded: Running) -> None:
    http = guarded.http
    assert _sign_in(http, ADMIN).status_code == 303
    kept = http.cookies[COOKIE]
    assert _post(http, "/sign-out", {}).headers["location"] == "/console/sign-in?done=signed-out"
    assert COOKIE not in http.cookies
    http.cookies.set(COOKIE, kept, path="/console")
    assert http.get("/console").status_code == 303
    http.cookies.clear()
    assert _sign_in(http, ADMIN).status_code == 303
    assert http.get("/console").status_code == 200
    http.cookies.clear()
    made = keys.make("deputy", created_by="test", scopes=["admin"])
    guarded.store.add_key(made.key)
    guarded.until(lambda: _sign_in(http, made.secret).status_code == 303)
    assert http.get("/console").status_code == 200
    guarded.store.revoke_key("deputy")
    guarded.until(lambda: http.get("/console").status_code == 303)
    assert _sign_in(http, made.secret).status_code == 401


def test_a_session_holds_across_restarts_and_for_every_server_on_the_directory(
    guarded: Running, pool: SharedPool
) -> None:
    http, directory = guarded.http, guarded.settings.data_dir / "console"
    form = TOKEN.search(http.get("/console/sign-in").text)
    assert directory.stat().st_mode & 0o077 == 0
    assert _sign_in(http, ADMIN).status_code == 303
    assert all(file.stat().st_mode & 0o077 == 0 for file in directory.iterdir())
    cookie = http.cookies[COOKIE]
    assert not any(cookie in file.read_text() for file in directory.iterdir())
    with serving(
        guarded.engine,
        guarded.settings.data_dir,
        checker=pool,
        keys=guarded.settings.server.keys,
    ) as other:
        assert form is not None  # a form of the one is taken by the other
        given = {"token": form[1], "key": ADMIN}
        assert other.http.post("/console/sign-in", data=given).status_code == 303
        other.http.cookies.clear()
        other.http.cookies.set(COOKIE, cookie, path="/console")
        assert "boss" in _page(other.http, "")
        assert _post(other.http, "/sign-out", {}).status_code == 303
    assert http.get("/console").status_code == 303


def test_a_session_ends_with_time_and_broken_ones_are_none(tmp_path: Path) -> None:
    sessions = door._Sessions(tmp_path / "console")
    kept = sessions.begin(b"key")
    assert sessions.key_of(kept) == b"key"
    assert sessions.key_of("") is None
    assert sessions.key_of("../" * 3 + "etc/passwd") is None
    [file] = (tmp_path / "console").iterdir()
    for broken in ("", "[]", '{"key": "xx", "ends_at": 1e18}', '{"key": "00"}', "\x00"):
        file.write_text(broken)
        assert sessions.key_of(kept) is None
    file.write_text(json.dumps({"key": "00", "ends_at": time.time() - 1}))
    assert sessions.key_of(kept) is None
    assert not file.exists()


def test_the_oldest_session_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MAX_SESSIONS", 3)
    sessions = door._Sessions(tmp_path)
    assert sessions.secret() == door._Sessions(tmp_path).secret()
    kept = []
    for number in range(5):
        kept.append(sessions.begin(b"key"))
        at = time.time() - 100 + number
        os.utime(sessions._file(kept[-1]), (at, at))
    assert [sessions.key_of(cookie) is not None for cookie in kept] == [False] * 2 + [True] * 3


@pytest.mark.parametrize(
    "wanted",
    ["https://evil.example/", "//evil.example", "/v1/models", "/console//x", "/console\\x"],
)
def test_signing_in_leads_nowhere_else(guarded: Running, wanted: str) -> None:
    assert _sign_in(guarded.http, ADMIN, next=wanted).headers["location"] == "/console"


@pytest.mark.parametrize("path", ["/cycles", "/rollback", "/try", "/adapters/1/promote"])
def test_forms_of_other_sites_are_refused(shared: Running, path: str) -> None:
    before = shared.store.count()
    data = {"recipe": "ilf", "prompt": "x"}
    assert shared.http.post(f"/console{path}", data=data).status_code == 403
    wrong: list[dict[str, str]] = [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ]
    for headers in wrong:
        answer = _post(shared.http, path, data, headers=headers)
        assert answer.status_code == 403, headers
        assert "another site" in answer.text
    assert shared.store.count() == before


def test_an_answer_is_streamed_to_who_asks_for_a_stream(shared: Running) -> None:
    answer = _post(shared.http, "/try", {"prompt": "add"}, headers={"accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    row = shared.store.interaction(answer.headers["x-journeyman-interaction-id"])
    assert row.metadata["via"] == "console"
    refused = _post(shared.http, "/try", {"prompt": ""}, headers={"accept": "text/event-stream"})
    assert refused.status_code == 400
    assert refused.headers["content-type"].startswith("text/html")


def test_without_keys_only_names_of_this_machine_are_answered(shared: Running) -> None:
    for host in (
        "rebound.example",
        "rebound.example:8000",
        "10.0.0.7",
        "",
        "[",
        "[::1",
        "127.0.0.1@x",
    ):
        assert shared.http.get("/console", headers={"host": host}).status_code == 403, host
    for host in ("localhost", "localhost:1", "127.0.0.1:99", "[::1]:8000"):
        assert shared.http.get("/console", headers={"host": host}).status_code == 200, host


def test_what_is_no_form_is_refused(shared: Running) -> None:
    post = shared.http.post
    assert post("/console/cycles", json={"recipe": "ilf"}).status_code == 400
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert post("/console/cycles", content=b"a=%ff", headers=form).status_code == 400
    assert post("/console/cycles", content=b"a=%00", headers=form).status_code == 400
    assert (
        post("/console/cycles", content=b"a=" + b"x" * (2 << 20), headers=form).status_code == 413
    )
    assert _post(shared.http, "/cycles", {"recipe": "unheard"}).status_code == 400


# --- what forms do ----------------------------------------------------------------------------


def test_a_version_is_promoted_and_taken_back_after_a_question(server: Running) -> None:
    first = add_adapter(server.registry, fill=b"\1")
    server.registry.examined(first.version, actor="t", reason="better", evidence={})
    second = add_adapter(server.registry, fill=b"\2")
    assert "Promote code@v1" in _page(server.http, "/adapters/1/promote")
    answer = _post(server.http, "/adapters/1/promote", {"reason": "I saw it"})
    assert answer.headers["location"] == "/console/adapters/1?done=promoted"
    change = server.store.transitions(1)[-1]
    assert (change.actor, change.reason) == ("console:local", "I saw it")
    # What was never examined goes live by force alone.
    assert "required" in _page(server.http, "/adapters/2/promote")
    assert _post(server.http, "/adapters/2/promote", {}).status_code == 409
    assert server.store.aliases()[Alias.CHAMPION] == 1
    assert _post(server.http, "/adapters/2/promote", {"force": "yes"}).status_code == 303
    server.until(lambda: "It answers now" in _page(server.http, "/adapters/2"))
    for path in ("/adapters", "/adapters/1", "/adapters/2", ""):
        assert second.name in _page(server.http, path)
    # The champion that was seen is the one that is rolled back.
    assert _post(server.http, "/rollback", {"champion": "1"}).status_code == 409
    assert _post(server.http, "/rollback", {"champion": "2"}).status_code == 303
    assert server.store.aliases()[Alias.CHAMPION] == 1
    assert "Roll back to the base model" in _page(server.http, "/rollback")
    assert _post(server.http, "/rollback", {"champion": "1"}).status_code == 303
    assert "nothing to roll back" in _page(server.http, "/rollback")


def test_a_version_is_tried_on_a_share_and_rejected(server: Running) -> None:
    adapter = add_adapter(server.registry)
    assert _post(server.http, "/adapters/1/canary", {"share": "0.1"}).status_code == 409
    server.registry.examined(adapter.version, actor="t", reason="better", evidence={})
    assert "Put it on trial" in _page(server.http, "/adapters/1/promote")
    for share in ("", "1", "0.9", "x"):
        assert _post(server.http, "/adapters/1/canary", {"share": share}).status_code == 400
    assert _post(server.http, "/adapters/1/canary", {"share": "0.25"}).status_code == 303
    assert server.store.adapter(1).state is AdapterState.CANARY
    assert "25 %" in _page(server.http, "")
    assert "On trial" in _page(server.http, "/adapters")
    assert "answers no more requests" in _page(server.http, "/adapters/1/reject")
    assert _post(server.http, "/adapters/1/reject", {"reason": "a hunch"}).status_code == 303
    change = server.store.transitions(1)[-1]
    assert (change.to_state, change.reason) == (AdapterState.REJECTED, "a hunch")
    assert _post(server.http, "/adapters/1/reject", {}).status_code == 409


def test_a_cycle_is_asked_for_held_back_and_cancelled(server: Running) -> None:
    answer = _post(server.http, "/cycles", {"recipe": "gift4code"})
    place = answer.headers["location"].removeprefix("/console").partition("?")[0]
    (cycle,) = server.store.cycles()
    assert place == f"/cycles/{cycle.id}"
    assert (cycle.recipe, cycle.trigger, cycle.state) == ("gift4code", "console", "queued")
    for action, state in (("pause", "paused"), ("resume", "queued")):
        assert _post(server.http, f"{place}/{action}", {}).status_code == 303
        assert server.store.cycle(cycle.id).state == state
        _page(server.http, place)
    assert "ends for good" in _page(server.http, f"{place}/cancel")
    assert _post(server.http, f"{place}/cancel", {}).status_code == 303
    assert server.store.cycle(cycle.id).state is CycleState.CANCELLED
    assert _post(server.http, f"{place}/pause", {}).status_code == 409
    assert _post(server.http, f"{place}/explode", {}).status_code == 404
    assert _post(server.http, "/cycles/x/pause", {}).status_code == 404


def test_a_running_cycle_shows_its_stages_rows_and_log(server: Running, tmp_path: Path) -> None:
    partial = tmp_path / "cycle" / "train.partial"
    partial.mkdir(parents=True)
    lines = '{"step": 1, "steps": 8, "loss": 2.0}\n{"step": 2, "steps": 8, "loss": 1.5}\n{"st'
    (partial / "progress.jsonl").write_text(lines)
    report = {"collect": {"seconds": 1.5, "recipes": ["ilf"], "failures": {"cases": 12}}}
    cycle = records.cycle(stage="train", report=report, directory=str(tmp_path / "cycle"))
    server.store.add_cycle(cycle)
    rows = [_row(cycle, number, reason) for number, reason in enumerate([None, "duplicate"])]
    server.store.replace_dataset(cycle.id, rows)
    text = _page(server.http, f"/cycles/{cycle.id}")
    assert "step 2 of 8, loss 1.500" in text
    assert "1 kept, 1 dropped" in text
    assert "failures: cases" in text
    assert "Shadow" not in text
    shadowed = records.cycle(settings={"release": {"shadow_requests": 5}})
    server.store.add_cycle(shadowed)
    assert "Shadow" in _page(server.http, f"/cycles/{shadowed.id}")
    assert text.count('class="done"') == text.count('class="running"') == 1
    assert "every 3s" in text
    (partial / "progress.jsonl").unlink()
    (partial / "journal.jsonl").write_text("{}\n" * 7)
    assert "7 answers so far" in _page(server.http, f"/cycles/{cycle.id}")
    assert "stage <strong>train" in _page(server.http, "")


def _row(cycle: Cycle, number: int, reason: str | None) -> DatasetRow:
    return DatasetRow(
        cycle_id=cycle.id,
        row_id=f"r{number}",
        recipe="ilf",
        kept=reason is None,
        reason=reason,
        interaction_ids=[],
        feedback_ids=[],
        prompt_sha256="00" * 32,
        program_sha256="11" * 32,
    )


def test_an_examination_is_shown_in_words_and_task_by_task(server: Running, tmp_path: Path) -> None:
    examined = {"champion": "fake-base", "candidate": "code@v1"}
    target = {"tasks": 3, "candidate_solved": 2, "champion_solved": 1, "won": 1, "lost": 0}
    decided = {
        "decision": "reject",
        "reason": "drifted",
        "text": "REJECT: drifted.",
        "numbers": {"target": target, "e_better": 1.5},
    }
    cycle = records.cycle(
        state=CycleState.SUCCEEDED,
        directory=str(tmp_path),
        report={"evaluate": examined, "decide": decided, "dataset": {"train": 9, "held_out": 1}},
        adapter_version=1,
    )
    server.store.add_cycle(cycle)
    server.registry.add(
        write_adapter,
        base_model=BASE,
        base_sha256="0" * 64,
        rank=RANK,
        recipe="ilf",
        cycle_id=cycle.id,
        lineage={},
        actor="test",
    )
    assert "1 of 3" not in _page(server.http, "/adapters")
    for path in ("/learning", "/adapters", "/cycles"):
        assert "2 of 3" in (text := _page(server.http, path)) or "drifted" in text, path
    place = "/adapters/compare?first=0&second=1"
    assert "nothing to compare" in _page(server.http, place)
    outcomes = tmp_path / "evaluate" / "outcomes.jsonl"
    outcomes.parent.mkdir()
    line = '{{"arm": "{}", "task_id": "t/{}", "passed": {}, "verdict": "{}", "suite": "target", '
    line += '"seed": 7}}\n'
    told = [("champion", 1, "false", "WRONG"), ("candidate", 1, "true", "OK")]
    told += [("champion", 2, "true", "OK"), ("candidate", 2, "true", "OK")]
    told += [("champion", 3, "null", "SANDBOX"), ("candidate", 3, "false", "WRONG")]
    outcomes.write_text("".join(line.format(*one) for one in told))
    text = _page(server.http, place)
    assert "t/1" in text
    assert "gained" in text
    assert "t/2" not in text
    assert "t/2" in _page(server.http, f"{place}&only=all")
    assert "lost" in _page(server.http, "/adapters/compare?first=1&second=0")


def test_what_is_tried_is_verified_recorded_and_teaches(server: Running) -> None:
    fields = {
        "prompt": "Add two numbers.",
        "model": "code",
        "entry_point": "add",
        "input": ["[1, 2]", "[20, 22]", ""],
        "output": ["3", "42", ""],
        "hidden": ["1"],
        "candidates": "2",
    }
    answer = _post(server.http, "/try", fields)
    assert answer.status_code == 200
    assert Audit(answer.text).problems() == []
    assert "2 of 2 checks passed" in answer.text
    assert "0 in flight" in _page(server.http, "")
    assert 'value="[20, 22]"' in answer.text  # still in the form of who wrote it
    (row,) = server.store.interactions()
    assert row.verified is True
    assert row.metadata == {"via": "console"}
    assert len(server.store.attempts(row.id)) == 2
    assert all("42" not in str(body["messages"]) for body in server.engine.bodies())
    for metric, value in (
        ("accepted", "false"),
        ("accepted", "true"),
        ("comment", "Name it better."),
        ("demonstration", "def add(a, b): return a + b"),
        ("rating", "4"),
    ):
        said = {"metric": metric, "value": value, "back": "try"}
        kept = _post(server.http, f"/interactions/{row.id}/feedback", said)
        assert kept.headers["location"] == f"/console/try?id={row.id}&done=feedback"
    found = {one.metric: one for one in server.store.feedback(row.id)}
    assert len(found) == 4
    assert found["accepted"].value is True
    assert found["rating"].value == 4.0
    assert {one.source for one in found.values()} == {FeedbackSource.HUMAN}
    text = _page(server.http, f"/try?id={row.id}&done=feedback")
    assert "Name it better." in text
    assert "Kept." in text
    for said in (
        {"metric": "mood", "value": "x"},
        {"metric": "rating", "value": "high"},
        {"metric": "comment", "value": " "},
    ):
        assert _post(server.http, f"/interactions/{row.id}/feedback", said).status_code == 400
    missing = {"metric": "accepted", "value": "true"}
    assert _post(server.http, "/interactions/x/feedback", missing).status_code == 404


def test_the_form_says_what_is_wrong_and_keeps_what_was_written(server: Running) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompt": " "}, "Write what the program should do"),
        ({"input": ["[1"], "output": ["1"]}, "example 1, arguments: this is no JSON"),
        ({"input": ["1"], "output": ["1"]}, "a list of positional"),
        ({"raw": "[]"}, "an object is wanted"),
        ({"raw": '{"nonsense": 1}'}, "io_spec.nonsense"),
        ({"candidates": "many", "types": "(x) -> y"}, "a number is wanted"),
        ({"candidates": "999", "types": "(x) -> y"}, "at most 32"),
        ({"entry_point": "no name"}, "io_spec.entry_point"),
        ({"model": "nobody"}, "does not exist"),
    ]
    for fields, words in cases:
        answer = _post(server.http, "/try", {"prompt": "Keep <me>", "model": "code", **fields})
        assert answer.status_code in (400, 404), fields
        assert words in answer.text, (fields, answer.text[:3000])
        assert Audit(answer.text).problems() == []
        if "prompt" not in fields:
            assert "Keep &lt;me&gt;" in answer.text
    assert server.store.interactions() == []
    more = _post(
        server.http, "/try", {"prompt": "p", "change": "add", "input": "[1]", "output": ""}
    )
    assert more.text.count('name="input"') == 2
    assert "autofocus" in more.text
    plain = _post(server.http, "/try", {"prompt": "Say hello.", "model": "code"})
    assert "not checked" in plain.text
    (row,) = server.store.interactions()
    assert row.spec is None


def test_what_is_down_is_said(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    server.engine.stop()
    server.until(lambda: "Not ready" in _page(server.http, ""))
    failed = _post(server.http, "/try", {"prompt": "Keep this.", "model": "code"})
    assert failed.status_code == 503
    assert "Keep this." in failed.text

    def unreadable(*arguments: object, **more: object) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(Store, "cycles", unreadable)
    assert "the disk is full" in _page(server.http, "/cycles", 503)


def test_a_key_without_a_share_left_is_told_so(
    engine: FakeEngine, pool: SharedPool, tmp_path: Path
) -> None:
    key = KeySettings(
        name="boss",
        sha256=hashlib.sha256(ADMIN.encode()).hexdigest(),
        scopes=("admin",),
        requests_per_minute=1,
    )
    with serving(engine, tmp_path, checker=pool, keys=(key,)) as running:
        assert _sign_in(running.http, ADMIN).status_code == 303
        assert _post(running.http, "/try", {"prompt": "a", "model": "code"}).status_code == 200
        refused = _post(running.http, "/try", {"prompt": "a", "model": "code"})
    assert refused.status_code == 429
    assert "too many requests" in refused.text
    assert running.engine.bodies()


@pytest.mark.parametrize(
    ("state", "decision", "word"),
    [
        (AdapterState.CHAMPION, "reject", "promoted"),  # by force
        (AdapterState.RETIRED, "promote", "promoted"),
        (AdapterState.ERASED, "promote", "promoted"),
        (AdapterState.ERASED, "reject", "rejected"),
        (AdapterState.REJECTED, "promote", "rejected"),  # the server refused it
        (AdapterState.CANARY, "promote", "open"),
        (AdapterState.EXAMINED, "continue", "open"),
    ],
)
def test_the_fate_of_a_version(
    registry: Registry, state: AdapterState, decision: str, word: str
) -> None:
    report = {
        "evaluate": {"candidate": "code@v1", "champion": BASE},
        "decide": {"decision": decision, "numbers": {}},
    }
    exam = examination(records.cycle(report=report))
    assert exam is not None
    assert fate(replace(add_adapter(registry), state=state), exam) == word


# --- charts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solved", "tasks", "low", "high"),
    # From the formula of Wilson (1927), as R's prop.test without correction gives it.
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (30, 100, 0.2189, 0.3958),
    ],
)
def test_intervals_are_wilsons(solved: int, tasks: int, low: float, high: float) -> None:
    found = charts.wilson(solved, tasks)
    assert found == pytest.approx((low, high), abs=5e-4)


def test_no_tasks_say_nothing() -> None:
    assert charts.wilson(0, 0) == (0.0, 1.0)


def test_bars_stand_on_the_axis_and_on_each_other() -> None:
    chart = charts.bars([("a", "a", {"x": 3, "y": 1}), ("b", "b", {"x": 0, "y": 0})])
    lower, upper = chart.bars[0].blocks
    assert lower.y + lower.height == pytest.approx(chart.base)
    assert upper.y + upper.height == pytest.approx(lower.y)
    assert lower.height == pytest.approx(3 * upper.height, rel=0.01)
    assert chart.bars[1].blocks == []
    assert [tick.label for tick in chart.y_ticks] == ["0", "1", "2", "3", "4"]


def test_a_line_leads_through_what_was_promoted() -> None:
    points = [
        Measured(label="base", kind="start", title="", solved=1, tasks=4, joined=True),
        Measured(label="v1", kind="rejected", title="", solved=0, tasks=4),
        Measured(label="v2", kind="promoted", title="", solved=3, tasks=4, joined=True),
    ]
    chart = charts.whiskers(points)
    assert len(chart.path.split()) == 2
    for one in chart.whiskers:
        assert one.high <= one.y <= one.low  # upwards is less
    assert charts.whiskers([]).whiskers == []


def test_versions_hang_on_what_they_were_measured_against() -> None:
    nodes = [
        Node(version=1, parent=None, kind="promoted", label="v1", note=""),
        Node(version=2, parent=1, kind="rejected", label="v2", note=""),
        Node(version=3, parent=1, kind="champion", label="v3", note=""),
        Node(version=4, parent=99, kind="open", label="v4", note=""),
    ]
    graph = charts.lineage(nodes)
    places = {placed.node.version: (placed.x, placed.y) for placed in graph.nodes}
    assert places[1][1] == places[3][1] < places[2][1]
    assert len(set(places.values())) == 4
    assert graph.edges[2][:2] == places[1]
    assert all(x < graph.width and y < graph.height for x, y in places.values())
