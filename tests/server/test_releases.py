"""The routes that move versions: who may, what the registry says then, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest

from ops.records import AdapterState, Alias
from ops.settings import KeySettings
from tests.fake_engine import FakeEngine, add_adapter
from tests.server.conftest import Running, SharedPool, serving


def _examined(server: Running, fill: bytes) -> int:
    adapter = add_adapter(server.registry, fill=fill)
    evidence = {"text": f"PROMOTE: better.\nTarget, {fill[0]} tasks."}
    server.registry.examined(adapter.version, actor="gate", reason="better", evidence=evidence)
    return adapter.version


def _post(server: Running, path: str, **query: object) -> httpx.Response:
    return server.http.post(f"/v1/adapters/{path}", params=query)


def test_a_version_goes_the_whole_way_by_request(server: Running) -> None:
    for fill in (b"\1", b"\2", b"\3"):
        _examined(server, fill)
    one = _post(server, "code@v1/promote", reason="the first")
    assert one.status_code == 200, one.text
    assert (one.json()["state"], one.json()["decision"]) == (
        "champion",
        "PROMOTE: better.\nTarget, 1 tasks.",
    )
    last = one.json()["transitions"][-1]
    assert (last["actor"], last["reason"]) == ("key:local", "the first")
    server.until(lambda: server.chat(store=False).json()["adapter"]["version"] == 1)
    canary = _post(server, "v2/canary", share=0.5)
    assert canary.json()["state"] == "canary"
    listed = server.http.get("/v1/adapters").json()
    assert listed["trial"]["kind"] == "canary"
    assert (listed["trial"]["version"], listed["trial"]["share"]) == (2, 0.5)
    assert "code@v2 answered 0 requests" in listed["trial"]["text"]
    assert _post(server, "2/reject", reason="no").json()["state"] == "rejected"
    assert server.http.get("/v1/adapters").json()["trial"]["kind"] == "watch"
    assert _post(server, "3/promote").json()["state"] == "champion"
    back = _post(server, "rollback", version="code@v3")
    assert back.json()["aliases"] == {"champion": 1}
    server.until(lambda: server.chat(store=False).json()["adapter"]["version"] == 1)
    assert back.json()["trial"] is None


def test_what_is_not_allowed_is_refused_with_the_reason(server: Running) -> None:
    built = add_adapter(server.registry, fill=b"\7").version
    cases = [
        (f"{built}/promote", {}, 409, "built and cannot be promoted without --force"),
        (f"{built}/canary", {}, 409, "built and cannot be made canary"),
        ("rollback", {}, 409, "nothing to roll back"),
        ("rollback", {"version": built}, 409, "is not the champion"),
        ("9/promote", {}, 404, "no adapter version 9"),
        ("../x/promote", {}, 404, "no such route"),
        ("x/reject", {}, 404, "versions are named"),
        (f"{built}/canary", {"share": 0.9}, 400, "less than or equal to 0.5"),
        (f"{built}/canary", {"share": "much"}, 400, "number"),
        (f"{built}/reject", {"reason": ""}, 400, "at least 1 character"),
    ]
    for path, query, status, words in cases:
        response = _post(server, path, **query)
        assert response.status_code == status, (path, response.text)
        assert words in response.json()["error"]["message"], response.text
    assert _post(server, f"{built}/promote", force=True).status_code == 200
    assert _post(server, f"{built}/reject").status_code == 409, "the champion is rolled back"
    assert server.store.aliases() == {Alias.CHAMPION: built}


def test_damaged_files_are_refused_and_serving_goes_on(server: Running) -> None:
    version = _examined(server, b"\1")
    (Path(server.registry.get(version).directory) / "adapter_config.json").write_text("{}")
    for verb in ("promote", "canary"):
        response = _post(server, f"{version}/{verb}")
        assert response.status_code == 409, response.text
        assert "altered" in response.json()["error"]["message"]
    assert server.registry.get(version).state is AdapterState.EXAMINED
    assert server.chat().status_code == 200


def test_two_versions_are_told_apart(server: Running) -> None:
    for fill in (b"\1", b"\2"):
        _examined(server, fill)
    found = server.http.get("/v1/adapters/2/diff", params={"against": "v1"}).json()
    assert (found["from"], found["to"]) == ("code@v1", "code@v2")
    assert "code@v2 is examined: test, rank 8, 0 rows" in found["text"]
    assert server.http.get("/v1/adapters/2/diff").json()["from"] == "the base model"
    for path in ("9/diff", "2/diff?against=9", "2/diff?against=x"):
        assert server.http.get(f"/v1/adapters/{path}").status_code == 404, path


@pytest.mark.parametrize(
    ("scopes", "status"), [(("inference", "feedback"), 403), (("admin",), 200)]
)
def test_only_admins_move_versions(
    engine: FakeEngine, pool: SharedPool, tmp_path: Path, scopes: tuple[str, ...], status: int
) -> None:
    key = KeySettings.model_validate(
        {"name": "k", "sha256": hashlib.sha256(b"secret").hexdigest(), "scopes": scopes}
    )
    with serving(engine, tmp_path, checker=pool, keys=(key,)) as server:
        _examined(server, b"\1")
        server.http.headers["authorization"] = "Bearer secret"
        assert _post(server, "1/promote").status_code == status
        assert server.http.get("/v1/adapters/1/diff").status_code == status
        moved = {Alias.CHAMPION: 1} if status == 200 else {}
        assert server.store.aliases() == moved
        if status == 200:
            assert server.store.transitions(1)[-1].actor == "key:k"
