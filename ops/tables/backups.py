"""The database as a whole: copied, carried over to another kind, cleared."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from ops.errors import StoreError, StoreUnavailable
from ops.tables.base import Database
from ops.tables.schema import adapters, cycles, heartbeats, leases, metadata, shares

PAGE = 100
"""Rows that are carried over at once."""


class Backups(Database):
    """All tables at once."""

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

    def copy_from(self, other: Database) -> None:
        """Take over every row of another database, into this empty one, in one transaction.

        Raises:
            Conflict: this one is not empty; nothing was written.
        """
        of_processes = {leases, heartbeats, shares}
        with other._read() as source, self._write() as target:
            for table in metadata.sorted_tables:
                if table in of_processes:
                    continue
                options = {"stream_results": True, "yield_per": PAGE}
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
