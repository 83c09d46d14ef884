"""Erasures: whose data there is, and its deletion with all that was made of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ops.errors import StoreUnavailable
from ops.records import Erasure
from ops.tables.base import Database, lock, parts
from ops.tables.datasets import OF_ROW
from ops.tables.schema import (
    adapters,
    attempts,
    dataset_rows,
    dataset_sources,
    erasures,
    executions,
    feedback,
    interactions,
    spoken_of,
)


class ErasureTable(Database):
    """People's data, and the certificates of what went."""

    def users(self) -> list[tuple[str, str]]:
        """Return everybody whose data is there, with the tenant."""
        asked = sa.select(interactions.c.user, interactions.c.tenant).where(
            interactions.c.user.is_not(None)
        )
        said = (
            sa.select(feedback.c.user, interactions.c.tenant)
            .join(interactions, spoken_of())
            .where(feedback.c.user.is_not(None))
        )
        with self._read() as connection:
            return sorted((row[0], row[1]) for row in connection.execute(sa.union(asked, said)))

    def tenants_of(self, user: str) -> set[str]:
        """Return the tenants in which a user has asked or said something."""
        asked = sa.select(interactions.c.tenant).where(interactions.c.user == user)
        said = (
            sa.select(interactions.c.tenant)
            .join(feedback, spoken_of())
            .where(feedback.c.user == user)
        )
        with self._read() as connection:
            return {row[0] for row in connection.execute(sa.union(asked, said))}

    def erase_user(self, erasure: Erasure, user: str, *, dry_run: bool = False) -> Erasure:
        """Delete what is a user's and write the erasure, in one transaction.

        These go: interactions with all that hangs on them, feedback by the user and on episodes
        that are the user's alone, lineage of rows made of any of it. Adapters trained on such rows
        are marked (`tainted_by`).

        Args:
            erasure: the certificate so far. `traces` may name further interactions and feedback of
                the user's, which the record has forgotten but its lineage has not.
            user: the name under which requests and feedback were sent.
            dry_run: only count.

        Returns:
            The erasure with counts, adapters and traces.
        """
        with self._write() as connection:
            if self._sqlite:
                connection.exec_driver_sql("PRAGMA secure_delete=ON")  # overwrite, do not unlink
            lock(connection, adapters)  # a version that is being registered is seen, or sees this
            found = _erase_record(connection, erasure, user)
            rows, tainted = erase_rows(connection, found)
            traces = found.traces | {"rows": rows}
            done = replace(
                found,
                counts=found.counts | {"training_rows": len(rows)},
                adapters=[{"name": f"code@v{v}", "version": v} for v in tainted],
                traces=traces,
            )
            if dry_run:
                connection.rollback()
            else:
                self._insert(connection, [done])
        return done

    def erase_late_rows(self, erasure_id: str) -> list[int]:
        """Erase rows that a running cycle wrote after the erasure; return the adapters marked."""
        with self._write() as connection:
            lock(connection, adapters)
            for erasure in unfinished(connection):
                if erasure.id == erasure_id:
                    return erase_rows(connection, erasure)[1]
        return []

    def update_erasure(self, erasure_id: str, **changes: Any) -> None:
        """Change columns of an erasure."""
        with self._write() as connection:
            where = erasures.c.id == erasure_id
            connection.execute(sa.update(erasures).where(where).values(**changes))

    def erasures(self, *, limit: int | None = None) -> list[Erasure]:
        """Return erasures, newest first."""
        query = sa.select(erasures).order_by(erasures.c.id.desc()).limit(limit)
        return self._select(Erasure, query)

    def truncate_log(self) -> None:
        """Empty SQLite's write-ahead log, where deleted rows may still be read; else nothing."""
        if not self._sqlite:
            return
        raw = self._engine.raw_connection()
        try:
            raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")  # as far as readers let it
        except Exception as error:
            raise StoreUnavailable(str(error)) from error
        finally:
            raw.close()


