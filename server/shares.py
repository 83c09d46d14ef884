"""Shares: what keys have left of a minute is agreed on with the other servers, through the record.

A task in a server whose record is in PostgreSQL. No request waits for it: each server counts by
itself and settles with the record now and then, so a key may get more than its share by what the
other servers admit within one such pause. While the record does not answer, each server goes by
what it knew last.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from ops import metrics
from ops.errors import StoreError
from ops.records import Share
from ops.store import Store
from server.auth import Keys

log = logging.getLogger(__name__)


class Shares:
    """The loop that settles.

    Args:
        store: the record.
        keys: whose shares are settled.
        poll_s: seconds between two settlements.
    """

    def __init__(self, store: Store, keys: Keys, *, poll_s: float) -> None:
        self._store = store
        self._keys = keys
        self._poll_s = poll_s
        self._stopping = asyncio.Event()

    async def settle(self) -> None:
        """Tell the record what was taken here, and take over what is left.

        Raises:
            StoreError: the record does not answer; what was taken is told the next time.
        """
        buckets = {
            (holder.key.sha256, what): bucket
            for holder in self._keys.holders
            for what, bucket in holder.buckets.items()
        }
        taken = [
            Share(key_sha256=key, what=what, per_minute=bucket.per_minute, level=bucket.unsettled())
            for (key, what), bucket in buckets.items()
        ]
        try:
            left = await asyncio.to_thread(self._store.settle_shares, taken)
        except BaseException:
            for share in taken:
                buckets[share.key_sha256, share.what].unsettle(share.level)
            raise
        for share in left:
            buckets[share.key_sha256, share.what].settle(share.level)

    async def run(self) -> None:
        """Settle now and then until `stop`, and once more at the end."""
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._stopping.wait()
            try:
                await self.settle()
            except StoreError as error:  # the loop's edge
                metrics.loop_errors_total.labels("shares").inc()
                log.warning("the shares were not settled: %s", error, extra={"action": "shares"})

    def stop(self) -> None:
        """End the loop."""
        self._stopping.set()
