"""initial.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "adapters",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("directory", sa.Text(), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("base_sha256", sa.Text(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("cycle_id", sa.Text(), nullable=True),
        sa.Column("recipe", sa.Text(), nullable=False),
        sa.Column("lineage", json, nullable=False),
        sa.PrimaryKeyConstraint("version"),
        sa.UniqueConstraint("sha256"),
    )
    op.create_index("ix_adapters_cycle_id", "adapters", ["cycle_id"], unique=False)

    op.create_table(
        "aliases",
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("alias"),
    )
    op.create_table(
        "cycles",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("recipe", sa.Text(), nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("settings", json, nullable=False),
        sa.Column("directory", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("report", json, nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("adapter_version", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_cycles_created_at", "cycles", ["created_at"], unique=False)
    op.create_index("ix_cycles_state", "cycles", ["state"], unique=False)

    op.create_table(
        "heartbeats",
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("state", json, nullable=False),
        sa.PrimaryKeyConstraint("process"),
    )
    op.create_table(
        "interactions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("adapter_name", sa.Text(), nullable=False),
        sa.Column("adapter_version", sa.Integer(), nullable=False),
        sa.Column("adapter_sha256", sa.Text(), nullable=False),
        sa.Column("messages", json, nullable=False),
        sa.Column("params", json, nullable=False),
        sa.Column("choices", json, nullable=False),
        sa.Column("usage", json, nullable=False),
        sa.Column("spec", json, nullable=True),
        sa.Column("verified", sa.Boolean(), nullable=True),
        sa.Column("episode_id", sa.Text(), nullable=True),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=True),
        sa.Column("metadata", json, nullable=False),
        sa.Column("duration_s", sa.Float(), nullable=False),
        sa.Column("engine_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "ix_interactions_adapter_version", "interactions", ["adapter_version"], unique=False
    )
    op.create_index("ix_interactions_created_at", "interactions", ["created_at"], unique=False)
    op.create_index("ix_interactions_episode_id", "interactions", ["episode_id"], unique=False)
    op.create_index("ix_interactions_tenant", "interactions", ["tenant"], unique=False)
    op.create_index("ix_interactions_user", "interactions", ["user"], unique=False)
    op.create_index("ix_interactions_verified", "interactions", ["verified"], unique=False)

    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "swap_receipts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("from_version", sa.Integer(), nullable=False),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("phases_s", json, nullable=False),
        sa.Column("probe", json, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_swap_receipts_version", "swap_receipts", ["version"], unique=False)

    op.create_table(
        "attempts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("interaction_id", sa.Text(), nullable=False),
        sa.Column("attempt_index", sa.Integer(), nullable=False),
        sa.Column("choice_index", sa.Integer(), nullable=True),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("program", sa.Text(), nullable=True),
        sa.Column("program_sha256", sa.Text(), nullable=True),
        sa.Column("mean_logprob", sa.Float(), nullable=True),
        sa.Column("repair_round", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["interaction_id"], ["interactions.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_attempts_interaction_id", "attempts", ["interaction_id"], unique=False)

    op.create_table(
        "cycle_events",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("cycle_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", json, nullable=False),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_cycle_events_cycle_id", "cycle_events", ["cycle_id"], unique=False)

    op.create_table(
        "dataset_rows",
        sa.Column("cycle_id", sa.Text(), nullable=False),
        sa.Column("row_id", sa.Text(), nullable=False),
        sa.Column("recipe", sa.Text(), nullable=False),
        sa.Column("kept", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("interaction_ids", json, nullable=False),
        sa.Column("feedback_ids", json, nullable=False),
        sa.Column("prompt_sha256", sa.Text(), nullable=False),
        sa.Column("program_sha256", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("cycle_id", "row_id"),
    )
    op.create_table(
        "feedback",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("interaction_id", sa.Text(), nullable=True),
        sa.Column("episode_id", sa.Text(), nullable=True),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("value", json, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("choice_index", sa.Integer(), nullable=False),
        sa.Column("identifier", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=True),
        sa.Column("tags", json, nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["interaction_id"], ["interactions.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint(
            "target", "metric", "identifier", "choice_index", name="uq_feedback_target"
        ),
    )
    op.create_index("ix_feedback_created_at", "feedback", ["created_at"], unique=False)
    op.create_index("ix_feedback_episode_id", "feedback", ["episode_id"], unique=False)
    op.create_index("ix_feedback_interaction_id", "feedback", ["interaction_id"], unique=False)
    op.create_index("ix_feedback_metric", "feedback", ["metric"], unique=False)
    op.create_index("ix_feedback_user", "feedback", ["user"], unique=False)

    op.create_table(
        "transitions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("from_state", sa.Text(), nullable=True),
        sa.Column("to_state", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("evidence", json, nullable=False),
        sa.ForeignKeyConstraint(
            ["version"],
            ["adapters.version"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_transitions_version", "transitions", ["version"], unique=False)

    op.create_table(
        "dataset_sources",
        sa.Column("cycle_id", sa.Text(), nullable=False),
        sa.Column("row_id", sa.Text(), nullable=False),
        sa.Column("interaction_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cycle_id", "row_id"],
            ["dataset_rows.cycle_id", "dataset_rows.row_id"],
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("cycle_id", "row_id", "interaction_id"),
    )
    op.create_index(
        "ix_dataset_sources_interaction_id", "dataset_sources", ["interaction_id"], unique=False
    )

    op.create_table(
        "executions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("interaction_id", sa.Text(), nullable=True),
        sa.Column("attempt_id", sa.Text(), nullable=True),
        sa.Column("program_sha256", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("verified", sa.Boolean(), nullable=False),
        sa.Column("passed", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("examples", json, nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("duration_s", sa.Float(), nullable=False),
        sa.Column("error_type", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("stdout", sa.Text(), nullable=False),
        sa.Column("stderr", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempts.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["interaction_id"], ["interactions.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_executions_attempt_id", "executions", ["attempt_id"], unique=False)
    op.create_index("ix_executions_created_at", "executions", ["created_at"], unique=False)
    op.create_index("ix_executions_interaction_id", "executions", ["interaction_id"], unique=False)


def downgrade() -> None:

    op.drop_table("executions")

    op.drop_table("dataset_sources")

    op.drop_table("transitions")

    op.drop_table("feedback")
    op.drop_table("dataset_rows")

    op.drop_table("cycle_events")

    op.drop_table("attempts")

    op.drop_table("swap_receipts")
    op.drop_table("leases")

    op.drop_table("interactions")
    op.drop_table("heartbeats")

    op.drop_table("cycles")
    op.drop_table("aliases")

    op.drop_table("adapters")