def _erase_record(connection: Connection, erasure: Erasure, user: str) -> Erasure:
    """Delete interactions and feedback; return the erasure with counts and traces."""
    own = interactions.c.user == user
    if erasure.tenant is not None:
        own = sa.and_(own, interactions.c.tenant == erasure.tenant)
    query = sa.select(interactions.c.id, interactions.c.episode_id).where(own)
    asked = connection.execute(query).all()
    ids = [row.id for row in asked]
    said = _said_by(connection, user, erasure.tenant)
    counts = {"interactions": len(ids)}
    for table in (attempts, executions):
        counts[table.name] = 0
        for part in parts(ids):
            number = sa.select(sa.func.count()).where(table.c.interaction_id.in_(part))
            counts[table.name] += int(connection.execute(number).scalar_one())
    for part in parts(ids):
        hangs = sa.select(feedback.c.id, feedback.c.target).where(feedback.c.target.in_(part))
        said |= {row.id: row.target for row in connection.execute(hangs)}
        connection.execute(sa.delete(interactions).where(interactions.c.id.in_(part)))
    for part in parts({row.episode_id for row in asked if row.episode_id}):
        left = sa.select(interactions.c.episode_id).where(interactions.c.episode_id.in_(part))
        alone = set(part) - set(connection.execute(left).scalars())
        of_them = sa.select(feedback.c.id, feedback.c.target).where(
            feedback.c.episode_id.in_(alone)
        )
        said |= {row.id: row.target for row in connection.execute(of_them)}
    for part in parts(said):
        connection.execute(sa.delete(feedback).where(feedback.c.id.in_(part)))
    known = erasure.traces
    return replace(
        erasure,
        counts=counts | {"feedback": len(said)},
        traces={
            "interactions": sorted({*ids, *known.get("interactions", ())}),
            "feedback": sorted({*said, *known.get("feedback", ())}),
            "spoken_of": sorted({*said.values(), *known.get("spoken_of", ())}),
        },
    )


def _said_by(connection: Connection, user: str, tenant: str | None) -> dict[str, str]:
    """Feedback by a user, with what it is about."""
    query = sa.select(feedback.c.id, feedback.c.target).where(feedback.c.user == user)
    if tenant is not None:
        there = sa.select(interactions.c.id).where(spoken_of(), interactions.c.tenant == tenant)
        query = query.where(there.exists())
    return {row.id: row.target for row in connection.execute(query)}


def erase_rows(connection: Connection, erasure: Erasure) -> tuple[list[str], list[int]]:
    """Delete rows made of what an erasure names, mark adapters; return both."""
    own, said = (set(erasure.traces.get(name, ())) for name in ("interactions", "feedback"))
    gone: dict[tuple[str, str], bool] = {}
    joined = sa.select(
        dataset_rows.c.cycle_id,
        dataset_rows.c.row_id,
        dataset_rows.c.kept,
        dataset_rows.c.feedback_ids,
        dataset_sources.c.interaction_id,
    ).join(dataset_sources, OF_ROW)
    for part in parts({*own, *erasure.traces.get("spoken_of", ())}):
        query = joined.where(dataset_sources.c.interaction_id.in_(part))
        for row in connection.execute(query):
            if row.interaction_id in own or not said.isdisjoint(row.feedback_ids):
                gone[row.cycle_id, row.row_id] = row.kept
    for cycle_id, row_id in gone:
        where = sa.and_(dataset_rows.c.cycle_id == cycle_id, dataset_rows.c.row_id == row_id)
        connection.execute(sa.delete(dataset_rows).where(where))
    learned = {key for key, kept in gone.items() if kept}
    rows = sorted({row_id for _, row_id in learned} | set(erasure.traces.get("rows", ())))
    return rows, _taint(connection, erasure, learned, set(rows))


def _taint(
    connection: Connection,
    erasure: Erasure,
    learned: Collection[tuple[str, str]],
    rows: set[str],
) -> list[int]:
    """Mark the adapters that were trained on rows; return all that this erasure marked."""
    cycles_of = {cycle_id for cycle_id, _ in learned}
    query = sa.select(adapters.c.version, adapters.c.cycle_id, adapters.c.lineage)
    found = []
    for row in connection.execute(query.where(adapters.c.cycle_id.is_not(None))):
        used = row.lineage.get("rows")
        if not rows.isdisjoint(used) if used is not None else row.cycle_id in cycles_of:
            found.append(row.version)
    for part in parts(found):
        where = sa.and_(adapters.c.version.in_(part), adapters.c.tainted_by.is_(None))
        connection.execute(sa.update(adapters).where(where).values(tainted_by=erasure.id))
    return sorted(found)


def unfinished(connection: Connection) -> list[Erasure]:
    """Return the erasures that go on while cycles still run."""
    query = sa.select(erasures).where(erasures.c.finished_at.is_(None))
    return [Erasure(**row) for row in connection.execute(query).mappings()]
