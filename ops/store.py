"""The record: every request, attempt, execution, feedback, cycle and adapter, in one database.

All SQL of the product is here. SQLite (WAL, `synchronous=FULL`) by default, PostgreSQL by URL; the
same SQLAlchemy Core statements serve both. Methods are synchronous and thread-safe: each call is
one transaction, and when it returns the rows are durable. Batching and threads are the caller's
(`server.recording`); which adapter transitions are allowed is `ops.registry`'s.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from ops.errors import Conflict, NotFound, StoreError, StoreUnavailable
from ops.records import (
    Adapter,
    AdapterState,
    Alias,
    ApiKey,
    Attempt,
    Cycle,
    CycleEvent,
    CycleState,
    DatasetRow,
    Erasure,
    Execution,
    Feedback,
    FeedbackSource,
    Heartbeat,
    Interaction,
    LiveAnswer,
    LiveOpinion,
    Metric,
    Source,
    SwapReceipt,
    Tainted,
    Transition,
    now,
)

R = TypeVar("R")
LAST_STAGE = "release"
"""The stage of a running cycle that is not interrupted: its adapter is on the way into service."""
SEARCHED = 20_000
"""Interactions in which a text is looked for: no index helps, and a page must not read them all."""


ENDED = (CycleState.SUCCEEDED, CycleState.SKIPPED, CycleState.FAILED, CycleState.CANCELLED)
"""Cycles that nobody works on."""


class UtcTime(sa.types.TypeDecorator[datetime]):
    """Aware datetimes in, aware UTC datetimes out, also where the database forgets the zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Refuse naive times; store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise StoreError("a time without a zone cannot be stored")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Return UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class EnumText(sa.types.TypeDecorator[StrEnum]):
    """A StrEnum kept as its text, so that a new member needs no migration."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, enum: type[StrEnum]) -> None:
        super().__init__()
        self.enum = enum

    def process_bind_param(self, value: StrEnum | str | None, dialect: sa.Dialect) -> str | None:
        """Store the member's text."""
        return None if value is None else str(self.enum(value))

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> StrEnum | None:
        """Return the member."""
        try:
            return None if value is None else self.enum(value)
        except ValueError as error:
            raise StoreError(
                f"the record holds the {self.enum.__name__} {value!r}, which this version of "
                "Journeyman does not know: a newer one has written it"
            ) from error


# On PostgreSQL too JSON and not JSONB, which sorts the keys: their order may be part of a program's
# input (the columns of a table, say) and of what the model reads of a specification.
_json = sa.JSON(none_as_null=True)
metadata = sa.MetaData()


def _id(name: str = "id") -> sa.Column[str]:
    return sa.Column(name, sa.Text, primary_key=True)


