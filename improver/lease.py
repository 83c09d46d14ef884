"""One improver at a time: the lease `improver` in the store, renewed while it is held.

A process that was killed holds it for `TTL_S` more; whoever comes next waits that long. A lease
that is lost (the machine slept, the database was away too long) cancels the work done under it:
another improver may have begun.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from improver.errors import CycleError
from ops.errors import Conflict, StoreUnavailable
from ops.records import new_id
from ops.store import Store

logger = logging.getLogger(__name__)

NAME = "improver"
TTL_S = 30.0


@asynccontextmanager
async def held(
    store: Store, *, wait_s: float = TTL_S + 5, ttl_s: float = TTL_S
) -> AsyncIterator[None]:
    """Hold the lease for the length of the block.

    Args:
        store: the record.
        wait_s: how long to wait for it; at least its time to live outlives a killed holder.
        ttl_s: how long it lasts without renewal.

    Raises:
        CycleError: another improver holds it, or it was lost while it was held.
    """
    holder = f"{socket.gethostname()}:{os.getpid()}:{new_id()}"
    await _take(store, holder, wait_s, ttl_s)
    work = asyncio.current_task()
    renewal = asyncio.create_task(_renew(store, holder, ttl_s, work), name="lease-renewal")
    try:
        yield
    except asyncio.CancelledError:
        # Cancelled from outside as well: that goes first.
        if renewal.done() and not renewal.cancelled() and (work is None or work.uncancel() == 0):
            raise CycleError("the lease was lost; another improver may be at work") from None
        raise
    finally:
        renewal.cancel()
        with suppress(asyncio.CancelledError):
            await renewal
        with suppress(StoreUnavailable):
            await asyncio.to_thread(store.drop_lease, NAME, holder)


async def _take(store: Store, holder: str, wait_s: float, ttl_s: float) -> None:
    give_up = time.monotonic() + wait_s
    told = False
    while True:
        try:
            await asyncio.to_thread(store.take_lease, NAME, holder, ttl_s)
        except Conflict as error:
            if time.monotonic() > give_up:
                raise CycleError(f"another improver is at work: {error}") from error
            if not told:
                logger.info("waiting: %s", error, extra={"action": "lease_wait"})
                told = True
            await asyncio.sleep(min(0.5, ttl_s / 10))
        else:
            return


async def _renew(
    store: Store, holder: str, ttl_s: float, work: asyncio.Task[object] | None
) -> None:
    """Renew until cancelled; when that fails for a whole lifetime, cancel the work."""
    renewed = time.monotonic()
    while True:
        await asyncio.sleep(ttl_s / 4)
        try:
            await asyncio.to_thread(store.take_lease, NAME, holder, ttl_s)
        except (Conflict, StoreUnavailable) as error:
            lost = isinstance(error, Conflict) or time.monotonic() - renewed > ttl_s
            logger.warning("renewing the lease: %s", error, extra={"action": "lease_renewal"})
            if lost:
                if work is not None:
                    work.cancel()
                return
        else:
            renewed = time.monotonic()
