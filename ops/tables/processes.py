"""Processes: what only one of them may do at a time, and their last signs of life."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from ops.errors import Conflict
from ops.records import Heartbeat, now
from ops.tables.base import Database, insert_into
from ops.tables.schema import heartbeats, leases


class ProcessTables(Database):
    """Leases and heartbeats."""

    def take_lease(self, name: str, holder: str, ttl_s: float) -> None:
        """Take or renew a lease.

        Raises:
            Conflict: somebody else holds it and has renewed it within its time to live.
        """
        with self._write() as connection:
            at = now()
            row = {"name": name, "holder": holder, "expires_at": at + timedelta(seconds=ttl_s)}
            insert = insert_into(connection, leases).values(row)
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
