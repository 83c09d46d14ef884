"""Keys: hashed, scoped, by tenant, limited."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from ops import keys
from ops.errors import SettingsError
from ops.settings import KeySettings, ServerSettings, Settings, StoreSettings
from ops.store import Store
from server.app import create_app, require_safe
from server.auth import Key, Keys
from server.errors import Unauthorized
from server.limits import Bucket
from tests.fake_engine import FakeEngine
from tests.server.conftest import Running, SharedPool, record_url, serving
from tests.server.test_app import ROUTES


def _key(name: str, **more: object) -> KeySettings:
    return KeySettings(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), **more)  # type: ignore[arg-type]


@pytest.fixture
def guarded(engine: FakeEngine, pool: SharedPool, tmp_path: Path) -> Iterator[Running]:
    keys = (
        _key("user-a", tenant="a"),
        _key("user-b", tenant="b"),
        _key("asks-only", scopes=("inference",)),
        _key("root", scopes=("admin",)),
        _key("slow", requests_per_minute=2),
        _key("frugal", tokens_per_minute=10),
    )
    with serving(engine, tmp_path, checker=pool, keys=keys) as running:
        yield running


def _as(server: Running, key: str | None) -> Running:
    server.http.headers.pop("authorization", None)
    if key is not None:
        server.http.headers["authorization"] = f"Bearer {key}"
    return server


def test_nothing_but_health_is_open(guarded: Running) -> None:
    for key in (None, "wrong", "x" * 5000, "USER-A"):
        server = _as(guarded, key)
        for method, path in ROUTES:
            response = server.http.request(method, path.replace("{", "").replace("}", ""))
            if path in ("/health", "/ready"):
                assert response.status_code == 200
                continue
            assert response.status_code == 401, (key, path)
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
    assert guarded.engine.requests == []


def test_a_key_does_what_its_scopes_say(guarded: Running) -> None:
    wanted = {
        "user-a": {"inference", "feedback"},
        "asks-only": {"inference"},
        "root": {"inference", "feedback", "admin"},
    }
    for key, scopes in wanted.items():
        server = _as(guarded, key)
        tried = {
            "inference": server.chat().status_code,
            "feedback": server.http.delete("/v1/feedback/x").status_code,
            "admin": server.http.get("/v1/interactions").status_code,
        }
        assert {scope for scope, status in tried.items() if status != 403} == scopes
        for path in ("/v1/adapters", "/metrics", "/invocations"):
            status = server.http.get(path).status_code
            assert (status == 403) == (key != "root"), path


def test_the_openai_client_sends_its_key(guarded: Running) -> None:
    url = f"{guarded.url}/v1"
    messages = [{"role": "user", "content": "x"}]
    with openai.OpenAI(base_url=url, api_key="user-a", max_retries=0) as client:
        client.chat.completions.create(model="code", messages=messages)  # type: ignore[arg-type]
    with (
        openai.OpenAI(base_url=url, api_key="nobody", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_tenants_do_not_reach_each_other(guarded: Running) -> None:
    answer = _as(guarded, "user-a").chat(episode_id="ep").json()
    assert guarded.store.interaction(answer["id"].removeprefix("chatcmpl-")).tenant == "a"
    salts = {}
    for key in ("user-a", "user-b", "root"):
        _as(guarded, key).chat(episode_id=f"ep-{key}")
        salts[key] = guarded.engine.bodies()[-1].get("cache_salt")
    assert salts["root"] is None
    assert salts["user-a"] != salts["user-b"]
    on_answer = {"inference_id": answer["id"], "metric_name": "accepted", "value": True}
    on_episode = {"episode_id": "ep", "metric_name": "accepted", "value": True}
    for body in (on_answer, on_episode):
        assert _as(guarded, "user-b").http.post("/v1/feedback", json=body).status_code == 404
        response = _as(guarded, "user-a").http.post("/v1/feedback", json=body)
        assert response.status_code == 200
        path = f"/v1/feedback/{response.json()['feedback_id']}"
        assert _as(guarded, "user-b").http.delete(path).status_code == 404
        assert _as(guarded, "user-a").http.delete(path).status_code == 200


def test_shares_run_out_and_say_when_to_come_back(guarded: Running) -> None:
    server = _as(guarded, "slow")
    first = server.chat()
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert server.chat().status_code == 200
    refused = server.chat()
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert _as(guarded, "root").chat().status_code == 200
    server = _as(guarded, "frugal")
    assert server.chat().status_code == 200  # 19 tokens: overdrawn
    assert server.chat().status_code == 429


def test_a_bucket_refills_steadily() -> None:
    now = 0.0
    bucket = Bucket(60, clock=lambda: now)
    bucket.take(90)
    assert bucket.wait_s() == pytest.approx(31)
    now = 31.0
    assert bucket.wait_s() == 0
    now = 1000.0
    assert bucket.level == 60


def test_keys_open_the_door_to_the_network() -> None:
    key = Key(name="k", sha256="0" * 64, scopes=frozenset())
    require_safe("0.0.0.0", [key])
    with pytest.raises(SettingsError):
        require_safe("0.0.0.0", [])


def test_a_new_key_is_printed_with_the_settings_that_admit_it() -> None:
    new = keys.make("ide", created_by="t", tenant="t", requests_per_minute=30)
    (table,) = tomllib.loads(keys.as_settings(new.key))["server"]["keys"]
    settings = KeySettings.model_validate({**table, "scopes": tuple(table["scopes"])})
    assert settings.requests_per_minute == 30
    assert settings.tokens_per_minute is None
    known = Keys([Key(**{**settings.model_dump(), "scopes": frozenset(settings.scopes)})])
    headers = httpx.Headers({"authorization": f"Bearer {new.secret}"})
    assert known.identify(headers).tenant == "t"  # type: ignore[arg-type]


def test_keys_of_the_record_come_and_go_while_the_server_runs(
    engine: FakeEngine, pool: SharedPool, tmp_path: Path
) -> None:
    with serving(engine, tmp_path, checker=pool) as server:
        assert _as(server, None).chat().status_code == 200  # loopback, and no key yet
        new = keys.make("ide", created_by="test")
        server.store.add_key(new.key)
        server.until(lambda: server.chat().status_code == 401)
        assert _as(server, new.secret).chat().status_code == 200
        assert server.http.get("/v1/adapters").status_code == 403
        own = keys.own(server.settings.data_dir)
        assert _as(server, own).chat().status_code == 200  # the improver goes on asking
        _as(server, new.secret)
        server.store.revoke_key("ide")
        server.until(lambda: server.chat().status_code == 401)
        assert _as(server, None).chat().status_code == 401  # the last key gone opens nothing


def test_a_key_that_was_ever_made_is_asked_for_after_a_restart(
    engine: FakeEngine, pool: SharedPool, tmp_path: Path
) -> None:
    store = Store.open(record_url(tmp_path))
    store.add_key(keys.make("ide", created_by="test").key)
    store.revoke_key("ide")
    store.close()
    with serving(engine, tmp_path, checker=pool) as server:
        assert server.chat().status_code == 401


def test_keys_of_the_record_open_the_door_to_the_network(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, server=ServerSettings(host="0.0.0.0"))
    with pytest.raises(SettingsError, match="keys create"):
        create_app(settings)
    store = Store.open(settings.store_url)
    store.add_key(keys.make("ide", created_by="test").key)
    create_app(settings)
    store.revoke_key("ide")
    store.close()
    with pytest.raises(SettingsError, match="keys create"):
        create_app(settings)
    unreachable = StoreSettings(url=f"postgresql://nobody@/none?host={tmp_path}")
    with pytest.raises(SettingsError, match="cannot be asked"):
        create_app(settings.model_copy(update={"store": unreachable}))


def test_who_stays_keeps_what_is_left_of_their_shares() -> None:
    slow, other = (
        Key(name=name, sha256=keys.digest(name), scopes=frozenset(), requests_per_minute=2)
        for name in ("slow", "other")
    )
    known = Keys([slow])
    headers = httpx.Headers({"x-api-key": "slow"})
    holder = known.identify(headers)  # type: ignore[arg-type]
    holder.admit()
    known.record([other], ever=True)
    known.configure([slow, other])
    assert known.identify(headers) is holder  # type: ignore[arg-type]
    known.configure([])
    with pytest.raises(Unauthorized):
        known.identify(headers)  # type: ignore[arg-type]


def test_the_own_key_is_made_once_and_read_by_its_account_only(tmp_path: Path) -> None:
    first = keys.own(tmp_path / "new")
    assert keys.own(tmp_path / "new") == first
    (file,) = (tmp_path / "new").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    (tmp_path / "taken").write_text("")
    with pytest.raises(SettingsError, match="own key"):
        keys.own(tmp_path / "taken")
