"""API keys: hashed, good until they are revoked."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from ops.errors import Conflict, NotFound
from ops.records import ApiKey, now
from ops.tables.base import Database, lock
from ops.tables.schema import api_keys


class KeyTable(Database):
    """Who may come in."""

    def add_key(self, key: ApiKey) -> None:
        """Write a new key.

        Raises:
            Conflict: a key of that name is good already.
        """
        with self._write() as connection:
            lock(connection, api_keys)
            query = sa.select(api_keys.c.id).where(
                api_keys.c.name == key.name, api_keys.c.revoked_at.is_(None)
            )
            if connection.execute(query).first() is not None:
                raise Conflict(f"there is a key named {key.name!r} already; revoke it first")
            self._insert(connection, [key])

    def api_keys(self) -> list[ApiKey]:
        """Return all keys, newest first, those that were revoked too."""
        return self._select(ApiKey, sa.select(api_keys).order_by(api_keys.c.id.desc()))

    def revoke_key(self, name: str) -> ApiKey:
        """Make a key useless for good, by its name or its id; return it.

        Raises:
            NotFound: no key that is good has that name or id.
        """
        which = sa.or_(api_keys.c.name == name, api_keys.c.id == name)
        where = sa.and_(which, api_keys.c.revoked_at.is_(None))
        with self._write() as connection:
            statement = sa.update(api_keys).where(where).values(revoked_at=now())
            row = connection.execute(statement.returning(api_keys.c.id)).first()
        if row is None:
            raise NotFound(f"no key {name!r} that is good; `journeyman keys list` shows all")
        return self._select(ApiKey, sa.select(api_keys).where(api_keys.c.id == row.id))[0]

    def keys_revoked(self, ids: Collection[str]) -> None:
        """Revoke keys by their ids, where they are there and good."""
        where = sa.and_(api_keys.c.id.in_(list(ids)), api_keys.c.revoked_at.is_(None))
        with self._write() as connection:
            connection.execute(sa.update(api_keys).where(where).values(revoked_at=now()))
