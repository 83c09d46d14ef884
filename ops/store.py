"""The record: every request, attempt, execution, feedback, cycle and adapter, in one database.

SQLite (WAL, `synchronous=FULL`) by default, PostgreSQL by URL; the same SQLAlchemy Core statements,
in `ops/tables/`, serve both. Methods are synchronous and thread-safe: each call is one transaction,
and when it returns the rows are durable. Batching and threads are the caller's
(`server.recording`); which adapter transitions are allowed is `ops.registry`'s.
"""

from __future__ import annotations

from ops.tables.adapters import AdapterTables
from ops.tables.backups import Backups
from ops.tables.cycles import CycleTables
from ops.tables.datasets import DatasetTables
from ops.tables.erasures import ErasureTable
from ops.tables.executions import ExecutionTable
from ops.tables.exports import Exports, Snapshot
from ops.tables.feedback import FeedbackTable
from ops.tables.interactions import InteractionTable, Recording
from ops.tables.keys import KeyTable
from ops.tables.processes import ProcessTables
from ops.tables.retention import Retention
from ops.tables.shares import ShareTable
from ops.tables.trials import TrialTables
from ops.tables.usage import Activity, Usage

__all__ = ["Activity", "Recording", "Snapshot", "Store"]


class Store(
    InteractionTable,
    ExecutionTable,
    FeedbackTable,
    Usage,
    TrialTables,
    Retention,
    CycleTables,
    DatasetTables,
    AdapterTables,
    ErasureTable,
    KeyTable,
    ProcessTables,
    ShareTable,
    Exports,
    Backups,
):
    """An open record. Thread-safe; make one per process and close it.

    The sum of its parts: they share a database and nothing else, and no two define the same name.
    """
