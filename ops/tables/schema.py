"""The tables of the record, their columns and indexes.

A change here needs a revision in `ops/migrations/versions`. What the columns mean stands with the
record of the same name in `ops.records`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum

import sqlalchemy as sa

from ops.errors import StoreError
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
    Source,
    SwapReceipt,
    Tainted,
    Transition,
)


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
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("source", EnumText(Source), nullable=False),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("base_model", sa.Text, nullable=False),
    sa.Column("adapter_name", sa.Text, nullable=False),
    sa.Column("adapter_version", sa.Integer, nullable=False),
    sa.Column("adapter_sha256", sa.Text, nullable=False),
    sa.Column("messages", _json, nullable=False),
    sa.Column("params", _json, nullable=False),
    sa.Column("choices", _json, nullable=False),
    sa.Column("usage", _json, nullable=False),
    sa.Column("spec", _json),
    sa.Column("verified", sa.Boolean),
    sa.Column("episode_id", sa.Text, index=True),
    sa.Column("tenant", sa.Text, nullable=False, index=True),
    sa.Column("user", sa.Text, index=True),
    sa.Column("metadata", _json, nullable=False),
    sa.Column("duration_s", sa.Float, nullable=False),
    sa.Column("engine_s", sa.Float, nullable=False),
    # All that is counted over stretches of time, so that counting reads no row.
    sa.Index("ix_interactions_usage", "created_at", "source", "verified", "adapter_version"),
    # With the id, by which pages are cut: a page is read without sorting all that fits.
    sa.Index("ix_interactions_verified", "verified", "id"),
    sa.Index("ix_interactions_adapter_version", "adapter_version", "id"),
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
shares = sa.Table(
    "shares",
    metadata,
    sa.Column("key_sha256", sa.Text, primary_key=True),
    sa.Column("what", sa.Text, primary_key=True),
    sa.Column("level", sa.Float, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
)

TABLE_OF: Mapping[type, sa.Table] = {
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
"""Where each kind of record is kept."""


def spoken_of() -> sa.ColumnElement[bool]:
    """Joins feedback with the interactions that it is about."""
    return sa.or_(
        interactions.c.id == feedback.c.interaction_id,
        interactions.c.episode_id == feedback.c.episode_id,
    )
