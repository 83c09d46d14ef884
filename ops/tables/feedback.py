"""Feedback: what was said of an interaction, or of a whole episode."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ops.errors import NotFound
from ops.records import Feedback
from ops.tables.base import Database, insert_into
from ops.tables.schema import feedback, interactions


class FeedbackTable(Database):
    """What was said."""

    def put_feedback(self, rows: Sequence[Feedback], *, ahead: Collection[str] = ()) -> list[str]:
        """Write feedback and return the ids it is kept under, in order.

        The same (target, metric, identifier, choice_index) overwrites the value and keeps the
        first row's id and `created_at`.

        Args:
            rows: the feedback.
            ahead: ids of interactions that are still on their way: what is said of them is kept
                without an interaction until `add` is told to adopt it.

        Raises:
            NotFound: an interaction or episode does not exist; nothing was written.
        """
        with self._write() as connection:
            return [put(connection, row, ahead=row.interaction_id in ahead) for row in rows]

    def update_feedback(self, row: Feedback) -> None:
        """Write the value, the tags and the time of change of a row that is there.

        Raises:
            NotFound: there is none of that id.
        """
        changes = {"value": row.value, "tags": row.tags, "updated_at": row.updated_at}
        with self._write() as connection:
            where = feedback.c.id == row.id
            if connection.execute(sa.update(feedback).where(where).values(changes)).rowcount == 0:
                raise NotFound(f"no feedback {row.id}")

    def delete_feedback(self, feedback_id: str) -> None:
        """Delete one feedback row.

        Raises:
            NotFound: there is none of that id.
        """
        with self._write() as connection:
            done = connection.execute(sa.delete(feedback).where(feedback.c.id == feedback_id))
            if done.rowcount == 0:
                raise NotFound(f"no feedback {feedback_id}")

    def one_feedback(self, feedback_id: str) -> Feedback:
        """Return one feedback row.

        Raises:
            NotFound: there is none of that id.
        """
        found = self._select(Feedback, sa.select(feedback).where(feedback.c.id == feedback_id))
        if not found:
            raise NotFound(f"no feedback {feedback_id}")
        return found[0]

    def feedback(self, interaction_id: str) -> list[Feedback]:
        """Return the feedback on an interaction, oldest first."""
        query = sa.select(feedback).where(feedback.c.interaction_id == interaction_id)
        return self._select(Feedback, query.order_by(feedback.c.id))

    def episode_feedback(self, episode_id: str) -> list[Feedback]:
        """Return what was said of a whole episode, oldest first."""
        query = sa.select(feedback).where(feedback.c.episode_id == episode_id)
        return self._select(Feedback, query.order_by(feedback.c.id))


def put(connection: Connection, row: Feedback, *, ahead: bool = False) -> str:
    """Write one row within a transaction and return the id it is kept under; see `put_feedback`."""
    if not ahead:
        _require_target(connection, row)
    values = asdict(row) | {"target": row.interaction_id or f"episode:{row.episode_id}"}
    if ahead:
        values["interaction_id"] = None
    insert = insert_into(connection, feedback).values(values)
    statement = insert.on_conflict_do_update(
        index_elements=["target", "metric", "identifier", "choice_index"],
        set_={name: insert.excluded[name] for name in ("updated_at", "value", "source", "tags")},
    ).returning(feedback.c.id)
    return str(connection.execute(statement).scalar_one())


def _require_target(connection: Connection, row: Feedback) -> None:
    if row.interaction_id is not None:
        where = interactions.c.id == row.interaction_id
        what = f"interaction {row.interaction_id}"
    else:
        where = interactions.c.episode_id == row.episode_id
        what = f"episode {row.episode_id}"
    if connection.execute(sa.select(interactions.c.id).where(where).limit(1)).first() is None:
        raise NotFound(f"no {what}")
