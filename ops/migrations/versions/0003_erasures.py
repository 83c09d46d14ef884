"""Erasures of a user's data, and the adapters that had learned from it.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "erasures",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=True),
        sa.Column("subject_sha256", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("counts", json, nullable=False),
        sa.Column("adapters", json, nullable=False),
        sa.Column("traces", json, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.add_column("adapters", sa.Column("tainted_by", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("adapters", "tainted_by")
    op.drop_table("erasures")
