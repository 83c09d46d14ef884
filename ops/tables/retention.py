"""Retention: what is the oldest, how much there is, and how it is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from ops.tables.base import Database
from ops.tables.schema import executions, feedback, interactions


class Retention(Database):
    """Old rows and the room they take."""

    def oldest(self, limit: int, before: datetime | None = None) -> list[str]:
        """Return the ids of the oldest interactions; only those from before a time, if given."""
        query = sa.select(interactions.c.id).order_by(interactions.c.id).limit(limit)
        if before is not None:
            query = query.where(interactions.c.created_at < before)
            query = query.order_by(None).order_by(interactions.c.created_at)
        with self._read() as connection:
            return list(connection.execute(query).scalars())

    def delete(self, interaction_ids: Sequence[str]) -> int:
        """Delete interactions with their attempts, executions and feedback; return how many.

        Lineage of training rows stays: it names the ids, and holds no text.
        """
        with self._write() as connection:
            where = interactions.c.id.in_(interaction_ids)
            return int(connection.execute(sa.delete(interactions).where(where)).rowcount)

    def delete_strays(self, before: datetime) -> None:
        """Delete old executions and feedback that belong to no interaction."""
        with self._write() as connection:
            for table in (executions, feedback):
                stray = sa.and_(table.c.interaction_id.is_(None), table.c.created_at < before)
                connection.execute(sa.delete(table).where(stray))

    def count_interactions(self) -> int:
        """Return how many interactions there are."""
        with self._read() as connection:
            query = sa.select(sa.func.count()).select_from(interactions)
            return int(connection.execute(query).scalar_one())

    def size_bytes(self) -> int | None:
        """Return how much of the database file is in use; None where that cannot be told.

        PostgreSQL gives space back when it is vacuumed, so its size does not say what is kept.
        """
        if not self._sqlite:
            return None
        with self._read() as connection:
            pages, free, size = (
                int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
                for name in ("page_count", "freelist_count", "page_size")
            )
            return (pages - free) * size
