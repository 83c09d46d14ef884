"""Cycles: their states, who may change them when, and their logs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from ops.errors import Conflict, NotFound
from ops.records import Cycle, CycleEvent, CycleState, now
from ops.tables.base import Database
from ops.tables.schema import cycle_events, cycles

LAST_STAGE = "release"
"""The stage of a running cycle that is not interrupted: its adapter is on the way into service."""


class CycleTables(Database):
    """Improvement cycles."""

    def add_cycle(self, cycle: Cycle) -> None:
        """Write a new cycle."""
        with self._write() as connection:
            self._insert(connection, [cycle])

    def cycle(self, cycle_id: str) -> Cycle:
        """Return one cycle.

        Raises:
            NotFound: there is none of that id.
        """
        found = self._select(Cycle, sa.select(cycles).where(cycles.c.id == cycle_id))
        if not found:
            raise NotFound(f"no cycle {cycle_id}")
        return found[0]

    def cycles(
        self, *, state: CycleState | None = None, limit: int = 100, before: str | None = None
    ) -> list[Cycle]:
        """Return cycles, newest first; `before` is the last id of the page before."""
        query = sa.select(cycles).order_by(cycles.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(cycles.c.id < before)
        if state is not None:
            query = query.where(cycles.c.state == state)
        return self._select(Cycle, query)

    def count_cycles(self) -> dict[tuple[str, CycleState], int]:
        """Return how many cycles there are of each (recipe, state)."""
        query = sa.select(cycles.c.recipe, cycles.c.state, sa.func.count()).group_by(
            cycles.c.recipe, cycles.c.state
        )
        with self._read() as connection:
            return {(row[0], row[1]): row[2] for row in connection.execute(query)}

    def update_cycle(self, cycle_id: str, **changes: Any) -> Cycle:
        """Change columns of a cycle and return it as it is now.

        Raises:
            NotFound: there is none of that id.
        """
        with self._write() as connection:
            connection.execute(sa.update(cycles).where(cycles.c.id == cycle_id).values(**changes))
        return self.cycle(cycle_id)

    def move_cycle(
        self, cycle_id: str, allowed: Collection[CycleState], state: CycleState, **changes: Any
    ) -> Cycle:
        """Change a cycle's state if it is still one of `allowed`, and return the cycle.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is in another state; nothing was changed.
        """
        with self._write() as connection:
            where = sa.and_(cycles.c.id == cycle_id, cycles.c.state.in_(list(allowed)))
            statement = sa.update(cycles).where(where).values(state=state, **changes)
            moved = connection.execute(statement).rowcount == 1
        cycle = self.cycle(cycle_id)
        if not moved:
            raise Conflict(f"cycle {cycle_id} is {cycle.state}")
        return cycle

    def pause_cycle(self, cycle_id: str) -> Cycle:
        """Hold a cycle back: whoever runs it stops within seconds, and it can be resumed.

        Raises:
            NotFound: there is none of that id.
            Conflict: it has ended, is paused already, or is being released.
        """
        return self._halt_cycle(cycle_id, (CycleState.QUEUED,), CycleState.PAUSED)

    def cancel_cycle(self, cycle_id: str, reason: str) -> Cycle:
        """End a cycle for good: whoever runs it stops within seconds.

        Raises:
            NotFound: there is none of that id.
            Conflict: it has ended, or is being released.
        """
        allowed = (CycleState.QUEUED, CycleState.PAUSED)
        return self._halt_cycle(
            cycle_id, allowed, CycleState.CANCELLED, error=reason, finished_at=now()
        )

    def resume_cycle(self, cycle_id: str) -> Cycle:
        """Queue a paused or failed cycle; it goes on where it was.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is neither.
        """
        allowed = (CycleState.PAUSED, CycleState.FAILED)
        return self.move_cycle(cycle_id, allowed, CycleState.QUEUED, error=None, finished_at=None)

    def _halt_cycle(
        self, cycle_id: str, allowed: Collection[CycleState], state: CycleState, **changes: Any
    ) -> Cycle:
        """Move a cycle that waits or runs, but not one that is half way into service."""
        running = sa.and_(cycles.c.state == CycleState.RUNNING, cycles.c.stage != LAST_STAGE)
        where = sa.or_(cycles.c.state.in_(list(allowed)), running)
        with self._write() as connection:
            statement = sa.update(cycles).where(cycles.c.id == cycle_id, where)
            changed = connection.execute(statement.values(state=state, **changes))
            moved = changed.rowcount == 1
        cycle = self.cycle(cycle_id)
        if not moved and cycle.state is CycleState.RUNNING:
            raise Conflict(f"cycle {cycle_id} is being released; `rollback` takes that back")
        if not moved:
            raise Conflict(f"cycle {cycle_id} is {cycle.state}")
        return cycle

    def add_event(self, event: CycleEvent) -> None:
        """Write a line of a cycle's log."""
        with self._write() as connection:
            self._insert(connection, [event])

    def events(self, cycle_id: str, *, last: int | None = None) -> list[CycleEvent]:
        """Return a cycle's log, oldest first; only its last lines, if a number is given."""
        query = sa.select(cycle_events).where(cycle_events.c.cycle_id == cycle_id)
        newest = self._select(CycleEvent, query.order_by(cycle_events.c.id.desc()).limit(last))
        return newest[::-1]
