"""Retention: the record forgets what is older, or more, than the settings allow.

A task in the server that deletes the oldest interactions, with their attempts, executions and
feedback, in small batches between other writes. What adapters were trained on stays written as
ids (`ops.store`, lineage), without a text. Nothing is forgotten where no setting says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from functools import partial

from ops import metrics
from ops.errors import StoreError
from ops.records import now
from ops.settings import RetentionSettings
from ops.store import Store
from server.errors import RecordUnavailable
from server.recording import Recorder

log = logging.getLogger(__name__)

BATCH_ROWS = 200
PAUSE_S = 0.05
"""Between batches, so that recordings and other processes get their turn."""


class Retention:
    """The loop that forgets.

    Args:
        store: the record.
        recorder: whose writer thread deletes.
        settings: how much is kept.
    """

    def __init__(self, store: Store, recorder: Recorder, settings: RetentionSettings) -> None:
        self._store = store
        self._recorder = recorder
        self._settings = settings
        self._stopping = asyncio.Event()

    @property
    def wanted(self) -> bool:
        """Whether anything is ever to be forgotten."""
        settings = self._settings
        return any(
            limit is not None
            for limit in (settings.max_age_days, settings.max_interactions, settings.max_bytes)
        )

    async def run(self) -> None:
        """Sweep now and then until `stop`."""
        while self.wanted and not self._stopping.is_set():
            try:
                await self.sweep()
            except (StoreError, RecordUnavailable) as error:  # the loop's edge
                metrics.loop_errors_total.labels("retention").inc()
                log.warning("nothing was forgotten: %s", error, extra={"action": "retention"})
            try:
                async with asyncio.timeout(self._settings.sweep_every_s):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    def stop(self) -> None:
        """End the loop after the batch that is being deleted."""
        self._stopping.set()

    async def sweep(self) -> int:
        """Forget what the settings say; return how many interactions that were.

        Raises:
            StoreError, RecordUnavailable: the record cannot be read or written.
        """
        settings, forgotten = self._settings, 0
        if settings.max_age_days is not None:
            before = now() - timedelta(days=settings.max_age_days)
            forgotten += await self._drop("age", lambda: self._store.oldest(BATCH_ROWS, before))
            await self._recorder.write(lambda: self._store.delete_strays(before))
        if settings.max_interactions is not None:
            forgotten += await self._drop("count", self._too_many)
        if settings.max_bytes is not None:
            forgotten += await self._drop("size", self._too_big)
        if forgotten:
            log.info("forgot %d interactions", forgotten, extra={"action": "retention"})
        return forgotten

    def _too_many(self) -> list[str]:
        most = self._settings.max_interactions
        excess = 0 if most is None else self._store.count_interactions() - most
        return self._store.oldest(min(excess, BATCH_ROWS)) if excess > 0 else []

    def _too_big(self) -> list[str]:
        most, size = self._settings.max_bytes, self._store.size_bytes()
        if most is None or size is None or size <= most:
            return []
        return self._store.oldest(BATCH_ROWS // 8)  # few: rows differ much in size

    async def _drop(self, reason: str, find: Callable[[], list[str]]) -> int:
        """Delete what `find` names until it names nothing, or nothing of it is there."""
        dropped = 0
        while not self._stopping.is_set():
            ids = await asyncio.to_thread(find)
            if not ids:
                break
            number = await self._recorder.write(partial(self._store.delete, ids))
            metrics.forgotten_total.labels(reason).inc(number)
            dropped += number
            if number == 0:
                break
            await asyncio.sleep(PAUSE_S)
        return dropped
