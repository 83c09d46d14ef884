"""Erasing a person's data through the API."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import sqlalchemy as sa

from ops.records import Alias, DatasetRow
from ops.settings import KeySettings
from ops.tables.schema import adapters
from tests.fake_engine import FakeEngine, add_adapter
from tests.ops import records
from tests.server.conftest import Running, SharedPool, serving


def _ask(server: Running, user: str | None, key: str | None = None) -> str:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"model": "code", "messages": [{"role": "user", "content": "my plans"}], "user": user}
    response = server.http.post("/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 200
    answer_id: str = response.json()["id"]
    return answer_id


def _erase(server: Running, user: str, key: str | None = None, **query: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    path = f"/v1/users/{quote(user, safe='')}/data"
    return server.http.delete(path, params=query, headers=headers)


@pytest.mark.parametrize("user", ["ann", "ann@example.org", "a/b", "Ann Ä?#%2F"])
def test_a_users_data_goes_and_the_certificate_stays(server: Running, user: str) -> None:
    gone, kept = _ask(server, user), _ask(server, "bob")
    body = {"inference_id": gone, "metric_name": "comment", "value": "secret plans"}
    assert server.http.post("/v1/feedback", json=body).status_code == 200
    dry = _erase(server, user, dry_run=True)
    assert dry.json()["counts"]["interactions"] == 1
    assert server.store.count_interactions() == 2
    erased = _erase(server, user)
    assert erased.status_code == 200
    found = erased.json()
    assert (found["counts"]["interactions"], found["counts"]["feedback"]) == (1, 1)
    assert (found["already"], found["actor"]) == (False, "key:local")
    assert found["finished_at"] is not None
    assert server.http.get(f"/v1/chat/completions/{gone}").status_code == 404
    assert server.http.get(f"/v1/chat/completions/{kept}").status_code == 200
    again = _erase(server, user).json()
    assert (again["id"], again["already"]) == (found["id"], True)
    listed = server.http.get("/v1/users/erasures").json()["data"]
    assert [one["id"] for one in listed] == [found["id"]]
    assert user not in json.dumps(listed, ensure_ascii=False)


def test_an_unknown_user_is_a_404(server: Running) -> None:
    _ask(server, None)
    for user in ("ann", "default", "None", "null", "%"):
        response = _erase(server, user)
        assert response.status_code == 404
        assert response.json()["error"]["param"] == "user_id"
    assert server.http.delete("/v1/users//data").status_code == 404
    assert _erase(server, "ann", dry_run="perhaps").status_code == 400
    assert server.http.get("/v1/users/erasures").json()["data"] == []
    assert server.store.count_interactions() == 1


def test_an_adapter_that_learned_from_it_answers_no_more(server: Running) -> None:
    answer = _ask(server, "ann").removeprefix("chatcmpl-")
    adapter = add_adapter(server.registry)
    cycle = records.cycle()
    server.store.add_cycle(cycle)
    server.registry.promote(adapter.version, actor="t", reason="r", force=True)
    server.until(lambda: server.chat().json()["adapter"]["version"] == adapter.version)
    _made_of(server, adapter.version, cycle.id, answer)
    erased = _erase(server, "ann").json()
    assert [a["name"] for a in erased["adapters"]] == [adapter.name]
    server.until(lambda: server.chat().json()["adapter"]["version"] == 0)
    assert Alias.CHAMPION not in server.store.aliases()
    shown = server.http.get(f"/v1/adapters/{adapter.version}").json()
    assert (shown["state"], shown["tainted_by"]) == ("rejected", erased["id"])


def _made_of(server: Running, version: int, cycle_id: str, interaction_id: str) -> None:
    """Say that an adapter was made of an interaction."""
    row = DatasetRow(
        cycle_id=cycle_id,
        row_id="r",
        recipe="ilf",
        kept=True,
        reason=None,
        interaction_ids=[interaction_id],
        feedback_ids=[],
        prompt_sha256="a",
        program_sha256="b",
    )
    server.store.replace_dataset(cycle_id, [row])
    values = {"cycle_id": cycle_id, "lineage": {"rows": ["r"]}}
    engine = sa.create_engine(server.settings.store_url)
    with engine.begin() as connection:
        connection.execute(sa.update(adapters).values(values))
    engine.dispose()


# --- keys ---------------------------------------------------------------------------------------


def _key(name: str, tenant: str, *scopes: str) -> KeySettings:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return KeySettings(name=name, sha256=digest, tenant=tenant, scopes=scopes)


@pytest.fixture
def team(engine: FakeEngine, pool: SharedPool, tmp_path: Path) -> Iterator[Running]:
    keys = (
        _key("root", "default", "inference", "feedback", "admin"),
        _key("red", "red", "inference", "admin"),
        _key("blue", "blue", "inference", "feedback"),
    )
    with serving(engine, tmp_path, checker=pool, keys=keys) as running:
        yield running


def test_a_tenants_key_reaches_its_tenant_only(team: Running) -> None:
    for key in ("red", "blue"):
        _ask(team, "ann", key)
    assert _erase(team, "ann").status_code == 401
    assert _erase(team, "ann", "blue").status_code == 403  # no admin
    assert _erase(team, "ann", "red", tenant="blue").status_code == 403
    unclear = _erase(team, "ann", "root")
    assert unclear.status_code == 400
    assert unclear.json()["error"]["param"] == "tenant"
    erased = _erase(team, "ann", "red").json()
    assert (erased["tenant"], erased["actor"]) == ("red", "key:red")
    assert [row.tenant for row in team.store.interactions()] == ["blue"]
    assert _erase(team, "bob", "red").status_code == 404
    assert _erase(team, "ann", "root", tenant="blue").status_code == 200
    listed = {
        key: len(
            team.http.get("/v1/users/erasures", headers={"Authorization": f"Bearer {key}"}).json()[
                "data"
            ]
        )
        for key in ("root", "red")
    }
    assert listed == {"root": 2, "red": 1}
