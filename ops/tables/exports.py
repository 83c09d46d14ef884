"""The record as rows that leave it and come back: one moment of it, and what others hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ops.records import Attempt, Cycle, CycleState, Erasure, Execution, Feedback, Interaction
from ops.tables.base import Database, insert_into, parts, translated
from ops.tables.datasets import insert_sources
from ops.tables.schema import (
    TABLE_OF,
    attempts,
    cycles,
    dataset_rows,
    erasures,
    executions,
    feedback,
    interactions,
)

R = TypeVar("R")
ENDED = (CycleState.SUCCEEDED, CycleState.SKIPPED, CycleState.FAILED, CycleState.CANCELLED)
"""Cycles that nobody works on."""


class Snapshot:
    """The record at one moment. Rows are read in pages, so that memory stays flat."""

    PAGE = 100

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rows(
        self, record: type[R], *, tenant: str | None = None, since: datetime | None = None
    ) -> Iterator[R]:
        """Yield all records of a kind, oldest first.

        Args:
            record: Interaction, Attempt, Execution, Feedback, Cycle (those that have ended),
                CycleEvent, DatasetRow or Erasure.
            tenant: only what belongs to its interactions, and erasures that reached it; no cycles,
                which are everybody's.
            since: only interactions from then on with what belongs to them, and cycles.
        """
        query = _exported(record, tenant, since)
        if query is None:
            return
        names = [field.name for field in fields(record)]  # type: ignore[arg-type]
        options = {"stream_results": True, "yield_per": self.PAGE}
        with translated():
            found = self._connection.execute(query, execution_options=options)
            for row in found.mappings():
                yield record(**{name: row[name] for name in names})


class Exports(Database):
    """Rows of every kind, out and in."""

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Yield the record as it is at this moment, to be read at leisure while others write."""
        with translated(), self._engine.connect() as connection:
            if not self._sqlite:  # SQLite's transactions are snapshots
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield Snapshot(connection)

    def take_in(self, rows: Sequence[Any]) -> int:
        """Write records of one kind that came from elsewhere; return how many were new.

        What is there already (the same id, or feedback on the same by the same) stays as it is.

        Raises:
            Conflict: a row names another that is not there; nothing was written.
        """
        if not rows:
            return 0
        table = TABLE_OF[type(rows[0])]
        values = [dict(vars(row)) for row in rows]
        for value in values if table is feedback else ():
            value["target"] = value["interaction_id"] or f"episode:{value['episode_id']}"
        with self._write() as connection:
            insert = insert_into(connection, table)
            statement = insert.on_conflict_do_nothing().returning(*table.primary_key)
            new = {tuple(row) for row in connection.execute(statement, values)}
            if table is dataset_rows:
                insert_sources(connection, [r for r in rows if (r.cycle_id, r.row_id) in new])
        return len(new)

    def present(self, record: type, ids: Collection[str]) -> set[str]:
        """Return those of some ids that the record holds."""
        table, found = TABLE_OF[record], set[str]()
        with self._read() as connection:
            for part in parts(ids):
                query = sa.select(table.c.id).where(table.c.id.in_(part))
                found |= set(connection.execute(query).scalars())
        return found

    def episodes_present(self, ids: Collection[str]) -> set[str]:
        """Return those of some episodes that hold interactions."""
        found = set[str]()
        with self._read() as connection:
            for part in parts(ids):
                where = interactions.c.episode_id.in_(part)
                query = sa.select(interactions.c.episode_id).where(where).distinct()
                found |= {str(one) for one in connection.execute(query).scalars()}
        return found


def _exported(record: type, tenant: str | None, since: datetime | None) -> sa.Select[Any] | None:
    """What a snapshot reads of a table; None: nothing."""
    table = TABLE_OF[record]
    wanted: list[sa.ColumnElement[bool]] = []
    if tenant is not None:
        wanted.append(interactions.c.tenant == tenant)
    if since is not None:
        wanted.append(interactions.c.created_at >= since)
    ids = sa.select(interactions.c.id).where(*wanted)
    query = sa.select(table).order_by(*table.primary_key)
    if record is Interaction:
        return query.where(*wanted)
    if record is Attempt:
        return query.where(attempts.c.interaction_id.in_(ids))
    if record is Execution:
        stray: list[sa.ColumnElement[bool]] = [executions.c.interaction_id.is_(None)]
        stray += [] if tenant is None else [executions.c.tenant == tenant]
        stray += [] if since is None else [executions.c.created_at >= since]
        return query.where(sa.or_(executions.c.interaction_id.in_(ids), sa.and_(*stray)))
    if record is Feedback:  # what waits for its interaction (`put_feedback`, ahead) is left out
        episodes = sa.select(interactions.c.episode_id).where(*wanted)
        spoken = feedback.c.interaction_id.in_(ids)
        return query.where(sa.or_(spoken, feedback.c.episode_id.in_(episodes)))
    if record is Erasure:
        return (
            query
            if tenant is None
            else query.where(sa.or_(erasures.c.tenant.is_(None), erasures.c.tenant == tenant))
        )
    if tenant is not None:
        return None
    ended: list[sa.ColumnElement[bool]] = [cycles.c.state.in_([*ENDED])]
    ended += [] if since is None else [cycles.c.created_at >= since]
    if record is Cycle:
        return query.where(*ended)
    return query.where(table.c.cycle_id.in_(sa.select(cycles.c.id).where(*ended)))
