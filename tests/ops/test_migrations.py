"""Every schema that was ever released becomes today's, and what it held is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from ops.records import AdapterState, Execution, Feedback, new_id, now
from ops.store import Store
from ops.tables.schema import metadata
from tests.ops import records

HERE = Path(__file__).parents[2] / "ops" / "migrations"


def config() -> Config:
    found = Config()
    found.set_main_option("script_location", str(HERE))
    return found


SCRIPTS = ScriptDirectory.from_config(config())
REVISIONS = [script.revision for script in SCRIPTS.walk_revisions()][::-1]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'journeyman.db'}"
    else:
        yield request.getfixturevalue("postgres_database")


def move(url: str, revision: str, *, down: bool = False) -> None:
    """Bring a database to a revision."""
    store, found = Store(url), config()
    with store._write() as connection:
        found.attributes["connection"] = connection
        (command.downgrade if down else command.upgrade)(found, revision)
    store.close()


def put(url: str, name: str, values: dict[str, Any]) -> None:
    """Write a row with those of its values that the database has columns for."""
    store = Store(url)
    with store._write() as connection:
        there = {column["name"] for column in sa.inspect(connection).get_columns(name)}
        kept = {key: value for key, value in values.items() if key in there}
        connection.execute(sa.insert(metadata.tables[name]).values(kept))
    store.close()


def test_there_is_one_line_of_revisions() -> None:
    assert SCRIPTS.get_heads() == [REVISIONS[-1]]
    assert [f"{number:04d}" for number in range(1, len(REVISIONS) + 1)] == REVISIONS


@pytest.mark.parametrize("revision", REVISIONS)
def test_what_an_older_version_kept_is_there_after_the_update(url: str, revision: str) -> None:
    asked = records.interaction(user="ann")
    attempt = records.attempt(asked)
    execution: Execution = records.execution(attempt)
    said: Feedback = records.comment(asked)
    cycle = records.cycle()
    adapter = {
        "version": 1, "sha256": "ab", "created_at": now(), "state": AdapterState.BUILT,
        "directory": "/x", "base_model": "b", "base_sha256": "f", "rank": 8,
        "cycle_id": cycle.id, "recipe": "ilf", "lineage": {},
    }  # fmt: skip
    transition = {
        "id": new_id(), "version": 1, "to_state": AdapterState.BUILT, "at": now(),
        "actor": "t", "reason": "r", "evidence": {},
    }  # fmt: skip
    move(url, revision)
    put(url, "interactions", vars(asked))
    put(url, "attempts", vars(attempt))
    put(url, "executions", vars(execution))
    put(url, "feedback", vars(said) | {"target": asked.id})
    put(url, "cycles", vars(cycle))
    put(url, "adapters", adapter)
    put(url, "transitions", transition)

    store = Store.open(url)
    try:
        assert store.interaction(asked.id) == asked
        assert store.attempts(asked.id) == [attempt]
        assert store.executions(asked.id) == [execution]
        assert store.feedback(asked.id) == [said]
        assert store.cycle(cycle.id) == cycle
        assert store.adapter(1).tainted_by is None
        assert [change.to_state for change in store.transitions(1)] == [AdapterState.BUILT]
        with store._read() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": False})
            assert compare_metadata(context, metadata) == []
            kinds = {
                str(column["type"])
                for name in metadata.tables
                for column in sa.inspect(connection).get_columns(name)
            }
            assert "JSON" in kinds
            assert "JSONB" not in kinds  # it would sort the keys
    finally:
        store.close()
    Store.open(url).close()  # opening it again changes nothing


def test_an_update_can_be_taken_back(url: str) -> None:
    Store.open(url).close()
    move(url, "base", down=True)
    store = Store(url)
    with store._read() as connection:
        assert set(sa.inspect(connection).get_table_names()) <= {"alembic_version"}
    store.close()
    Store.open(url).close()
