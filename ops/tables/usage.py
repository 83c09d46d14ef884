"""Usage: how much was asked, verified and said, counted by the database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from ops.records import FeedbackSource, Metric, Source
from ops.tables.base import Database
from ops.tables.schema import adapters, attempts, cycles, executions, feedback, interactions


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
        """Return how many interactions, feedback rows, cycles and adapters there are."""
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
        start = _bucket(interactions.c.created_at, bucket_s)
        judged = interactions.c.verified.is_not(None)
        query = (
            sa.select(
                start,
                sa.func.count(),
                sa.func.sum(sa.case((judged, 1), else_=0)),
                sa.func.sum(sa.case((interactions.c.verified.is_(True), 1), else_=0)),
            )
            .where(interactions.c.created_at >= since, interactions.c.source == Source.SERVED)
            .group_by(start)
            .order_by(start)
        )
        with self._read() as connection:
            return [
                Activity(
                    start=datetime.fromtimestamp(row[0] * bucket_s, UTC),
                    requests=row[1],
                    judged=row[2],
                    verified=row[3],
                )
                for row in connection.execute(query)
            ]

    def growth(self, *, since: datetime, bucket_s: int) -> dict[str, list[tuple[datetime, int]]]:
        """Return how many interactions and pieces of feedback there were after each stretch."""
        grown: dict[str, list[tuple[datetime, int]]] = {}
        with self._read() as connection:
            for table in (interactions, feedback):
                at = table.c.created_at
                older = sa.select(sa.func.count()).select_from(table).where(at < since)
                total = connection.execute(older).scalar_one()
                start = _bucket(at, bucket_s)
                query = sa.select(start, sa.func.count()).where(at >= since)
                grown[table.name] = points = [(since, total)]
                for row in connection.execute(query.group_by(start).order_by(start)):
                    total += row[1]
                    points.append((datetime.fromtimestamp((row[0] + 1) * bucket_s, UTC), total))
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
        query = (
            sa.select(
                interactions.c.adapter_version,
                sa.func.count(),
                sa.func.sum(sa.case((interactions.c.verified.is_(True), 1), else_=0)),
            )
            .where(
                interactions.c.created_at >= since,
                interactions.c.source == Source.SERVED,
                interactions.c.verified.is_not(None),
            )
            .group_by(interactions.c.adapter_version)
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
        failed = sa.select(sa.func.count()).where(
            interactions.c.created_at > after,
            interactions.c.source == Source.SERVED,
            interactions.c.verified.is_(False),
        )
        accepted = said.where(
            feedback.c.metric == Metric.ACCEPTED, sa.cast(feedback.c.value, sa.Text) == "true"
        )
        queries = {"feedback": said, "failures": failed, "accepted": accepted}
        with self._read() as connection:
            return {name: connection.execute(q).scalar_one() for name, q in queries.items()}


def _bucket(at: sa.Column[datetime], bucket_s: int) -> sa.ColumnElement[int]:
    """In which stretch since 1970 a time lies."""
    seconds = sa.cast(sa.extract("epoch", at), sa.BigInteger)
    return seconds // sa.literal_column(str(int(bucket_s)))