def _ref(name: str, target: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(
        name,
        sa.Text,
        sa.ForeignKey(target, ondelete="CASCADE"),
        nullable=nullable,
        index=True,
    )


interactions = sa.Table(
    "interactions",
    metadata,
    _id(),
    sa.Column("created_at", UtcTime, nullable=False, index=True),
    sa.Column("source", EnumText(Source), nullable=False),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("base_model", sa.Text, nullable=False),
    sa.Column("adapter_name", sa.Text, nullable=False),
    sa.Column("adapter_version", sa.Integer, nullable=False, index=True),
    sa.Column("adapter_sha256", sa.Text, nullable=False),
    sa.Column("messages", _json, nullable=False),
    sa.Column("params", _json, nullable=False),
    sa.Column("choices", _json, nullable=False),
    sa.Column("usage", _json, nullable=False),
    sa.Column("spec", _json),
    sa.Column("verified", sa.Boolean, index=True),
    sa.Column("episode_id", sa.Text, index=True),
    sa.Column("tenant", sa.Text, nullable=False, index=True),
    sa.Column("user", sa.Text, index=True),
    sa.Column("metadata", _json, nullable=False),
    sa.Column("duration_s", sa.Float, nullable=False),
    sa.Column("engine_s", sa.Float, nullable=False),
)
attempts = sa.Table(
    "attempts",
    metadata,
    _id(),
    _ref("interaction_id", "interactions.id"),
    sa.Column("attempt_index", sa.Integer, nullable=False),
    sa.Column("choice_index", sa.Integer),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("program", sa.Text),
    sa.Column("program_sha256", sa.Text),
    sa.Column("mean_logprob", sa.Float),
    sa.Column("repair_round", sa.Integer, nullable=False),
)
executions = sa.Table(
    "executions",
    metadata,
    _id(),
    sa.Column("created_at", UtcTime, nullable=False, index=True),
    sa.Column("source", EnumText(Source), nullable=False),
    _ref("interaction_id", "interactions.id", nullable=True),
    _ref("attempt_id", "attempts.id", nullable=True),
    sa.Column("program_sha256", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("verified", sa.Boolean, nullable=False),
    sa.Column("passed", sa.Integer, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("examples", _json, nullable=False),
    sa.Column("tier", sa.Text, nullable=False),
    sa.Column("duration_s", sa.Float, nullable=False),
    sa.Column("error_type", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("stdout", sa.Text, nullable=False),
    sa.Column("stderr", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text),
)
feedback = sa.Table(
    "feedback",
    metadata,
    _id(),
    sa.Column("created_at", UtcTime, nullable=False, index=True),
    sa.Column("updated_at", UtcTime, nullable=False),
    _ref("interaction_id", "interactions.id", nullable=True),
    sa.Column("episode_id", sa.Text, index=True),
    sa.Column("metric", sa.Text, nullable=False, index=True),
    sa.Column("value", _json, nullable=False),
    sa.Column("source", EnumText(FeedbackSource), nullable=False),
    sa.Column("choice_index", sa.Integer, nullable=False),
    sa.Column("identifier", sa.Text, nullable=False),
    sa.Column("user", sa.Text, index=True),
    sa.Column("tags", _json, nullable=False),
    # Interaction or episode, never both: one text to be unique on (NULLs never collide).
    sa.Column("target", sa.Text, nullable=False),
    sa.UniqueConstraint(
        "target", "metric", "identifier", "choice_index", name="uq_feedback_target"
    ),
)
cycles = sa.Table(
    "cycles",
    metadata,
    _id(),
    sa.Column("created_at", UtcTime, nullable=False, index=True),
    sa.Column("recipe", sa.Text, nullable=False),
    sa.Column("trigger", sa.Text, nullable=False),
    sa.Column("state", EnumText(CycleState), nullable=False, index=True),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("settings", _json, nullable=False),
    sa.Column("directory", sa.Text, nullable=False),
    sa.Column("started_at", UtcTime),
    sa.Column("finished_at", UtcTime),
    sa.Column("report", _json, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("adapter_version", sa.Integer),
)
cycle_events = sa.Table(
    "cycle_events",
    metadata,
    _id(),
    _ref("cycle_id", "cycles.id"),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", _json, nullable=False),
)
dataset_rows = sa.Table(
    "dataset_rows",
    metadata,
    sa.Column(
        "cycle_id", sa.Text, sa.ForeignKey("cycles.id", ondelete="CASCADE"), primary_key=True
    ),
    _id("row_id"),
    sa.Column("recipe", sa.Text, nullable=False),
    sa.Column("kept", sa.Boolean, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("interaction_ids", _json, nullable=False),
    sa.Column("feedback_ids", _json, nullable=False),
    sa.Column("prompt_sha256", sa.Text, nullable=False),
    sa.Column("program_sha256", sa.Text, nullable=False),
)
dataset_sources = sa.Table(
    "dataset_sources",
    metadata,
    sa.Column("cycle_id", sa.Text, primary_key=True),
    sa.Column("row_id", sa.Text, primary_key=True),
    sa.Column("interaction_id", sa.Text, primary_key=True, index=True),
    sa.ForeignKeyConstraint(
        ["cycle_id", "row_id"],
        ["dataset_rows.cycle_id", "dataset_rows.row_id"],
        ondelete="CASCADE",
    ),
)
adapters = sa.Table(
    "adapters",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("sha256", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("state", EnumText(AdapterState), nullable=False),
    sa.Column("directory", sa.Text, nullable=False),
    sa.Column("base_model", sa.Text, nullable=False),
    sa.Column("base_sha256", sa.Text, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("cycle_id", sa.Text, index=True),
    sa.Column("recipe", sa.Text, nullable=False),
    sa.Column("lineage", _json, nullable=False),
    sa.Column("tainted_by", sa.Text),
)
transitions = sa.Table(
    "transitions",
    metadata,
    _id(),
    sa.Column("version", sa.Integer, sa.ForeignKey("adapters.version"), nullable=False, index=True),
    sa.Column("from_state", EnumText(AdapterState)),
    sa.Column("to_state", EnumText(AdapterState), nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("evidence", _json, nullable=False),
)
aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("alias", EnumText(Alias), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("moved_at", UtcTime, nullable=False),
)
swap_receipts = sa.Table(
    "swap_receipts",
    metadata,
    _id(),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("server", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False, index=True),
    sa.Column("from_version", sa.Integer, nullable=False),
    sa.Column("accepted", sa.Boolean, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("phases_s", _json, nullable=False),
    sa.Column("probe", _json, nullable=False),
)
erasures = sa.Table(
    "erasures",
    metadata,
    _id(),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("finished_at", UtcTime),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text),
    sa.Column("subject_sha256", sa.Text, nullable=False),
    sa.Column("policy", EnumText(Tainted), nullable=False),
    sa.Column("counts", _json, nullable=False),
    sa.Column("adapters", _json, nullable=False),
    sa.Column("traces", _json, nullable=False),
)
api_keys = sa.Table(
    "api_keys",
    metadata,
    _id(),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False, index=True),
    sa.Column("sha256", sa.Text, nullable=False, unique=True),
    sa.Column("scopes", _json, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("requests_per_minute", sa.Integer),
    sa.Column("tokens_per_minute", sa.Integer),
    sa.Column("executions_per_minute", sa.Integer),
    sa.Column("revoked_at", UtcTime),
)
leases = sa.Table(
    "leases",
    metadata,
    _id("name"),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("expires_at", UtcTime, nullable=False),
)
heartbeats = sa.Table(
    "heartbeats",
    metadata,
    _id("process"),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("state", _json, nullable=False),
)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """An interaction with all that belongs to it; written whole or not at all."""

    interaction: Interaction
    attempts: Sequence[Attempt] = ()
    executions: Sequence[Execution] = ()
    feedback: Sequence[Feedback] = ()
    """What was said of it before it came here, for interactions that are imported."""


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What was served in one stretch of time. `judged`: had a specification that said something."""

    start: datetime
    requests: int
    judged: int
    verified: int


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
        with _translated():
            found = self._connection.execute(query, execution_options=options)
            for row in found.mappings():
                yield record(**{name: row[name] for name in names})


class Store:
    """An open database. Thread-safe; make one per process and close it."""

    _tables: ClassVar[Mapping[type, sa.Table]] = {
        Interaction: interactions,
        Attempt: attempts,
        Execution: executions,
        Feedback: feedback,
        Cycle: cycles,
        CycleEvent: cycle_events,
        DatasetRow: dataset_rows,
        Adapter: adapters,
        Transition: transitions,
        SwapReceipt: swap_receipts,
        Erasure: erasures,
        ApiKey: api_keys,
        Heartbeat: heartbeats,
    }

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = _make_engine(url)
        self._sqlite = self._engine.dialect.name == "sqlite"

    @classmethod
    def open(cls, url: str) -> Store:
        """Open the database at `url`, creating it or migrating it to this version's schema.

        Raises:
            StoreUnavailable: the database cannot be reached, or its disk is full or read-only.
            StoreError: its schema comes from a newer version of Journeyman.
        """
        store = cls(url)
        try:
            store._migrate()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @property
    def kind(self) -> str:
        """The database it is in: `sqlite` or `postgresql`."""
        return str(self._engine.dialect.name)

    def back_up(self, target: Path) -> None:
        """Copy an SQLite database as it is at this moment, while others write, and check the copy.

        Raises:
            StoreError: this is not SQLite, or the copy is not sound.
            StoreUnavailable: it cannot be read, or the copy not be written.
        """
        if not self._sqlite:
            raise StoreError("only SQLite is copied like this; PostgreSQL has pg_dump")
        raw = self._engine.raw_connection()
        try:
            with closing(sqlite3.connect(target)) as copy:
                # In one step: in several, every write of another process would begin it anew.
                raw.driver_connection.backup(copy)  # type: ignore[union-attr]
                (said,) = copy.execute("PRAGMA integrity_check").fetchone()
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the database was not copied: {error}") from error
        finally:
            raw.close()
        if said != "ok":
            raise StoreError(f"the copy of the database is not sound: {said}")

    def has_schema(self) -> bool:
        """Whether tables of ours are there; nothing is made."""
        with self._read() as connection:
            return sa.inspect(connection).has_table("alembic_version")

    def copy_from(self, other: Store) -> None:
        """Take over every row of another database, into this empty one, in one transaction.

        Raises:
            Conflict: this one is not empty; nothing was written.
        """
        of_processes = {leases, heartbeats}
        with other._read() as source, self._write() as target:
            for table in metadata.sorted_tables:
                if table in of_processes:
                    continue
                options = {"stream_results": True, "yield_per": Snapshot.PAGE}
                found = source.execute(sa.select(table), execution_options=options).mappings()
                for part in found.partitions():
                    target.execute(sa.insert(table), [dict(row) for row in part])

    def clear(self) -> None:
        """Drop all tables of ours. The store is of no use until it is opened again."""
        with self._write() as connection:
            metadata.drop_all(connection)
            connection.execute(sa.text("DROP TABLE IF EXISTS alembic_version"))

    def relocate(self, before: Path, after: Path) -> None:
        """Say that the directories of adapters and cycles lie elsewhere now."""
        with self._write() as connection:
            for table, key in ((adapters, adapters.c.version), (cycles, cycles.c.id)):
                for row in connection.execute(sa.select(key.label("key"), table.c.directory)).all():
                    old = Path(row.directory)
                    if old.is_relative_to(before):
                        new = str(after / old.relative_to(before))
                        statement = sa.update(table).where(key == row.key)
                        connection.execute(statement.values(directory=new))

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Yield the record as it is at this moment, to be read at leisure while others write."""
        with _translated(), self._engine.connect() as connection:
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
        table = self._tables[type(rows[0])]
        values = [dict(vars(row)) for row in rows]
        for value in values if table is feedback else ():
            value["target"] = value["interaction_id"] or f"episode:{value['episode_id']}"
        insert = (sqlite if self._sqlite else postgresql).insert(table)
        statement = insert.on_conflict_do_nothing().returning(*table.primary_key)
        with self._write() as connection:
            new = {tuple(row) for row in connection.execute(statement, values)}
            if table is dataset_rows:
                self._insert_sources(connection, [r for r in rows if (r.cycle_id, r.row_id) in new])
        return len(new)

    def present(self, record: type, ids: Collection[str]) -> set[str]:
        """Return those of some ids that the record holds."""
        table, found = self._tables[record], set[str]()
        with self._read() as connection:
            for part in _parts(ids):
                query = sa.select(table.c.id).where(table.c.id.in_(part))
                found |= set(connection.execute(query).scalars())
        return found

    def episodes_present(self, ids: Collection[str]) -> set[str]:
        """Return those of some episodes that hold interactions."""
        found = set[str]()
        with self._read() as connection:
            for part in _parts(ids):
                where = interactions.c.episode_id.in_(part)
                query = sa.select(interactions.c.episode_id).where(where).distinct()
                found |= {str(one) for one in connection.execute(query).scalars()}
        return found

    def users(self) -> list[tuple[str, str]]:
        """Return everybody whose data is there, with the tenant."""
        asked = sa.select(interactions.c.user, interactions.c.tenant).where(
            interactions.c.user.is_not(None)
        )
        said = (
            sa.select(feedback.c.user, interactions.c.tenant)
            .join(interactions, _spoken_of())
            .where(feedback.c.user.is_not(None))
        )
        with self._read() as connection:
            return sorted((row[0], row[1]) for row in connection.execute(sa.union(asked, said)))

    def ping(self) -> None:
        """Raise `StoreUnavailable` unless the database answers and can be written."""
        with self._write() as connection:
            connection.execute(sa.delete(leases).where(leases.c.name == ""))

    # --- interactions -----------------------------------------------------------------------

    def add(self, recordings: Sequence[Recording], *, adopting: Collection[str] = ()) -> None:
        """Write whole recordings in one transaction.

        Args:
            recordings: the rows.
            adopting: ids of those on which feedback was kept before them (`put_feedback`).

        Raises:
            Conflict: an id exists already; nothing of the batch was written.
            StoreUnavailable: nothing was written.
        """
        with self._write() as connection:
            self._insert(connection, [r.interaction for r in recordings])
            self._insert(connection, [a for r in recordings for a in r.attempts])
            self._insert(connection, [e for r in recordings for e in r.executions])
            for row in (f for r in recordings for f in r.feedback):
                self._put_one_feedback(connection, row)
            if adopting:
                early = sa.and_(
                    feedback.c.target.in_(adopting), feedback.c.interaction_id.is_(None)
                )
                connection.execute(
                    sa.update(feedback).where(early).values(interaction_id=feedback.c.target)
                )

    def interaction(self, interaction_id: str) -> Interaction:
        """Return one interaction.

        Raises:
            NotFound: there is none of that id.
        """
        where = interactions.c.id == interaction_id
        found = self._select(Interaction, sa.select(interactions).where(where))
        if not found:
            raise NotFound(f"no interaction {interaction_id}")
        return found[0]

    def interactions(
        self,
        *,
        limit: int = 100,
        before: str | None = None,
        verified: bool | None = None,
        source: Source | None = None,
        since: datetime | None = None,
        with_feedback: str | None = None,
        adapter_version: int | None = None,
        text: str | None = None,
    ) -> list[Interaction]:
        """Return interactions, newest first; `before` is the last id of the page before.

        `with_feedback` leaves only those that have feedback under this metric, `text` those of the
        `SEARCHED` newest before it that hold it in request or answer, whatever its case.
        """
        query = sa.select(interactions).order_by(interactions.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(interactions.c.id < before)
        if verified is not None:
            query = query.where(interactions.c.verified == verified)
        if source is not None:
            query = query.where(interactions.c.source == source)
        if since is not None:
            query = query.where(interactions.c.created_at >= since)
        if with_feedback is not None:
            query = query.where(interactions.c.id.in_(_judged(with_feedback)))
        if adapter_version is not None:
            query = query.where(interactions.c.adapter_version == adapter_version)
        if text is not None:
            query = query.where(self._holds(text, before))
        return self._select(Interaction, query)

    def _holds(self, text: str, before: str | None) -> sa.ColumnElement[bool]:
        """Whether request or answer holds a text; looked for in the newest ones only."""
        newest = sa.select(interactions.c.id).order_by(interactions.c.id.desc()).limit(SEARCHED)
        if before is not None:
            newest = newest.where(interactions.c.id < before)
        needle = json.dumps(text)[1:-1]  # as the document was written
        columns = (interactions.c.messages, interactions.c.choices)
        found = [sa.cast(one, sa.Text).icontains(needle, autoescape=True) for one in columns]
        return sa.and_(interactions.c.id.in_(newest), sa.or_(*found))

    def activity(self, *, since: datetime, bucket_s: int) -> list[Activity]:
        """Return what was served since a moment, in stretches of `bucket_s`, oldest first.

        Stretches begin at multiples of `bucket_s` since 1970; empty ones are left out.
        """
        start = _bucket(interactions.c.created_at, bucket_s)
        judged = interactions.c.verified.is_not(None)
        query = (
            sa.select(
                start,
                sa.func.count(),
                sa.func.sum(sa.case((judged, 1), else_=0)),
                sa.func.sum(sa.case((interactions.c.verified.is_(True), 1), else_=0)),
            )
            .where(interactions.c.created_at >= since, interactions.c.source == Source.SERVED)
            .group_by(start)
            .order_by(start)
        )
        with self._read() as connection:
            return [
                Activity(
                    start=datetime.fromtimestamp(row[0] * bucket_s, UTC),
                    requests=row[1],
                    judged=row[2],
                    verified=row[3],
                )
                for row in connection.execute(query)
            ]

    def growth(self, *, since: datetime, bucket_s: int) -> dict[str, list[tuple[datetime, int]]]:
        """Return how many interactions and pieces of feedback there were after each stretch."""
        grown: dict[str, list[tuple[datetime, int]]] = {}
        with self._read() as connection:
            for table in (interactions, feedback):
                at = table.c.created_at
                older = sa.select(sa.func.count()).select_from(table).where(at < since)
                total = connection.execute(older).scalar_one()
                start = _bucket(at, bucket_s)
                query = sa.select(start, sa.func.count()).where(at >= since)
                grown[table.name] = points = [(since, total)]
                for row in connection.execute(query.group_by(start).order_by(start)):
                    total += row[1]
                    points.append((datetime.fromtimestamp((row[0] + 1) * bucket_s, UTC), total))
        return grown

    def durations(self, *, since: datetime, limit: int = 2000) -> list[float]:
        """Return how long requests served since a moment took, in seconds, the newest first."""
        query = (
            sa.select(interactions.c.duration_s)
            .where(interactions.c.created_at >= since, interactions.c.source == Source.SERVED)
            .order_by(interactions.c.created_at.desc())
            .limit(limit)
        )
        with self._read() as connection:
            return list(connection.execute(query).scalars())

    def verified_by_version(self, *, since: datetime) -> dict[int, tuple[int, int]]:
        """Return, by adapter version, how many served answers were judged and how many passed."""
        query = (
            sa.select(
                interactions.c.adapter_version,
                sa.func.count(),
                sa.func.sum(sa.case((interactions.c.verified.is_(True), 1), else_=0)),
            )
            .where(
                interactions.c.created_at >= since,
                interactions.c.source == Source.SERVED,
                interactions.c.verified.is_not(None),
            )
            .group_by(interactions.c.adapter_version)
        )
        with self._read() as connection:
            return {row[0]: (row[1], row[2]) for row in connection.execute(query)}

    def live_answers(
        self,
        model: str,
        versions: Collection[int],
        *,
        since: datetime | None = None,
        before: datetime | None = None,
        limit: int = 20_000,
    ) -> list[LiveAnswer]:
        """Return what these adapter versions answered under a model name, newest first.

        Args:
            model: as clients asked for it.
            versions: 0 is the base model.
            since: only requests that came then or later.
            before: only requests that came earlier.
            limit: the most that are returned.
        """
        columns = [interactions.c[field.name] for field in fields(LiveAnswer)]
        query: sa.Select[Any] = sa.select(*columns).where(
            interactions.c.adapter_version.in_(versions),
            interactions.c.model == model,
            interactions.c.source == Source.SERVED,
        )
        query = _asked_within(query, since, before)
        newest = interactions.c.created_at.desc(), interactions.c.id.desc()
        return self._select(LiveAnswer, query.order_by(*newest).limit(limit))

    def live_opinions(
        self,
        model: str,
        versions: Collection[int],
        *,
        since: datetime | None = None,
        before: datetime | None = None,
        limit: int = 20_000,
    ) -> list[LiveOpinion]:
        """Return whether the answers of `live_answers` were accepted, as said first, newest first.

        Only people's word counts, and only on the first choice.
        """
        query: sa.Select[Any] = (
            sa.select(
                feedback.c.created_at.label("at"),
                interactions.c.adapter_version,
                feedback.c.value.label("accepted"),
            )
            .join(interactions, interactions.c.id == feedback.c.interaction_id)
            .where(
                feedback.c.metric == Metric.ACCEPTED,
                feedback.c.choice_index == 0,
                feedback.c.source == FeedbackSource.HUMAN,
                interactions.c.adapter_version.in_(versions),
                interactions.c.model == model,
                interactions.c.source == Source.SERVED,
            )
        )
        query = _asked_within(query, since, before)
        newest = feedback.c.created_at.desc(), feedback.c.id.desc()
        return self._select(LiveOpinion, query.order_by(*newest).limit(limit))

    def oldest(self, limit: int, before: datetime | None = None) -> list[str]:
        """Return the ids of the oldest interactions; only those from before a time, if given."""
        query = sa.select(interactions.c.id).order_by(interactions.c.id).limit(limit)
        if before is not None:
            query = query.where(interactions.c.created_at < before)
            query = query.order_by(None).order_by(interactions.c.created_at)
        with self._read() as connection:
            return list(connection.execute(query).scalars())

    def delete(self, interaction_ids: Sequence[str]) -> int:
        """Delete interactions with their attempts, executions and feedback; return how many.

        Lineage of training rows stays: it names the ids, and holds no text.
        """
        with self._write() as connection:
            where = interactions.c.id.in_(interaction_ids)
            return int(connection.execute(sa.delete(interactions).where(where)).rowcount)

    def delete_strays(self, before: datetime) -> None:
        """Delete old executions and feedback that belong to no interaction."""
        with self._write() as connection:
            for table in (executions, feedback):
                stray = sa.and_(table.c.interaction_id.is_(None), table.c.created_at < before)
                connection.execute(sa.delete(table).where(stray))

    def count_interactions(self) -> int:
        """Return how many interactions there are."""
        with self._read() as connection:
            query = sa.select(sa.func.count()).select_from(interactions)
            return int(connection.execute(query).scalar_one())

    def size_bytes(self) -> int | None:
        """Return how much of the database file is in use; None where that cannot be told.

        PostgreSQL gives space back when it is vacuumed, so its size does not say what is kept.
        """
        if not self._sqlite:
            return None
        with self._read() as connection:
            pages, free, size = (
                int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
                for name in ("page_count", "freelist_count", "page_size")
            )
            return (pages - free) * size

    def set_metadata(self, interaction_id: str, metadata: Mapping[str, str]) -> None:
        """Replace the metadata of an interaction.

        Raises:
            NotFound: there is none of that id.
        """
        with self._write() as connection:
            where = interactions.c.id == interaction_id
            statement = sa.update(interactions).where(where).values(metadata=dict(metadata))
            if connection.execute(statement).rowcount == 0:
                raise NotFound(f"no interaction {interaction_id}")

    def episode_tenants(self, episode_id: str) -> set[str]:
        """Return whose interactions an episode holds; empty when there is no such episode."""
        query = sa.select(interactions.c.tenant).where(interactions.c.episode_id == episode_id)
        with self._read() as connection:
            return set(connection.execute(query.distinct()).scalars())

    def iter_interactions(
        self,
        *,
        with_feedback: str | None = None,
        verified: bool | None = None,
        page: int = 500,
    ) -> Iterator[Interaction]:
        """Yield interactions, oldest first, in pages, so that memory stays flat.

        Args:
            with_feedback: only those that have feedback under this metric.
            verified: only those whose answer was (not) verified.
            page: rows per query.
        """
        last = ""
        while True:
            query = sa.select(interactions).where(interactions.c.id > last)
            if verified is not None:
                query = query.where(interactions.c.verified == verified)
            if with_feedback is not None:
                query = query.where(interactions.c.id.in_(_judged(with_feedback)))
            rows = self._select(Interaction, query.order_by(interactions.c.id).limit(page))
            yield from rows
            if len(rows) < page:
                return
            last = rows[-1].id

    def attempts(self, interaction_id: str) -> list[Attempt]:
        """Return the attempts of an interaction in the order they were judged."""
        query = sa.select(attempts).where(attempts.c.interaction_id == interaction_id)
        return self._select(Attempt, query.order_by(attempts.c.attempt_index))

    def executions(self, interaction_id: str, *, reported: bool = False) -> list[Execution]:
        """Return the executions of an interaction, oldest first.

        What clients report of runs elsewhere is left out unless `reported`: nobody may take it
        for a run of ours.
        """
        query = sa.select(executions).where(executions.c.interaction_id == interaction_id)
        if not reported:
            query = query.where(executions.c.source != Source.CLIENT)
        return self._select(Execution, query.order_by(executions.c.id))

    def recordings(self, of: Sequence[Interaction]) -> list[Recording]:
        """Return interactions with all that belongs to them, in their order: three queries in all.

        What clients report of runs elsewhere is left out, as in `executions`.
        """
        ids = [interaction.id for interaction in of]
        wrote = self._of(Attempt, attempts, ids, attempts.c.attempt_index)
        ours = executions.c.source != Source.CLIENT
        ran = self._of(Execution, executions, ids, executions.c.id, ours)
        said = self._of(Feedback, feedback, ids, feedback.c.id)
        return [
            Recording(
                interaction=one,
                attempts=wrote.get(one.id, ()),
                executions=ran.get(one.id, ()),
                feedback=said.get(one.id, ()),
            )
            for one in of
        ]

    def _of(
        self,
        record: type[R],
        table: sa.Table,
        ids: Sequence[str],
        order: sa.ColumnElement[Any],
        *where: sa.ColumnElement[bool],
    ) -> dict[str, list[R]]:
        """The rows that belong to some interactions, by the interaction's id."""
        found: dict[str, list[R]] = {}
        for part in _parts(ids):
            query = sa.select(table).where(table.c.interaction_id.in_(part), *where)
            for row in self._select(record, query.order_by(order)):
                found.setdefault(row.interaction_id, []).append(row)  # type: ignore[attr-defined]
        return found

    def add_execution(self, execution: Execution) -> None:
        """Write an execution that belongs to no attempt.

        Raises:
            Conflict: the interaction it names is gone.
        """
        with self._write() as connection:
            self._insert(connection, [execution])

    def execution(self, execution_id: str) -> Execution:
        """Return one execution.

        Raises:
            NotFound: there is none of that id.
        """
        found = self._select(
            Execution, sa.select(executions).where(executions.c.id == execution_id)
        )
        if not found:
            raise NotFound(f"no execution {execution_id}")
        return found[0]

    def count(self) -> dict[str, int]:
        """Return how many interactions, feedback rows, cycles and adapters there are."""
        with self._read() as connection:
            return {
                table.name: connection.execute(
                    sa.select(sa.func.count()).select_from(table)
                ).scalar_one()
                for table in (interactions, attempts, executions, feedback, cycles, adapters)
            }

    # --- feedback ---------------------------------------------------------------------------

    def put_feedback(self, rows: Sequence[Feedback], *, ahead: Collection[str] = ()) -> list[str]:
        """Write feedback and return the ids it is kept under, in order.

        The same (target, metric, identifier, choice_index) overwrites the value and keeps the
        first row's id and `created_at`.

        Args:
            rows: the feedback.
            ahead: ids of interactions that are still on their way: what is said of them is kept
                without an interaction until `add` is told to adopt it.

        Raises:
            NotFound: an interaction or episode does not exist; nothing was written.
        """
        with self._write() as connection:
            return [
                self._put_one_feedback(connection, row, ahead=row.interaction_id in ahead)
                for row in rows
            ]

    def _put_one_feedback(
        self, connection: Connection, row: Feedback, *, ahead: bool = False
    ) -> str:
        if not ahead:
            self._require_target(connection, row)
        values = asdict(row) | {"target": row.interaction_id or f"episode:{row.episode_id}"}
        if ahead:
            values["interaction_id"] = None
        dialect = sqlite if self._sqlite else postgresql
        insert = dialect.insert(feedback).values(values)
        statement = insert.on_conflict_do_update(
            index_elements=["target", "metric", "identifier", "choice_index"],
            set_={
                name: insert.excluded[name] for name in ("updated_at", "value", "source", "tags")
            },
        ).returning(feedback.c.id)
        return str(connection.execute(statement).scalar_one())

    def _require_target(self, connection: Connection, row: Feedback) -> None:
        if row.interaction_id is not None:
            where = interactions.c.id == row.interaction_id
            what = f"interaction {row.interaction_id}"
        else:
            where = interactions.c.episode_id == row.episode_id
            what = f"episode {row.episode_id}"
        if connection.execute(sa.select(interactions.c.id).where(where).limit(1)).first() is None:
            raise NotFound(f"no {what}")

    def update_feedback(self, row: Feedback) -> None:
        """Write the value, the tags and the time of change of a row that is there.

        Raises:
            NotFound: there is none of that id.
        """
        changes = {"value": row.value, "tags": row.tags, "updated_at": row.updated_at}
        with self._write() as connection:
            where = feedback.c.id == row.id
            if connection.execute(sa.update(feedback).where(where).values(changes)).rowcount == 0:
                raise NotFound(f"no feedback {row.id}")

    def delete_feedback(self, feedback_id: str) -> None:
        """Delete one feedback row.

        Raises:
            NotFound: there is none of that id.
        """
        with self._write() as connection:
            done = connection.execute(sa.delete(feedback).where(feedback.c.id == feedback_id))
            if done.rowcount == 0:
                raise NotFound(f"no feedback {feedback_id}")

    def one_feedback(self, feedback_id: str) -> Feedback:
        """Return one feedback row.

        Raises:
            NotFound: there is none of that id.
        """
        found = self._select(Feedback, sa.select(feedback).where(feedback.c.id == feedback_id))
        if not found:
            raise NotFound(f"no feedback {feedback_id}")
        return found[0]

    def feedback(self, interaction_id: str) -> list[Feedback]:
        """Return the feedback on an interaction, oldest first."""
        query = sa.select(feedback).where(feedback.c.interaction_id == interaction_id)
        return self._select(Feedback, query.order_by(feedback.c.id))

    def episode_feedback(self, episode_id: str) -> list[Feedback]:
        """Return what was said of a whole episode, oldest first."""
        query = sa.select(feedback).where(feedback.c.episode_id == episode_id)
        return self._select(Feedback, query.order_by(feedback.c.id))

    # --- cycles -----------------------------------------------------------------------------

    def add_cycle(self, cycle: Cycle) -> None:
        """Write a new cycle."""
        with self._write() as connection:
            self._insert(connection, [cycle])

    def update_cycle(self, cycle_id: str, **changes: Any) -> Cycle:
        """Change columns of a cycle and return it as it is now.

        Raises:
            NotFound: there is none of that id.
        """
        with self._write() as connection:
            connection.execute(sa.update(cycles).where(cycles.c.id == cycle_id).values(**changes))
        return self.cycle(cycle_id)

    def move_cycle(
        self, cycle_id: str, allowed: Collection[CycleState], state: CycleState, **changes: Any
    ) -> Cycle:
        """Change a cycle's state if it is still one of `allowed`, and return the cycle.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is in another state; nothing was changed.
        """
        with self._write() as connection:
            where = sa.and_(cycles.c.id == cycle_id, cycles.c.state.in_(list(allowed)))
            statement = sa.update(cycles).where(where).values(state=state, **changes)
            moved = connection.execute(statement).rowcount == 1
        cycle = self.cycle(cycle_id)
        if not moved:
            raise Conflict(f"cycle {cycle_id} is {cycle.state}")
        return cycle

    def pause_cycle(self, cycle_id: str) -> Cycle:
        """Hold a cycle back: whoever runs it stops within seconds, and it can be resumed.

        Raises:
            NotFound: there is none of that id.
            Conflict: it has ended, is paused already, or is being released.
        """
        return self._halt_cycle(cycle_id, (CycleState.QUEUED,), CycleState.PAUSED)

    def cancel_cycle(self, cycle_id: str, reason: str) -> Cycle:
        """End a cycle for good: whoever runs it stops within seconds.

        Raises:
            NotFound: there is none of that id.
            Conflict: it has ended, or is being released.
        """
        allowed = (CycleState.QUEUED, CycleState.PAUSED)
        return self._halt_cycle(
            cycle_id, allowed, CycleState.CANCELLED, error=reason, finished_at=now()
        )

    def resume_cycle(self, cycle_id: str) -> Cycle:
        """Queue a paused or failed cycle; it goes on where it was.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is neither.
        """
        allowed = (CycleState.PAUSED, CycleState.FAILED)
        return self.move_cycle(cycle_id, allowed, CycleState.QUEUED, error=None, finished_at=None)

    def _halt_cycle(
        self, cycle_id: str, allowed: Collection[CycleState], state: CycleState, **changes: Any
    ) -> Cycle:
        """Move a cycle that waits or runs, but not one that is half way into service."""
        running = sa.and_(cycles.c.state == CycleState.RUNNING, cycles.c.stage != LAST_STAGE)
        where = sa.or_(cycles.c.state.in_(list(allowed)), running)
        with self._write() as connection:
            statement = sa.update(cycles).where(cycles.c.id == cycle_id, where)
            changed = connection.execute(statement.values(state=state, **changes))
            moved = changed.rowcount == 1
        cycle = self.cycle(cycle_id)
        if not moved and cycle.state is CycleState.RUNNING:
            raise Conflict(f"cycle {cycle_id} is being released; `rollback` takes that back")
        if not moved:
            raise Conflict(f"cycle {cycle_id} is {cycle.state}")
        return cycle

    def cycle(self, cycle_id: str) -> Cycle:
        """Return one cycle.

        Raises:
            NotFound: there is none of that id.
        """
        found = self._select(Cycle, sa.select(cycles).where(cycles.c.id == cycle_id))
        if not found:
            raise NotFound(f"no cycle {cycle_id}")
        return found[0]

    def cycles(
        self, *, state: CycleState | None = None, limit: int = 100, before: str | None = None
    ) -> list[Cycle]:
        """Return cycles, newest first; `before` is the last id of the page before."""
        query = sa.select(cycles).order_by(cycles.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(cycles.c.id < before)
        if state is not None:
            query = query.where(cycles.c.state == state)
        return self._select(Cycle, query)

    def count_cycles(self) -> dict[tuple[str, CycleState], int]:
        """Return how many cycles there are of each (recipe, state)."""
        query = sa.select(cycles.c.recipe, cycles.c.state, sa.func.count()).group_by(
            cycles.c.recipe, cycles.c.state
        )
        with self._read() as connection:
            return {(row[0], row[1]): row[2] for row in connection.execute(query)}

    def count_new(self, since: datetime | None) -> dict[str, int]:
        """Return how much there is to learn since a moment: feedback, failures, accepted.

        Counts what came through the API: feedback of people, served requests whose every attempt
        failed, and answers that were accepted. What is imported is for `improve` to ask for.
        """
        after = datetime.fromtimestamp(0, UTC) if since is None else since
        said = (
            sa.select(sa.func.count())
            .select_from(feedback.outerjoin(interactions))
            .where(
                feedback.c.created_at > after,
                feedback.c.source == FeedbackSource.HUMAN,
                # Of an episode no single interaction is known.
                sa.or_(interactions.c.id.is_(None), interactions.c.source == Source.SERVED),
            )
        )
        failed = sa.select(sa.func.count()).where(
            interactions.c.created_at > after,
            interactions.c.source == Source.SERVED,
            interactions.c.verified.is_(False),
        )
        accepted = said.where(
            feedback.c.metric == Metric.ACCEPTED, sa.cast(feedback.c.value, sa.Text) == "true"
        )
        queries = {"feedback": said, "failures": failed, "accepted": accepted}
        with self._read() as connection:
            return {name: connection.execute(q).scalar_one() for name, q in queries.items()}

    def add_event(self, event: CycleEvent) -> None:
        """Write a line of a cycle's log."""
        with self._write() as connection:
            self._insert(connection, [event])

    def events(self, cycle_id: str, *, last: int | None = None) -> list[CycleEvent]:
        """Return a cycle's log, oldest first; only its last lines, if a number is given."""
        query = sa.select(cycle_events).where(cycle_events.c.cycle_id == cycle_id)
        newest = self._select(CycleEvent, query.order_by(cycle_events.c.id.desc()).limit(last))
        return newest[::-1]

    def replace_dataset(self, cycle_id: str, rows: Sequence[DatasetRow]) -> None:
        """Make `rows` the lineage of a cycle; repeating it changes nothing."""
        with self._write() as connection:
            connection.execute(
                sa.delete(dataset_sources).where(dataset_sources.c.cycle_id == cycle_id)
            )
            connection.execute(sa.delete(dataset_rows).where(dataset_rows.c.cycle_id == cycle_id))
            self._insert(connection, rows)
            self._insert_sources(connection, rows)

    def _insert_sources(self, connection: Connection, rows: Sequence[DatasetRow]) -> None:
        sources = [
            {"cycle_id": row.cycle_id, "row_id": row.row_id, "interaction_id": source}
            for row in rows
            for source in dict.fromkeys(row.interaction_ids)
        ]
        if sources:
            connection.execute(sa.insert(dataset_sources), sources)

    def dataset(self, cycle_id: str) -> list[DatasetRow]:
        """Return the lineage of a cycle's rows, kept and dropped."""
        query = sa.select(dataset_rows).where(dataset_rows.c.cycle_id == cycle_id)
        return self._select(DatasetRow, query.order_by(dataset_rows.c.row_id))

    def count_dataset(self, cycle_id: str) -> dict[tuple[bool, str], int]:
        """Return how many rows of a cycle were kept and how many dropped, by (kept, reason)."""
        query = (
            sa.select(dataset_rows.c.kept, dataset_rows.c.reason, sa.func.count())
            .where(dataset_rows.c.cycle_id == cycle_id)
            .group_by(dataset_rows.c.kept, dataset_rows.c.reason)
        )
        with self._read() as connection:
            return {(row[0], row[1] or ""): row[2] for row in connection.execute(query)}

    def rows_made_of(self, interaction_id: str, *, limit: int = 100) -> list[DatasetRow]:
        """Return the lineage of rows made of an interaction, kept and dropped, newest first."""
        same = sa.and_(
            dataset_sources.c.cycle_id == dataset_rows.c.cycle_id,
            dataset_sources.c.row_id == dataset_rows.c.row_id,
        )
        query = (
            sa.select(dataset_rows)
            .join(dataset_sources, same)
            .where(dataset_sources.c.interaction_id == interaction_id)
            .order_by(dataset_rows.c.cycle_id.desc(), dataset_rows.c.row_id)
            .limit(limit)
        )
        return self._select(DatasetRow, query)

    def adapters_taught_by(self, interaction_id: str) -> list[Adapter]:
        """Return the adapters that were trained on rows made from an interaction."""
        taught = (
            sa.select(dataset_rows.c.cycle_id)
            .join(
                dataset_sources,
                sa.and_(
                    dataset_sources.c.cycle_id == dataset_rows.c.cycle_id,
                    dataset_sources.c.row_id == dataset_rows.c.row_id,
                ),
            )
            .where(dataset_sources.c.interaction_id == interaction_id, dataset_rows.c.kept)
        )
        query = sa.select(adapters).where(adapters.c.cycle_id.in_(taught))
        return self._select(Adapter, query.order_by(adapters.c.version))

    # --- adapters ---------------------------------------------------------------------------

    def add_adapter(self, adapter: Adapter, transition: Transition) -> Adapter:
        """Write a new adapter under the next free version and return it with that version.

        Raises:
            Conflict: an adapter of the same content exists.
        """
        with self._write() as connection:
            if not self._sqlite:  # BEGIN IMMEDIATE serialises SQLite's writers already
                connection.execute(sa.text("LOCK TABLE adapters IN EXCLUSIVE MODE"))
            last = connection.execute(sa.select(sa.func.max(adapters.c.version))).scalar()
            version = (last or 0) + 1
            values = asdict(adapter) | {"version": version}
            connection.execute(sa.insert(adapters).values(values))
            connection.execute(
                sa.insert(transitions).values(asdict(transition) | {"version": version})
            )
            # Its cycle may have held in memory what was erased while it ran.
            for erasure in self._open_erasures(connection):
                self._erase_rows(connection, erasure)
            row = connection.execute(
                sa.select(adapters.c.tainted_by).where(adapters.c.version == version)
            ).one()
            return Adapter(**values | {"tainted_by": row.tainted_by})

    def adapter(self, version: int) -> Adapter:
        """Return one adapter.

        Raises:
            NotFound: there is none of that version.
        """
        found = self._select(Adapter, sa.select(adapters).where(adapters.c.version == version))
        if not found:
            raise NotFound(f"no adapter version {version}")
        return found[0]

    def adapters(self) -> list[Adapter]:
        """Return all adapters, newest first."""
        return self._select(Adapter, sa.select(adapters).order_by(adapters.c.version.desc()))

    def transition(
        self,
        changes: Sequence[Transition],
        moves: Mapping[Alias, int | None] | None = None,
        *,
        require: Mapping[Alias, int | None] | None = None,
        unpointed: int | None = None,
    ) -> None:
        """Change states and move aliases (None clears) in one transaction.

        Args:
            changes: the states, each with where it must still be.
            moves: the aliases.
            require: where aliases must still point.
            unpointed: a version that no alias may point at.

        Raises:
            Conflict: an adapter is not in its `from_state` any more, or an alias has moved;
                nothing was changed.
        """
        with self._write() as connection:
            self._require_aliases(connection, require or {}, unpointed)
            for change in changes:
                where = sa.and_(
                    adapters.c.version == change.version, adapters.c.state == change.from_state
                )
                update = sa.update(adapters).where(where).values(state=change.to_state)
                if connection.execute(update).rowcount != 1:
                    raise Conflict(f"adapter v{change.version} is not {change.from_state} any more")
            self._insert(connection, [self._in_order(connection, change) for change in changes])
            for alias, version in (moves or {}).items():
                connection.execute(sa.delete(aliases).where(aliases.c.alias == alias))
                if version is not None:
                    row = {"alias": alias, "version": version, "moved_at": now()}
                    connection.execute(sa.insert(aliases).values(row))

    def _in_order(self, connection: Connection, change: Transition) -> Transition:
        """The change, later than every one before it, also after the clock was set back."""
        last = sa.select(sa.func.max(transitions.c.at)).where(
            transitions.c.version == change.version
        )
        before: datetime | None = connection.execute(last).scalar()
        if before is None or change.at > before:
            return change
        return replace(change, at=before + timedelta(microseconds=1))

    def _require_aliases(
        self, connection: Connection, require: Mapping[Alias, int | None], unpointed: int | None
    ) -> None:
        if not require and unpointed is None:
            return
        if not self._sqlite:  # BEGIN IMMEDIATE serialises SQLite's writers already
            connection.execute(sa.text("LOCK TABLE aliases IN EXCLUSIVE MODE"))
        rows = connection.execute(sa.select(aliases.c.alias, aliases.c.version))
        found = {row.alias: row.version for row in rows}
        for alias, version in require.items():
            if found.get(alias) != version:
                raise Conflict(f"the alias {alias} does not point at {version} any more")
        if unpointed is not None and unpointed in found.values():
            raise Conflict(f"an alias points at adapter v{unpointed}")

    def transitions(self, version: int) -> list[Transition]:
        """Return what happened to an adapter, oldest first."""
        query = sa.select(transitions).where(transitions.c.version == version)
        return self._select(Transition, query.order_by(transitions.c.at, transitions.c.id))

    def aliases(self) -> dict[Alias, int]:
        """Return where the aliases point; an alias without a version is left out."""
        with self._read() as connection:
            rows = connection.execute(sa.select(aliases.c.alias, aliases.c.version))
            return {row.alias: row.version for row in rows}

    def add_receipt(self, receipt: SwapReceipt) -> None:
        """Write a swap receipt."""
        with self._write() as connection:
            self._insert(connection, [receipt])

    def receipts(self, *, version: int | None = None, limit: int = 100) -> list[SwapReceipt]:
        """Return swap receipts, newest first."""
        query = sa.select(swap_receipts).order_by(swap_receipts.c.id.desc()).limit(limit)
        if version is not None:
            query = query.where(swap_receipts.c.version == version)
        return self._select(SwapReceipt, query)

    # --- erasures ---------------------------------------------------------------------------

    def tenants_of(self, user: str) -> set[str]:
        """Return the tenants in which a user has asked or said something."""
        asked = sa.select(interactions.c.tenant).where(interactions.c.user == user)
        said = (
            sa.select(interactions.c.tenant)
            .join(feedback, _spoken_of())
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
            else:  # a version that is being registered is seen, or sees this
                connection.execute(sa.text("LOCK TABLE adapters IN EXCLUSIVE MODE"))
            found = self._erase_record(connection, erasure, user)
            rows, tainted = self._erase_rows(connection, found)
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

    def _erase_record(self, connection: Connection, erasure: Erasure, user: str) -> Erasure:
        """Delete interactions and feedback; return the erasure with counts and traces."""
        own = interactions.c.user == user
        if erasure.tenant is not None:
            own = sa.and_(own, interactions.c.tenant == erasure.tenant)
        query = sa.select(interactions.c.id, interactions.c.episode_id).where(own)
        asked = connection.execute(query).all()
        ids = [row.id for row in asked]
        said = self._said_by(connection, user, erasure.tenant)
        counts = {"interactions": len(ids)}
        for table in (attempts, executions):
            counts[table.name] = 0
            for part in _parts(ids):
                number = sa.select(sa.func.count()).where(table.c.interaction_id.in_(part))
                counts[table.name] += int(connection.execute(number).scalar_one())
        for part in _parts(ids):
            hangs = sa.select(feedback.c.id, feedback.c.target).where(feedback.c.target.in_(part))
            said |= {row.id: row.target for row in connection.execute(hangs)}
            connection.execute(sa.delete(interactions).where(interactions.c.id.in_(part)))
        for part in _parts({row.episode_id for row in asked if row.episode_id}):
            left = sa.select(interactions.c.episode_id).where(interactions.c.episode_id.in_(part))
            alone = set(part) - set(connection.execute(left).scalars())
            of_them = sa.select(feedback.c.id, feedback.c.target).where(
                feedback.c.episode_id.in_(alone)
            )
            said |= {row.id: row.target for row in connection.execute(of_them)}
        for part in _parts(said):
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

    def _said_by(self, connection: Connection, user: str, tenant: str | None) -> dict[str, str]:
        """Feedback by a user, with what it is about."""
        query = sa.select(feedback.c.id, feedback.c.target).where(feedback.c.user == user)
        if tenant is not None:
            there = sa.select(interactions.c.id).where(
                _spoken_of(), interactions.c.tenant == tenant
            )
            query = query.where(there.exists())
        return {row.id: row.target for row in connection.execute(query)}

    def _erase_rows(self, connection: Connection, erasure: Erasure) -> tuple[list[str], list[int]]:
        """Delete rows made of what an erasure names, mark adapters; return both."""
        own, said = (set(erasure.traces.get(name, ())) for name in ("interactions", "feedback"))
        gone: dict[tuple[str, str], bool] = {}
        joined = sa.select(
            dataset_rows.c.cycle_id,
            dataset_rows.c.row_id,
            dataset_rows.c.kept,
            dataset_rows.c.feedback_ids,
            dataset_sources.c.interaction_id,
        ).join(
            dataset_sources,
            sa.and_(
                dataset_sources.c.cycle_id == dataset_rows.c.cycle_id,
                dataset_sources.c.row_id == dataset_rows.c.row_id,
            ),
        )
        for part in _parts({*own, *erasure.traces.get("spoken_of", ())}):
            query = joined.where(dataset_sources.c.interaction_id.in_(part))
            for row in connection.execute(query):
                if row.interaction_id in own or not said.isdisjoint(row.feedback_ids):
                    gone[row.cycle_id, row.row_id] = row.kept
        for cycle_id, row_id in gone:
            where = sa.and_(dataset_rows.c.cycle_id == cycle_id, dataset_rows.c.row_id == row_id)
            connection.execute(sa.delete(dataset_rows).where(where))
        learned = {key for key, kept in gone.items() if kept}
        rows = sorted({row_id for _, row_id in learned} | set(erasure.traces.get("rows", ())))
        return rows, self._taint(connection, erasure, learned, set(rows))

    def _taint(
        self,
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
        for part in _parts(found):
            where = sa.and_(adapters.c.version.in_(part), adapters.c.tainted_by.is_(None))
            connection.execute(sa.update(adapters).where(where).values(tainted_by=erasure.id))
        return sorted(found)

    def _open_erasures(self, connection: Connection) -> list[Erasure]:
        query = sa.select(erasures).where(erasures.c.finished_at.is_(None))
        return [Erasure(**row) for row in connection.execute(query).mappings()]

    def erase_late_rows(self, erasure_id: str) -> list[int]:
        """Erase rows that a running cycle wrote after the erasure; return the adapters marked."""
        with self._write() as connection:
            if not self._sqlite:
                connection.execute(sa.text("LOCK TABLE adapters IN EXCLUSIVE MODE"))
            for erasure in self._open_erasures(connection):
                if erasure.id == erasure_id:
                    return self._erase_rows(connection, erasure)[1]
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

    # --- keys -------------------------------------------------------------------------------

    def add_key(self, key: ApiKey) -> None:
        """Write a new key.

        Raises:
            Conflict: a key of that name is good already.
        """
        with self._write() as connection:
            if not self._sqlite:  # BEGIN IMMEDIATE serialises SQLite's writers already
                connection.execute(sa.text("LOCK TABLE api_keys IN EXCLUSIVE MODE"))
            query = sa.select(api_keys.c.id).where(
                api_keys.c.name == key.name, api_keys.c.revoked_at.is_(None)
            )
            if connection.execute(query).first() is not None:
                raise Conflict(f"there is a key named {key.name!r} already; revoke it first")
            self._insert(connection, [key])

    def keys_revoked(self, ids: Collection[str]) -> None:
        """Revoke keys by their ids, where they are there and good."""
        where = sa.and_(api_keys.c.id.in_(list(ids)), api_keys.c.revoked_at.is_(None))
        with self._write() as connection:
            connection.execute(sa.update(api_keys).where(where).values(revoked_at=now()))

    def revoke_key(self, name: str) -> ApiKey:
        """Make a key useless for good, by its name or its id; return it.

        Raises:
            NotFound: no key that is good has that name or id.
        """
        which = sa.or_(api_keys.c.name == name, api_keys.c.id == name)
        where = sa.and_(which, api_keys.c.revoked_at.is_(None))
        with self._write() as connection:
            statement = sa.update(api_keys).where(where).values(revoked_at=now())
            row = connection.execute(statement.returning(api_keys.c.id)).first()
        if row is None:
            raise NotFound(f"no key {name!r} that is good; `journeyman keys list` shows all")
        return self._select(ApiKey, sa.select(api_keys).where(api_keys.c.id == row.id))[0]

    def api_keys(self) -> list[ApiKey]:
        """Return all keys, newest first, those that were revoked too."""
        return self._select(ApiKey, sa.select(api_keys).order_by(api_keys.c.id.desc()))

    # --- processes --------------------------------------------------------------------------

    def take_lease(self, name: str, holder: str, ttl_s: float) -> None:
        """Take or renew a lease.

        Raises:
            Conflict: somebody else holds it and has renewed it within its time to live.
        """
        with self._write() as connection:
            at = now()
            row = {"name": name, "holder": holder, "expires_at": at + timedelta(seconds=ttl_s)}
            insert = (sqlite if self._sqlite else postgresql).insert(leases).values(row)
            free = sa.or_(leases.c.holder == holder, leases.c.expires_at < at)
            statement = insert.on_conflict_do_update(
                index_elements=["name"],
                set_={"holder": holder, "expires_at": row["expires_at"]},
                where=free,
            ).returning(leases.c.holder)
            if connection.execute(statement).first() is None:
                held = connection.execute(
                    sa.select(leases.c.holder).where(leases.c.name == name)
                ).scalar_one()
                raise Conflict(f"{name} is held by {held}")

    def drop_lease(self, name: str, holder: str) -> None:
        """Give a lease back; does nothing when somebody else holds it."""
        with self._write() as connection:
            where = sa.and_(leases.c.name == name, leases.c.holder == holder)
            connection.execute(sa.delete(leases).where(where))

    def beat(self, heartbeat: Heartbeat) -> None:
        """Say that a process lives."""
        with self._write() as connection:
            where = heartbeats.c.process == heartbeat.process
            connection.execute(sa.delete(heartbeats).where(where))
            self._insert(connection, [heartbeat])

    def heartbeats(self) -> list[Heartbeat]:
        """Return the last sign of life of each process."""
        return self._select(Heartbeat, sa.select(heartbeats).order_by(heartbeats.c.process))

    # --- plumbing ---------------------------------------------------------------------------

    def _insert(self, connection: Connection, records: Sequence[Any]) -> None:
        if records:
            table = self._tables[type(records[0])]
            # Not `asdict`: it would copy every message and choice deeply, on the hot path.
            connection.execute(sa.insert(table), [dict(vars(record)) for record in records])

    def _select(self, record: type[R], query: sa.Select[Any]) -> list[R]:
        names = [field.name for field in fields(record)]  # type: ignore[arg-type]
        with self._read() as connection:
            rows = connection.execute(query).mappings().all()
            return [record(**{name: row[name] for name in names}) for row in rows]

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with _translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with _translated(), self._engine.connect() as connection:
            connection.execution_options(immediate=True)
            with connection.begin():
                yield connection

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        try:
            with self._write() as connection:
                if not self._sqlite:
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(7261023)"))
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:
            raise StoreError(
                f"the database at {self._engine.url!r} has a schema that this version of "
                f"Journeyman does not know: {error}"
            ) from error


def _bucket(at: sa.Column[datetime], bucket_s: int) -> sa.ColumnElement[int]:
    """In which stretch since 1970 a time lies."""
    seconds = sa.cast(sa.extract("epoch", at), sa.BigInteger)
    return seconds // sa.literal_column(str(int(bucket_s)))


def _exported(record: type, tenant: str | None, since: datetime | None) -> sa.Select[Any] | None:
    """What a snapshot reads of a table; None: nothing."""
    table = Store._tables[record]
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


def _judged(metric: str) -> sa.Select[tuple[str]]:
    """The ids of the interactions that have feedback under a metric."""
    return sa.select(feedback.c.interaction_id).where(feedback.c.metric == metric)


def _spoken_of() -> sa.ColumnElement[bool]:
    """Joins feedback with the interactions that it is about."""
    return sa.or_(
        interactions.c.id == feedback.c.interaction_id,
        interactions.c.episode_id == feedback.c.episode_id,
    )


def _parts(ids: Collection[str] | Collection[int], size: int = 500) -> Iterator[list[Any]]:
    """Lists that are short enough for one statement."""
    every = list(ids)
    for start in range(0, len(every), size):
        yield every[start : start + size]


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the driver's exceptions into ours."""
    try:
        yield
    except IntegrityError as error:
        raise Conflict(str(error.orig)) from error
    except DBAPIError as error:
        raise StoreUnavailable(str(error.orig)) from error
    except SQLAlchemyError as error:
        raise StoreError(str(error)) from error


def _make_engine(url: str) -> Engine:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed, connect_args={"timeout": 30})
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    return sa.create_engine(parsed, pool_pre_ping=True)


def _configure_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # we emit BEGIN ourselves, see _begin_sqlite
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at once: upgrading a read transaction later can fail with
    # SQLITE_BUSY however long the timeout is.
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _asked_within(
    query: sa.Select[Any], since: datetime | None, before: datetime | None
) -> sa.Select[Any]:
    if since is not None:
        query = query.where(interactions.c.created_at >= since)
    if before is not None:
        query = query.where(interactions.c.created_at < before)
    return query
