"""Executions that belong to no interaction have an owner.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("executions", sa.Column("tenant", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("executions", "tenant")
