"""Interactions, written whole with their attempts, executions and feedback, and read in pages."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from ops.errors import NotFound
from ops.records import UPLOADED, Attempt, Execution, Feedback, Interaction, Source
from ops.tables.base import Database, parts
from ops.tables.feedback import put
from ops.tables.schema import attempts, executions, feedback, interactions

R = TypeVar("R")
SEARCHED = 20_000
"""Interactions in which a text is looked for: no index helps, and a page must not read them all."""

_UPLOADED = sa.and_(interactions.c.id < "00000000-0001", interactions.c.endpoint == UPLOADED)
"""What is imported has ids before all others, so looking for it reads nothing else."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """An interaction with all that belongs to it; written whole or not at all."""

    interaction: Interaction
    attempts: Sequence[Attempt] = ()
    executions: Sequence[Execution] = ()
    feedback: Sequence[Feedback] = ()
    """What was said of it before it came here, for interactions that are imported."""


class InteractionTable(Database):
    """Requests and answers with all that belongs to them."""

    def add(self, recordings: Sequence[Recording], *, adopting: Collection[str] = ()) -> None:
        """Write whole recordings in one transaction.

        Args:
            recordings: the rows.
            adopting: ids of those on which feedback was kept before them (`put_feedback`).

        Raises:
            Conflict: an id exists already; nothing of the batch was written.
            StoreUnavailable: nothing was written.
        """
        with self._write() as connection:
            self._insert(connection, [r.interaction for r in recordings])
            self._insert(connection, [a for r in recordings for a in r.attempts])
            self._insert(connection, [e for r in recordings for e in r.executions])
            for row in (f for r in recordings for f in r.feedback):
                put(connection, row)
            if adopting:
                early = sa.and_(
                    feedback.c.target.in_(adopting), feedback.c.interaction_id.is_(None)
                )
                connection.execute(
                    sa.update(feedback).where(early).values(interaction_id=feedback.c.target)
                )

    def interaction(self, interaction_id: str) -> Interaction:
        """Return one interaction.

        Raises:
            NotFound: there is none of that id.
        """
        where = interactions.c.id == interaction_id
        found = self._select(Interaction, sa.select(interactions).where(where))
        if not found:
            raise NotFound(f"no interaction {interaction_id}")
        return found[0]

    def interactions(
        self,
        *,
        limit: int = 100,
        before: str | None = None,
        verified: bool | None = None,
        source: Source | None = None,
        since: datetime | None = None,
        with_feedback: str | None = None,
        adapter_version: int | None = None,
        text: str | None = None,
    ) -> list[Interaction]:
        """Return interactions, newest first; `before` is the last id of the page before.

        `with_feedback` leaves only those that have feedback under this metric, `text` those of the
        `SEARCHED` newest before it that hold it in request or answer, whatever its case.
        """
        query = sa.select(interactions).order_by(interactions.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(interactions.c.id < before)
        if verified is not None:
            query = query.where(interactions.c.verified == verified)
        if source is not None:
            query = query.where(interactions.c.source == source)
        if since is not None:
            query = query.where(interactions.c.created_at >= since)
        if with_feedback is not None:
            query = query.where(interactions.c.id.in_(_judged(with_feedback)))
        if adapter_version is not None:
            query = query.where(interactions.c.adapter_version == adapter_version)
        if text is not None:
            query = query.where(self._holds(text, before))
        return self._select(Interaction, query)

    def uploads(self) -> list[Interaction]:
        """Return the first row of each uploaded file, newest file first."""
        firsts = sa.select(sa.func.min(interactions.c.id)).where(_UPLOADED)
        query = sa.select(interactions).where(
            interactions.c.id.in_(firsts.group_by(interactions.c.episode_id))
        )
        return self._select(Interaction, query.order_by(interactions.c.created_at.desc()))

    def upload(self, episode_id: str) -> list[Interaction]:
        """Return the rows of an uploaded file, in their order.

        Raises:
            NotFound: the record holds none.
        """
        query = sa.select(interactions).where(_UPLOADED, interactions.c.episode_id == episode_id)
        found = self._select(Interaction, query.order_by(interactions.c.id))
        if not found:
            raise NotFound(f"no file {episode_id[:200]}")
        return found

    def _holds(self, text: str, before: str | None) -> sa.ColumnElement[bool]:
        """Whether request or answer holds a text; looked for in the newest ones only."""
        newest = sa.select(interactions.c.id).order_by(interactions.c.id.desc()).limit(SEARCHED)
        if before is not None:
            newest = newest.where(interactions.c.id < before)
        needle = json.dumps(text)[1:-1]  # as the document was written
        columns = (interactions.c.messages, interactions.c.choices)
        found = [sa.cast(one, sa.Text).icontains(needle, autoescape=True) for one in columns]
        return sa.and_(interactions.c.id.in_(newest), sa.or_(*found))

    def iter_interactions(
        self,
        *,
        with_feedback: str | None = None,
        verified: bool | None = None,
        page: int = 500,
    ) -> Iterator[Interaction]:
        """Yield interactions, oldest first, in pages, so that memory stays flat.

        Args:
            with_feedback: only those that have feedback under this metric.
            verified: only those whose answer was (not) verified.
            page: rows per query.
        """
        last = ""
        while True:
            query = sa.select(interactions).where(interactions.c.id > last)
            if verified is not None:
                query = query.where(interactions.c.verified == verified)
            if with_feedback is not None:
                query = query.where(interactions.c.id.in_(_judged(with_feedback)))
            rows = self._select(Interaction, query.order_by(interactions.c.id).limit(page))
            yield from rows
            if len(rows) < page:
                return
            last = rows[-1].id

    def recordings(self, of: Sequence[Interaction]) -> list[Recording]:
        """Return interactions with all that belongs to them, in their order: three queries in all.

        What clients report of runs elsewhere is left out, as in `executions`.
        """
        ids = [interaction.id for interaction in of]
        wrote = self._of(Attempt, attempts, ids, attempts.c.attempt_index)
        ours = executions.c.source != Source.CLIENT
        ran = self._of(Execution, executions, ids, executions.c.id, ours)
        said = self._of(Feedback, feedback, ids, feedback.c.id)
        return [
            Recording(
                interaction=one,
                attempts=wrote.get(one.id, ()),
                executions=ran.get(one.id, ()),
                feedback=said.get(one.id, ()),
            )
            for one in of
        ]

    def _of(
        self,
        record: type[R],
        table: sa.Table,
        ids: Sequence[str],
        order: sa.ColumnElement[Any],
        *where: sa.ColumnElement[bool],
    ) -> dict[str, list[R]]:
        """The rows that belong to some interactions, by the interaction's id."""
        found: dict[str, list[R]] = {}
        for part in parts(ids):
            query = sa.select(table).where(table.c.interaction_id.in_(part), *where)
            for row in self._select(record, query.order_by(order)):
                found.setdefault(row.interaction_id, []).append(row)  # type: ignore[attr-defined]
        return found

    def attempts(self, interaction_id: str) -> list[Attempt]:
        """Return the attempts of an interaction in the order they were judged."""
        query = sa.select(attempts).where(attempts.c.interaction_id == interaction_id)
        return self._select(Attempt, query.order_by(attempts.c.attempt_index))

    def set_metadata(self, interaction_id: str, metadata: Mapping[str, str]) -> None:
        """Replace the metadata of an interaction.

        Raises:
            NotFound: there is none of that id.
        """
        with self._write() as connection:
            where = interactions.c.id == interaction_id
            statement = sa.update(interactions).where(where).values(metadata=dict(metadata))
            if connection.execute(statement).rowcount == 0:
                raise NotFound(f"no interaction {interaction_id}")

    def episode_tenants(self, episode_id: str) -> set[str]:
        """Return whose interactions an episode holds; empty when there is no such episode."""
        query = sa.select(interactions.c.tenant).where(interactions.c.episode_id == episode_id)
        with self._read() as connection:
            return set(connection.execute(query.distinct()).scalars())


def _judged(metric: str) -> sa.Select[tuple[str]]:
    """The ids of the interactions that have feedback under a metric."""
    return sa.select(feedback.c.interaction_id).where(feedback.c.metric == metric)
