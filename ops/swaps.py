"""Waiting for the servers to prove a swap.

Moving an alias in the registry is a wish; a swap receipt of a server is the fact. This waits for
the receipts that follow a wish. It moves nothing itself.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta

from ops.errors import RegistryError
from ops.records import SwapReceipt, now
from ops.store import Store

ALIVE_S = 35.0
"""A server that gave a sign of life within this time is taken to be alive: they do every 10 s."""
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The moment before a wish: what lives, and the newest receipt there is."""

    servers: tuple[str, ...]
    seen: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a wish."""

    servers: tuple[str, ...]
    receipts: tuple[SwapReceipt, ...]
    """One for each server that answered."""

    @property
    def silent(self) -> tuple[str, ...]:
        """The servers that said nothing in time."""
        heard = {receipt.server for receipt in self.receipts}
        return tuple(server for server in self.servers if server not in heard)

    def raise_if_refused(self) -> None:
        """Raise `RegistryError` with the server's reason when one refused."""
        for receipt in self.receipts:
            if not receipt.accepted:
                raise RegistryError(f"{receipt.server} refused the swap: {receipt.reason}")


def living_servers(store: Store) -> tuple[str, ...]:
    """Return the names of the servers that gave a sign of life lately."""
    since = now() - timedelta(seconds=ALIVE_S)
    return tuple(
        beat.process
        for beat in store.heartbeats()
        if beat.process.startswith("server") and beat.at >= since
    )


def mark(store: Store) -> Mark:
    """Remember how things are before an alias is moved."""
    return Mark(
        servers=living_servers(store),
        seen=frozenset(receipt.id for receipt in store.receipts(limit=200)),
    )


def wait(store: Store, before: Mark, version: int, timeout_s: float) -> Result:
    """Wait until every living server has proved or refused a version (0: the base model)."""
    deadline = time.monotonic() + timeout_s
    while True:
        newest: dict[str, SwapReceipt] = {}
        for receipt in store.receipts(version=version, limit=200):  # newest first
            # What one of several engines made of it is not yet what the server did.
            of_one = "replica" in receipt.probe
            if not of_one and receipt.id not in before.seen and receipt.server in before.servers:
                newest.setdefault(receipt.server, receipt)
        if len(newest) == len(before.servers) or time.monotonic() > deadline:
            return Result(servers=before.servers, receipts=tuple(newest.values()))
        time.sleep(_POLL_S)
