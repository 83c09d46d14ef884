"""What adapter versions answered to users and what users said, as trials compare them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from datetime import datetime

import sqlalchemy as sa

from ops.records import FeedbackSource, LiveAnswer, LiveOpinion, Metric, Source
from ops.tables.base import Database
from ops.tables.schema import feedback, interactions


class TrialTables(Database):
    """Answers and opinions by adapter version."""

    def live_answers(
        self,
        model: str,
        versions: Collection[int],
        *,
        since: datetime | None = None,
        before: datetime | None = None,
        limit: int = 20_000,
    ) -> list[LiveAnswer]:
        """Return what these adapter versions answered under a model name, newest first.

        Args:
            model: as clients asked for it.
            versions: 0 is the base model.
            since: only requests that came then or later.
            before: only requests that came earlier.
            limit: the most that are returned.
        """
        columns = [interactions.c[field.name] for field in fields(LiveAnswer)]
        query = sa.select(*columns).where(*_answered(model, versions, since, before))
        newest = interactions.c.created_at.desc(), interactions.c.id.desc()
        return self._select(LiveAnswer, query.order_by(*newest).limit(limit))

    def live_opinions(
        self,
        model: str,
        versions: Collection[int],
        *,
        since: datetime | None = None,
        before: datetime | None = None,
        limit: int = 20_000,
    ) -> list[LiveOpinion]:
        """Return whether the answers of `live_answers` were accepted, as said first, newest first.

        Only people's word counts, and only on the first choice.
        """
        query = (
            sa.select(
                feedback.c.created_at.label("at"),
                interactions.c.adapter_version,
                feedback.c.value.label("accepted"),
            )
            .join(interactions, interactions.c.id == feedback.c.interaction_id)
            .where(
                feedback.c.metric == Metric.ACCEPTED,
                feedback.c.choice_index == 0,
                feedback.c.source == FeedbackSource.HUMAN,
                *_answered(model, versions, since, before),
            )
        )
        newest = feedback.c.created_at.desc(), feedback.c.id.desc()
        return self._select(LiveOpinion, query.order_by(*newest).limit(limit))


def _answered(
    model: str, versions: Collection[int], since: datetime | None, before: datetime | None
) -> list[sa.ColumnElement[bool]]:
    """Which interactions these versions answered, under a name and within a time."""
    wanted = [
        interactions.c.adapter_version.in_(versions),
        interactions.c.model == model,
        interactions.c.source == Source.SERVED,
    ]
    wanted += [] if since is None else [interactions.c.created_at >= since]
    wanted += [] if before is None else [interactions.c.created_at < before]
    return wanted
