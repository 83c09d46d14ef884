"""What the parts of the store share: one database, opened, brought up to date, in transactions.

Each part is a class over `Database` that knows its own tables and no other part, so that each can
be read, typed and used alone; `ops.store.Store` is all of them over one database.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from ops.errors import Conflict, StoreError, StoreUnavailable
from ops.tables.schema import TABLE_OF, leases

R = TypeVar("R")


class Database:
    """An open database. Thread-safe; make one per process and close it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = _make_engine(url)
        self._sqlite = self._engine.dialect.name == "sqlite"

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the database at `url`, creating it or migrating it to this version's schema.

        Raises:
            StoreUnavailable: the database cannot be reached, or its disk is full or read-only.
            StoreError: its schema comes from a newer version of Journeyman.
        """
        store = cls(url)
        try:
            store._migrate()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @property
    def kind(self) -> str:
        """The database it is in: `sqlite` or `postgresql`."""
        return str(self._engine.dialect.name)

    def ping(self) -> None:
        """Raise `StoreUnavailable` unless the database answers and can be written."""
        with self._write() as connection:
            connection.execute(sa.delete(leases).where(leases.c.name == ""))

    def _insert(self, connection: Connection, records: Sequence[Any]) -> None:
        if records:
            table = TABLE_OF[type(records[0])]
            # Not `asdict`: it would copy every message and choice deeply, on the hot path.
            connection.execute(sa.insert(table), [dict(vars(record)) for record in records])

    def _select(self, record: type[R], query: sa.Select[Any]) -> list[R]:
        names = [field.name for field in fields(record)]  # type: ignore[arg-type]
        with self._read() as connection:
            rows = connection.execute(query).mappings().all()
            return [record(**{name: row[name] for name in names}) for row in rows]

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with translated(), self._engine.connect() as connection:
            connection.execution_options(immediate=True)
            with connection.begin():
                yield connection

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations"))
        try:
            with self._write() as connection:
                if not self._sqlite:
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(7261023)"))
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:
            raise StoreError(
                f"the database at {self._engine.url!r} has a schema that this version of "
                f"Journeyman does not know: {error}"
            ) from error


def lock(connection: Connection, table: sa.Table) -> None:
    """Let nobody else write a table until the transaction ends, where others could.

    On SQLite nobody can: `BEGIN IMMEDIATE` has let one writer in.
    """
    if connection.dialect.name != "sqlite":
        connection.execute(sa.text(f"LOCK TABLE {table.name} IN EXCLUSIVE MODE"))


def insert_into(connection: Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """Return an insert that knows `ON CONFLICT`, which both databases have, each its own."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table)
    return postgresql.insert(table)


def parts(ids: Collection[str] | Collection[int], size: int = 500) -> Iterator[list[Any]]:
    """Lists that are short enough for one statement."""
    every = list(ids)
    for start in range(0, len(every), size):
        yield every[start : start + size]


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's exceptions into ours."""
    try:
        yield
    except IntegrityError as error:
        raise Conflict(str(error.orig)) from error
    except DBAPIError as error:
        raise StoreUnavailable(str(error.orig)) from error
    except SQLAlchemyError as error:
        raise StoreError(str(error)) from error


def _make_engine(url: str) -> Engine:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed, connect_args={"timeout": 30})
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    return sa.create_engine(parsed, pool_pre_ping=True)


def _configure_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # we emit BEGIN ourselves, see _begin_sqlite
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at once: upgrading a read transaction later can fail with
    # SQLITE_BUSY however long the timeout is.
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
