"""Executions: judged runs of programs, ours and those that clients report."""

from __future__ import annotations

import sqlalchemy as sa

from ops.errors import NotFound
from ops.records import Execution, Source
from ops.tables.base import Database
from ops.tables.schema import executions


class ExecutionTable(Database):
    """Runs of programs."""

    def add_execution(self, execution: Execution) -> None:
        """Write an execution that belongs to no attempt.

        Raises:
            Conflict: the interaction it names is gone.
        """
        with self._write() as connection:
            self._insert(connection, [execution])

    def execution(self, execution_id: str) -> Execution:
        """Return one execution.

        Raises:
            NotFound: there is none of that id.
        """
        found = self._select(
            Execution, sa.select(executions).where(executions.c.id == execution_id)
        )
        if not found:
            raise NotFound(f"no execution {execution_id}")
        return found[0]

    def executions(self, interaction_id: str, *, reported: bool = False) -> list[Execution]:
        """Return the executions of an interaction, oldest first.

        What clients report of runs elsewhere is left out unless `reported`: nobody may take it
        for a run of ours.
        """
        query = sa.select(executions).where(executions.c.interaction_id == interaction_id)
        if not reported:
            query = query.where(executions.c.source != Source.CLIENT)
        return self._select(Execution, query.order_by(executions.c.id))
