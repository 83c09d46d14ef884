"""Lineage: which training rows each cycle made, of which interactions, and whom they taught."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ops.records import Adapter, DatasetRow
from ops.tables.base import Database
from ops.tables.schema import adapters, dataset_rows, dataset_sources

OF_ROW = sa.and_(
    dataset_sources.c.cycle_id == dataset_rows.c.cycle_id,
    dataset_sources.c.row_id == dataset_rows.c.row_id,
)
"""Joins a row with the interactions it was made of."""


class DatasetTables(Database):
    """Training rows, without their text."""

    def replace_dataset(self, cycle_id: str, rows: Sequence[DatasetRow]) -> None:
        """Make `rows` the lineage of a cycle; repeating it changes nothing."""
        with self._write() as connection:
            connection.execute(
                sa.delete(dataset_sources).where(dataset_sources.c.cycle_id == cycle_id)
            )
            connection.execute(sa.delete(dataset_rows).where(dataset_rows.c.cycle_id == cycle_id))
            self._insert(connection, rows)
            insert_sources(connection, rows)

    def dataset(self, cycle_id: str) -> list[DatasetRow]:
        """Return the lineage of a cycle's rows, kept and dropped."""
        query = sa.select(dataset_rows).where(dataset_rows.c.cycle_id == cycle_id)
        return self._select(DatasetRow, query.order_by(dataset_rows.c.row_id))

    def count_dataset(self, cycle_id: str) -> dict[tuple[bool, str], int]:
        """Return how many rows of a cycle were kept and how many dropped, by (kept, reason)."""
        query = (
            sa.select(dataset_rows.c.kept, dataset_rows.c.reason, sa.func.count())
            .where(dataset_rows.c.cycle_id == cycle_id)
            .group_by(dataset_rows.c.kept, dataset_rows.c.reason)
        )
        with self._read() as connection:
            return {(row[0], row[1] or ""): row[2] for row in connection.execute(query)}

    def rows_made_of(self, interaction_id: str, *, limit: int = 100) -> list[DatasetRow]:
        """Return the lineage of rows made of an interaction, kept and dropped, newest first."""
        query = (
            sa.select(dataset_rows)
            .join(dataset_sources, OF_ROW)
            .where(dataset_sources.c.interaction_id == interaction_id)
            .order_by(dataset_rows.c.cycle_id.desc(), dataset_rows.c.row_id)
            .limit(limit)
        )
        return self._select(DatasetRow, query)

    def adapters_taught_by(self, interaction_id: str) -> list[Adapter]:
        """Return the adapters that were trained on rows made from an interaction."""
        taught = (
            sa.select(dataset_rows.c.cycle_id)
            .join(dataset_sources, OF_ROW)
            .where(dataset_sources.c.interaction_id == interaction_id, dataset_rows.c.kept)
        )
        query = sa.select(adapters).where(adapters.c.cycle_id.in_(taught))
        return self._select(Adapter, query.order_by(adapters.c.version))


def insert_sources(connection: Connection, rows: Sequence[DatasetRow]) -> None:
    """Write which interactions rows were made of, so that rows are found by them."""
    sources = [
        {"cycle_id": row.cycle_id, "row_id": row.row_id, "interaction_id": source}
        for row in rows
        for source in dict.fromkeys(row.interaction_ids)
    ]
    if sources:
        connection.execute(sa.insert(dataset_sources), sources)
