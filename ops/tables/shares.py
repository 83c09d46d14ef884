"""Shares: what API keys have left of a minute, agreed on by all servers of a record."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ops.records import Share, now
from ops.tables.base import Database, insert_into
from ops.tables.schema import shares


class ShareTable(Database):
    """One row for each limited thing of each key that was used."""

    def settle_shares(self, taken: Sequence[Share]) -> list[Share]:
        """Take out of the shares what was used since the last time; return what all have left.

        Args:
            taken: for each, how much flows in a minute, and as `level` how much was taken.

        Returns:
            Those of `taken`, with their levels now; negative when overdrawn.
        """
        if not taken:
            return []
        wanted = {(share.key_sha256, share.what): share for share in taken}
        with self._write() as connection:
            at = _clock(connection)
            full = [
                {"key_sha256": key, "what": what, "level": share.per_minute, "at": at}
                for (key, what), share in sorted(wanted.items())
            ]
            connection.execute(insert_into(connection, shares).on_conflict_do_nothing(), full)
            # Always in this order: two servers that settle at once wait for each other.
            query = (
                sa.select(shares)
                .where(shares.c.key_sha256.in_({key for key, _ in wanted}))
                .order_by(shares.c.key_sha256, shares.c.what)
                .with_for_update()
            )
            found = []
            for row in connection.execute(query).mappings().all():
                given = wanted.get((row["key_sha256"], row["what"]))
                if given is None:
                    continue
                level = _refilled(row["level"], row["at"], at, given.per_minute) - given.level
                found.append(given.with_level(level))
                if given.level:
                    statement = sa.update(shares).where(
                        shares.c.key_sha256 == given.key_sha256, shares.c.what == given.what
                    )
                    connection.execute(statement.values(level=level, at=at))
            return found


def _clock(connection: Connection) -> datetime:
    """The database's own time, where it has one: servers' clocks may differ."""
    if connection.dialect.name == "sqlite":
        return now()
    found: datetime = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
    return found


def _refilled(level: float, since: datetime, at: datetime, per_minute: int) -> float:
    passed_s = max(0.0, (at - since).total_seconds())
    return min(float(per_minute), level + passed_s * per_minute / 60)
