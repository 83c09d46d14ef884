"""JSON documents keep the order of their keys on PostgreSQL, as they do on SQLite.

Rows that were written before stay sorted as JSONB had sorted them.

Revision ID: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

COLUMNS = {
    "adapters": ("lineage",),
    "api_keys": ("scopes",),
    "cycles": ("settings", "report"),
    "erasures": ("counts", "adapters", "traces"),
    "heartbeats": ("state",),
    "interactions": ("messages", "params", "choices", "usage", "spec", "metadata"),
    "swap_receipts": ("phases_s", "probe"),
    "cycle_events": ("data",),
    "dataset_rows": ("interaction_ids", "feedback_ids"),
    "feedback": ("value", "tags"),
    "transitions": ("evidence",),
    "executions": ("examples",),
}


def upgrade() -> None:
    _become("json")


def downgrade() -> None:
    _become("jsonb")


def _become(kind: str) -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, columns in COLUMNS.items():
        changes = (f'ALTER COLUMN "{c}" TYPE {kind} USING "{c}"::{kind}' for c in columns)
        op.execute(f"ALTER TABLE {table} {', '.join(changes)}")
