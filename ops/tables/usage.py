"""Usage: how much was asked, verified and said, counted by the database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVarTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ops.records import FeedbackSource, Metric, Source
from ops.tables.base import Database
from ops.tables.schema import adapters, attempts, cycles, executions, feedback, interactions

Counts = TypeVarTuple("Counts")


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What was served in one stretch of time. `judged`: had a specification that said something."""

    start: datetime
    requests: int
    judged: int
    verified: int


class Usage(Database):
    """Counts; no text is read."""

    def count(self) -> dict[str, int]:
        """Return how many rows there are of what people ask about, by table."""
        with self._read() as connection:
            return {
                table.name: connection.execute(
                    sa.select(sa.func.count()).select_from(table)
                ).scalar_one()
                for table in (interactions, attempts, executions, feedback, cycles, adapters)
            }

    def activity(self, *, since: datetime, bucket_s: int) -> list[Activity]:
        """Return what was served since a moment, in stretches of `bucket_s`, oldest first.

        Stretches begin at multiples of `bucket_s` since 1970; empty ones are left out.
        """
        at, verified = interactions.c.created_at, interactions.c.verified
        query = sa.select(
            sa.func.count(), sa.func.count(verified), sa.func.count().filter(verified.is_(True))
        ).where(interactions.c.source == Source.SERVED)
        with self._read() as connection:
            return [
                Activity(start=start, requests=row[0], judged=row[1], verified=row[2])
                for start, row in _stretches(connection, query, at, since, bucket_s)
                if row[0]
            ]

    def growth(self, *, since: datetime, bucket_s: int) -> dict[str, list[tuple[datetime, int]]]:
        """Return how many interactions and pieces of feedback there were after each stretch."""
        grown: dict[str, list[tuple[datetime, int]]] = {}
        with self._read() as connection:
            for table in (interactions, feedback):
                at = table.c.created_at
                query = sa.select(sa.func.count()).select_from(table)
                total = connection.execute(query.where(at < since)).scalar_one()
                grown[table.name] = points = [(since, total)]
                for start, row in _stretches(connection, query, at, since, bucket_s):
                    total += row[0]
                    points.append((start + timedelta(seconds=bucket_s), total))
        return grown

    def durations(self, *, since: datetime, limit: int = 2000) -> list[float]:
        """Return how long requests served since a moment took, in seconds, the newest first."""
        query = (
            sa.select(interactions.c.duration_s)
            .where(interactions.c.created_at >= since, interactions.c.source == Source.SERVED)
            .order_by(interactions.c.created_at.desc())
            .limit(limit)
        )
        with self._read() as connection:
            return list(connection.execute(query).scalars())

    def verified_by_version(self, *, since: datetime) -> dict[int, tuple[int, int]]:
        """Return, by adapter version, how many served answers were judged and how many passed."""
        # A sum, or SQLite would go through the index of versions and read every row of the table.
        version = interactions.c.adapter_version + 0
        query = (
            sa.select(
                version,
                sa.func.count(),
                sa.func.count().filter(interactions.c.verified.is_(True)),
            )
            .where(
                interactions.c.created_at >= since,
                interactions.c.source == Source.SERVED,
                interactions.c.verified.is_not(None),
            )
            .group_by(version)
        )
        with self._read() as connection:
            return {row[0]: (row[1], row[2]) for row in connection.execute(query)}

    def count_new(self, since: datetime | None) -> dict[str, int]:
        """Return how much there is to learn since a moment: feedback, failures, accepted.

        Counts what came through the API: feedback of people, served requests whose every attempt
        failed, and answers that were accepted. What is imported is for `improve` to ask for.
        """
        after = datetime.fromtimestamp(0, UTC) if since is None else since
        said = (
            sa.select(sa.func.count())
            .select_from(feedback.outerjoin(interactions))
            .where(
                feedback.c.created_at > after,
                feedback.c.source == FeedbackSource.HUMAN,
                # Of an episode no single interaction is known.
                sa.or_(interactions.c.id.is_(None), interactions.c.source == Source.SERVED),
            )
        )
        # Filtered, not asked for: the index of verdicts leads to rows, that of usage needs none.
        failures = sa.func.count().filter(interactions.c.verified.is_(False))
        failed = sa.select(failures).where(
            interactions.c.created_at > after, interactions.c.source == Source.SERVED
        )
        accepted = said.where(
            feedback.c.metric == Metric.ACCEPTED, sa.cast(feedback.c.value, sa.Text) == "true"
        )
        queries = {"feedback": said, "failures": failed, "accepted": accepted}
        with self._read() as connection:
            return {name: connection.execute(q).scalar_one() for name, q in queries.items()}


def _stretches(
    connection: Connection,
    query: sa.Select[*Counts],
    at: sa.Column[datetime],
    since: datetime,
    bucket_s: int,
) -> Iterator[tuple[datetime, sa.Row[*Counts]]]:
    """Yield, for each stretch with rows since a moment, its start and what a query of counts says.

    One query a stretch: each walks a piece of an index, where grouping by a computed time would
    compute it for every row, and sort.
    """
    first = sa.select(sa.func.min(at))
    found: datetime | None = connection.execute(first.where(at >= since)).scalar()
    while found is not None:
        start = datetime.fromtimestamp(found.timestamp() // bucket_s * bucket_s, UTC)
        end = start + timedelta(seconds=bucket_s)
        within = query.where(at >= max(start, since), at < end)
        yield start, connection.execute(within).one()
        found = connection.execute(first.where(at >= end)).scalar()
