"""Adapters: followed, proved, flipped, drained; refused when they cannot be proved."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ops import probe, swaps
from ops.errors import RegistryError
from ops.records import Adapter, AdapterState, Alias
from tests.fake_engine import BASE, FakeEngine, add_adapter, safetensors, write_adapter
from tests.server.conftest import Running, SharedPool, serving


def _promote(server: Running, adapter: Adapter) -> None:
    server.registry.promote(adapter.version, actor="test", reason="test", force=True)


def _serves(server: Running, version: int) -> bool:
    response = server.chat(store=False)
    return response.status_code == 200 and response.json()["adapter"]["version"] == version


def _release(server: Running, fill: bytes = b"\1", **config: Any) -> Adapter:
    adapter = add_adapter(server.registry, fill=fill, **config)
    _promote(server, adapter)
    return adapter


def test_a_promoted_adapter_answers_after_it_was_proved(server: Running) -> None:
    adapter = _release(server)
    server.until(lambda: _serves(server, 1))
    answer = server.chat().json()
    assert answer["model"] == "code@v1"
    assert answer["adapter"] == {"name": "code", "version": 1, "sha256": adapter.sha256}
    assert adapter.sha256[:12] in answer["system_fingerprint"]
    sent = server.engine.bodies()[-1]
    assert sent["model"] == "code@v1"
    assert sent["cache_salt"] == adapter.sha256
    row = server.store.interactions()[0]
    assert (row.model, row.adapter_version, row.adapter_sha256) == ("code", 1, adapter.sha256)
    (load,) = server.engine.loads
    assert load == {"lora_name": "code@v1", "lora_path": adapter.directory}
    server.until(lambda: len(server.store.receipts(version=1)) == 1)
    (receipt,) = server.store.receipts(version=1)
    assert receipt.accepted
    phases = {"verify", "preflight", "load", "readback", "probe", "flip"}
    assert receipt.phases_s.keys() == phases
    assert receipt.probe["correlation"] == pytest.approx(1.0)
    assert server.registry.get(1).state is AdapterState.CHAMPION
    (shown,) = server.http.get("/v1/adapters/1").json()["receipts"]
    proof = shown["probe"]
    assert proof["sha256"] == proof["cache_salt"] == adapter.sha256
    assert proof["preflight"] | {"bytes": 0} == {
        "rank": 8,
        "tensors": 2,
        "bytes": 0,
        "base": "not readable here",
    }
    assert proof["readback"] == {"name": "code@v1", "root": Path(adapter.directory).name}
    assert proof["max_loras"] == server.engine.max_loras


def test_an_engine_is_warmed_once_whenever_it_comes(server: Running) -> None:
    assert server.engine.warmed == 1
    _release(server)
    server.until(lambda: _serves(server, 1))
    assert server.engine.warmed == 1
    server.engine.stop()
    server.until(lambda: server.http.get("/ready").status_code == 503)
    server.engine.start()
    server.ready()
    assert server.engine.warmed == 2


def test_an_engine_with_too_few_places_is_complained_of(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    server.engine.max_loras = 2
    _release(server)
    server.until(lambda: _serves(server, 1))
    assert "start it with --max-loras 3" in caplog.text
    server.until(lambda: len(server.store.receipts(version=1)) == 1)
    assert server.store.receipts(version=1)[0].probe["max_loras"] == 2


def test_models_shows_alias_base_and_pins(server: Running) -> None:
    _release(server, b"\1")
    _release(server, b"\2")
    server.until(lambda: _serves(server, 2))
    models = {model.id: model.model_dump() for model in server.openai.models.list()}
    assert models.keys() == {"code", BASE, "code@v1", "code@v2"}
    assert (models["code"]["root"], models["code"]["parent"]) == ("code@v2", BASE)
    assert models["code@v1"]["root"].startswith("sha256-")
    assert models["code@v1"]["parent"] == BASE
    assert models[BASE]["parent"] is None
    assert server.http.get("/v1/models/code@v1").json()["id"] == "code@v1"
    listed = server.http.get("/v1/adapters").json()
    assert [(a["name"], a["state"], a["loaded"]) for a in listed["data"]] == [
        ("code@v2", "champion", True),
        ("code@v1", "retired", True),
    ]
    assert listed["aliases"] == {"champion": 2, "rollback": 1}
    one = server.http.get("/v1/adapters/code@v1").json()
    assert [t["to_state"] for t in one["transitions"]] == ["built", "champion", "retired"]
    assert one["receipts"][0]["accepted"] is True
    assert server.chat(model="code@v1").json()["adapter"]["version"] == 1


def test_rollback_is_instant_because_the_way_back_stays_loaded(server: Running) -> None:
    _release(server, b"\1")
    _release(server, b"\2")
    server.until(lambda: _serves(server, 2))
    loads = len(server.engine.loads)
    server.registry.rollback(actor="test", reason="test")
    server.until(lambda: _serves(server, 1), timeout_s=3)
    assert len(server.engine.loads) == loads
    server.until(lambda: "code@v2" not in server.engine.adapters)
    back = server.store.receipts(version=1)[0]
    assert (back.accepted, back.from_version, set(back.phases_s)) == (True, 2, {"flip"})
    assert back.probe["accepted"] is True
    server.registry.rollback(actor="test", reason="test")
    server.until(lambda: _serves(server, 0), timeout_s=3)
    server.until(lambda: len(server.store.receipts(version=0)) == 1)


def test_whoever_moves_an_alias_can_wait_for_the_proof(server: Running) -> None:
    for fill in (b"\1", b"\2"):
        before = swaps.mark(server.store)
        assert len(before.servers) == 1
        adapter = _release(server, fill)
        result = swaps.wait(server.store, before, adapter.version, 10)
        assert result.silent == ()
        result.raise_if_refused()
        assert _serves(server, adapter.version)
    for version in (1, 0):
        before = swaps.mark(server.store)
        server.registry.rollback(actor="test", reason="test")
        result = swaps.wait(server.store, before, version, 10)
        assert result.silent == ()
        assert _serves(server, version)
    before = swaps.mark(server.store)
    bad = _release(server, b"\3", use_dora=True)
    result = swaps.wait(server.store, before, bad.version, 10)
    with pytest.raises(RegistryError, match="DoRA"):
        result.raise_if_refused()


def test_a_candidate_that_was_proved_goes_live_without_loading_again(server: Running) -> None:
    adapter = add_adapter(server.registry)
    server.registry.nominate(adapter.version)
    server.until(lambda: len(server.store.receipts(version=1)) == 1)
    assert server.store.receipts(version=1)[0].probe["alias"] == "candidate"
    _promote(server, adapter)
    server.until(lambda: _serves(server, 1))
    server.until(lambda: len(server.store.receipts(version=1)) == 2)
    assert len(server.engine.loads) == 1


def test_a_candidate_answers_under_its_pinned_name_only(server: Running) -> None:
    adapter = add_adapter(server.registry)
    assert server.chat(model="code@v1").status_code == 404
    server.registry.nominate(adapter.version)
    server.until(lambda: server.chat(model="code@v1", store=False).status_code == 200)
    assert _serves(server, 0)
    server.registry.nominate(None)
    server.until(lambda: server.chat(model="code@v1", store=False).status_code == 404)
    server.until(lambda: "code@v1" not in server.engine.adapters)


def test_an_old_version_is_unloaded_only_when_its_last_request_ended(server: Running) -> None:
    for fill in (b"\1", b"\2"):
        _release(server, fill)
    server.until(lambda: _serves(server, 2))
    server.engine.token_delay_s = 0.15
    stream = server.openai.chat.completions.create(
        model="code@v1", messages=[{"role": "user", "content": "x"}], stream=True
    )
    next(stream)
    _release(server, b"\3")  # v2 is the way back now; v1 has to go
    server.engine.token_delay_s = 0.0
    server.until(lambda: _serves(server, 3))
    time.sleep(4 * server.settings.server.poll_s)
    assert "code@v1" in server.engine.adapters
    assert server.chat(model="code@v1").status_code == 404  # no new ones
    list(stream)
    server.until(lambda: "code@v1" not in server.engine.adapters)


def test_swaps_under_load_fail_no_request_and_mix_no_versions(server: Running) -> None:
    # The answer itself says which adapter wrote it.
    server.engine.script = lambda body, index: body["model"]
    server.engine.token_delay_s = 0.002
    stop = threading.Event()
    problems: list[str] = []
    seen: set[int] = set()

    def ask() -> None:
        while not stop.is_set():
            response = server.chat()
            if response.status_code != 200:
                problems.append(response.text)
                continue
            answer = response.json()
            version = answer["adapter"]["version"]
            wrote = f"code@v{version}" if version else BASE
            seen.add(version)
            if answer["choices"][0]["message"]["content"] != wrote or answer["model"] != wrote:
                problems.append(f"{wrote}: {answer}")

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    server.until(lambda: bool(seen or problems))
    for number in range(1, 9):
        _release(server, bytes([number]))
        server.until(lambda n=number: n in seen or bool(problems))  # type: ignore[misc]
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert seen == set(range(9))
    server.until(lambda: set(server.engine.adapters) == {"code@v8", "code@v7"})


def _spoil(adapter: Adapter, name: str) -> None:
    path = Path(adapter.directory) / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_corrupt_adapter_is_refused_and_serving_goes_on(server: Running) -> None:
    _release(server, b"\1")
    server.until(lambda: _serves(server, 1))
    bad = add_adapter(server.registry, fill=b"\2")
    _promote(server, bad)
    _spoil(bad, "adapter_model.safetensors")
    # Whichever came first, the poll or the damage, another server would see the same.
    server.engine.restart()
    server.until(lambda: server.registry.get(2).state is AdapterState.REJECTED)
    server.until(lambda: _serves(server, 1))
    (refusal,) = [r for r in server.store.receipts(version=2) if not r.accepted]
    assert "adapter_model.safetensors" in refusal.reason
    assert server.store.aliases() == {Alias.CHAMPION: 1}
    server.ready()


def _forge_probe(directory: Path) -> None:
    write_adapter(directory)
    texts = [
        probe.ProbeText(
            token_ids=t.token_ids,
            base_logprobs=t.base_logprobs,
            adapter_logprobs=[x - 1.5 for x in t.base_logprobs],
        )
        for t in probe.read(directory)
    ]
    probe.write(directory, texts)


def _as_pickle(directory: Path) -> None:
    write_adapter(directory)
    (directory / "adapter_model.bin").write_bytes(b"\x80")


def _cut_off(directory: Path) -> None:
    write_adapter(directory)
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def _no_lora(directory: Path) -> None:
    write_adapter(directory)
    weights = safetensors({"model.embed_tokens.weight": ("F32", [16, 8])})
    (directory / "adapter_model.safetensors").write_bytes(weights)


def _other_rank(directory: Path) -> None:
    write_adapter(directory)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    (directory / "adapter_model.safetensors").write_bytes(safetensors({name: ("F32", [4, 16])}))


def _no_probe(directory: Path) -> None:
    write_adapter(directory)
    (directory / "probe.json").unlink()


def _config(**change: Any) -> Any:
    return lambda directory: write_adapter(directory, **change)


REFUSED: list[tuple[Any, str]] = [
    (_config(use_dora=True), "DoRA"),
    (_config(modules_to_save=["lm_head"]), "modules_to_save"),
    (_config(bias="all"), "bias"),
    (_config(r=4), "registered as 8"),
    (_config(r="x"), "rank"),
    (_config(peft_type="IA3"), "LORA"),
    (_config(rank_pattern={"q_proj": 4}), "differ by module"),
    (_as_pickle, "carry code"),
    (_cut_off, "cut off"),
    (_no_lora, "no LoRA matrix"),
    (_other_rank, "shape"),
    (_no_probe, "probe.json"),
    (_forge_probe, "nats"),
]


def test_what_cannot_be_proved_is_refused_with_the_reason(server: Running) -> None:
    for write, reason in REFUSED:
        adapter = server.registry.add(
            write,
            base_model=BASE,
            base_sha256="0" * 64,
            rank=8,
            recipe="test",
            cycle_id=None,
            lineage={},
            actor="test",
        )
        _promote(server, adapter)
        server.until(
            lambda v=adapter.version: server.registry.get(v).state is AdapterState.REJECTED  # type: ignore[misc]
        )
        (receipt,) = server.store.receipts(version=adapter.version)
        assert not receipt.accepted
        assert reason in receipt.reason, receipt.reason
        transition = server.store.transitions(adapter.version)[-1]
        assert reason in transition.reason
        assert transition.actor.startswith("server:")
        server.until(lambda: _serves(server, 0))
    assert server.engine.adapters == {}


def test_an_adapter_that_the_engine_does_not_apply_is_caught(server: Running) -> None:
    server.engine.apply_adapters = False
    _release(server)
    server.until(lambda: server.registry.get(1).state is AdapterState.REJECTED)
    (receipt,) = server.store.receipts(version=1)
    assert "changes nothing" in receipt.reason
    assert receipt.probe["engine_shift"] == 0.0
    assert server.engine.adapters == {}
    assert _serves(server, 0)


def test_an_engine_that_refuses_the_load_refuses_the_adapter(server: Running) -> None:
    error = {"error": {"message": "LoRA rank 8 is greater than max_lora_rank 4", "code": 500}}
    server.engine.fail["load"] = (500, error)
    _release(server)
    server.until(lambda: server.registry.get(1).state is AdapterState.REJECTED)
    assert "greater than max_lora_rank" in server.store.receipts(version=1)[0].reason


def test_after_an_engine_restart_everything_is_loaded_again(server: Running) -> None:
    for fill in (b"\1", b"\2"):
        _release(server, fill)
    server.until(lambda: _serves(server, 2))
    server.engine.stop()
    server.until(lambda: server.http.get("/ready").status_code == 503)
    reasons = server.http.get("/ready").json()["reasons"]
    assert any("engine" in reason for reason in reasons)
    response = server.chat()
    assert response.status_code == 503
    assert response.headers["retry-after"]
    server.engine.start()
    server.ready()  # with the champion; the way back may take a moment more
    server.until(lambda: set(server.engine.adapters) == {"code@v1", "code@v2"})
    assert _serves(server, 2)


def test_a_request_right_after_a_restart_is_never_answered_by_the_base(server: Running) -> None:
    _release(server)
    server.until(lambda: _serves(server, 1))
    for _ in range(5):
        server.engine.restart()
        for _ in range(10):
            response = server.chat(store=False)
            assert response.status_code in (200, 503), response.text
            if response.status_code == 200:
                assert response.json()["adapter"]["version"] == 1
        server.ready()


def test_trouble_that_is_not_the_adapters_fault_is_tried_again(server: Running) -> None:
    server.engine.fail["/v1/completions"] = (500, {"error": {"message": "busy"}})
    _release(server)
    server.until(lambda: len(server.store.receipts(version=1)) >= 2)
    assert server.registry.get(1).state is AdapterState.CHAMPION
    ready = server.http.get("/ready")
    assert ready.status_code == 200  # what answered before still does
    assert "busy" in json.dumps(ready.json()["pending"])
    server.engine.fail.clear()
    server.until(lambda: _serves(server, 1))


def test_a_restarted_server_takes_over_what_the_engine_has(
    engine: FakeEngine, pool: SharedPool, tmp_path: Path
) -> None:
    with serving(engine, tmp_path, checker=pool) as server:
        _release(server)
        server.until(lambda: _serves(server, 1))
    with serving(engine, tmp_path, checker=pool) as server:
        assert _serves(server, 1)
        assert len(engine.loads) == 1
        assert len(server.store.receipts(version=1)) == 2
