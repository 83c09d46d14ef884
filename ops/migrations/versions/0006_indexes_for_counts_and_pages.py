"""Counts over stretches of time and pages by verdict or version come out of an index.

Revision ID: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLE = "interactions"
COUNTED = ["created_at", "source", "verified", "adapter_version"]


def upgrade() -> None:
    op.create_index("ix_interactions_usage", TABLE, COUNTED)
    op.drop_index("ix_interactions_created_at", TABLE)
    for column in ("verified", "adapter_version"):
        op.drop_index(f"ix_interactions_{column}", TABLE)
        op.create_index(f"ix_interactions_{column}", TABLE, [column, "id"])


def downgrade() -> None:
    for column in ("verified", "adapter_version"):
        op.drop_index(f"ix_interactions_{column}", TABLE)
        op.create_index(f"ix_interactions_{column}", TABLE, [column])
    op.create_index("ix_interactions_created_at", TABLE, ["created_at"])
    op.drop_index("ix_interactions_usage", TABLE)
