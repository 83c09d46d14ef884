"""Adapter versions, their states, the aliases that point at them, and the receipts of swaps.

Which transitions are allowed is `ops.registry`'s; here each is made whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ops.errors import Conflict, NotFound
from ops.records import Adapter, Alias, SwapReceipt, Transition, now
from ops.tables.base import Database, lock
from ops.tables.erasures import erase_rows, unfinished
from ops.tables.schema import adapters, aliases, swap_receipts, transitions


class AdapterTables(Database):
    """Versions and where the aliases point."""

    def add_adapter(self, adapter: Adapter, transition: Transition) -> Adapter:
        """Write a new adapter under the next free version and return it with that version.

        Raises:
            Conflict: an adapter of the same content exists.
        """
        with self._write() as connection:
            lock(connection, adapters)
            last = connection.execute(sa.select(sa.func.max(adapters.c.version))).scalar()
            version = (last or 0) + 1
            values = asdict(adapter) | {"version": version}
            connection.execute(sa.insert(adapters).values(values))
            connection.execute(
                sa.insert(transitions).values(asdict(transition) | {"version": version})
            )
            # Its cycle may have held in memory what was erased while it ran.
            for erasure in unfinished(connection):
                erase_rows(connection, erasure)
            row = connection.execute(
                sa.select(adapters.c.tainted_by).where(adapters.c.version == version)
            ).one()
            return Adapter(**values | {"tainted_by": row.tainted_by})

    def adapter(self, version: int) -> Adapter:
        """Return one adapter.

        Raises:
            NotFound: there is none of that version.
        """
        found = self._select(Adapter, sa.select(adapters).where(adapters.c.version == version))
        if not found:
            raise NotFound(f"no adapter version {version}")
        return found[0]

    def adapters(self) -> list[Adapter]:
        """Return all adapters, newest first."""
        return self._select(Adapter, sa.select(adapters).order_by(adapters.c.version.desc()))

    def transition(
        self,
        changes: Sequence[Transition],
        moves: Mapping[Alias, int | None] | None = None,
        *,
        require: Mapping[Alias, int | None] | None = None,
        unpointed: int | None = None,
    ) -> None:
        """Change states and move aliases (None clears) in one transaction.

        Args:
            changes: the states, each with where it must still be.
            moves: the aliases.
            require: where aliases must still point.
            unpointed: a version that no alias may point at.

        Raises:
            Conflict: an adapter is not in its `from_state` any more, or an alias has moved;
                nothing was changed.
        """
        with self._write() as connection:
            _require_aliases(connection, require or {}, unpointed)
            for change in changes:
                where = sa.and_(
                    adapters.c.version == change.version, adapters.c.state == change.from_state
                )
                update = sa.update(adapters).where(where).values(state=change.to_state)
                if connection.execute(update).rowcount != 1:
                    raise Conflict(f"adapter v{change.version} is not {change.from_state} any more")
            self._insert(connection, [_in_order(connection, change) for change in changes])
            for alias, version in (moves or {}).items():
                connection.execute(sa.delete(aliases).where(aliases.c.alias == alias))
                if version is not None:
                    row = {"alias": alias, "version": version, "moved_at": now()}
                    connection.execute(sa.insert(aliases).values(row))

    def transitions(self, version: int) -> list[Transition]:
        """Return what happened to an adapter, oldest first."""
        query = sa.select(transitions).where(transitions.c.version == version)
        return self._select(Transition, query.order_by(transitions.c.at, transitions.c.id))

    def aliases(self) -> dict[Alias, int]:
        """Return where the aliases point; an alias without a version is left out."""
        with self._read() as connection:
            rows = connection.execute(sa.select(aliases.c.alias, aliases.c.version))
            return {row.alias: row.version for row in rows}

    def add_receipt(self, receipt: SwapReceipt) -> None:
        """Write a swap receipt."""
        with self._write() as connection:
            self._insert(connection, [receipt])

    def receipts(self, *, version: int | None = None, limit: int = 100) -> list[SwapReceipt]:
        """Return swap receipts, newest first."""
        query = sa.select(swap_receipts).order_by(swap_receipts.c.id.desc()).limit(limit)
        if version is not None:
            query = query.where(swap_receipts.c.version == version)
        return self._select(SwapReceipt, query)


def _in_order(connection: Connection, change: Transition) -> Transition:
    """The change, later than every one before it, also after the clock was set back."""
    last = sa.select(sa.func.max(transitions.c.at)).where(transitions.c.version == change.version)
    before: datetime | None = connection.execute(last).scalar()
    if before is None or change.at > before:
        return change
    return replace(change, at=before + timedelta(microseconds=1))


def _require_aliases(
    connection: Connection, require: Mapping[Alias, int | None], unpointed: int | None
) -> None:
    if not require and unpointed is None:
        return
    lock(connection, aliases)
    rows = connection.execute(sa.select(aliases.c.alias, aliases.c.version))
    found = {row.alias: row.version for row in rows}
    for alias, version in require.items():
        if found.get(alias) != version:
            raise Conflict(f"the alias {alias} does not point at {version} any more")
    if unpointed is not None and unpointed in found.values():
        raise Conflict(f"an alias points at adapter v{unpointed}")
