"""The keyring: follows the API keys of the record, so that they come and go without a restart.

A task in the server. What the settings hold is `app`'s; who may do what is `auth`'s. While the
record does not answer, the keys that were read last stay good.
"""

from __future__ import annotations

import asyncio
import logging

from ops import metrics
from ops.errors import StoreError
from ops.records import ApiKey
from ops.store import Store
from server.auth import Key, Keys

log = logging.getLogger(__name__)


class Keyring:
    """The loop that reads the keys.

    Args:
        store: the record.
        keys: who are told.
        poll_s: seconds between two looks.
    """

    def __init__(self, store: Store, keys: Keys, *, poll_s: float) -> None:
        self._store = store
        self._keys = keys
        self._poll_s = poll_s
        self._seen: list[ApiKey] = []
        self._stopping = asyncio.Event()

    async def read(self) -> None:
        """Take over the keys as they are now.

        Raises:
            StoreError: the record cannot be read.
        """
        found = await asyncio.to_thread(self._store.api_keys)
        if found != self._seen:
            good = good_keys(found)
            self._keys.record(good, ever=bool(found))
            log.info("%d API keys are good", len(good), extra={"action": "keys"})
            self._seen = found

    async def run(self) -> None:
        """Look now and then until `stop`."""
        while not self._stopping.is_set():
            try:
                async with asyncio.timeout(self._poll_s):
                    await self._stopping.wait()
            except TimeoutError:
                pass
            try:
                await self.read()
            except StoreError as error:  # the loop's edge
                metrics.loop_errors_total.labels("keys").inc()
                log.warning("the keys were not read: %s", error, extra={"action": "keys"})

    def stop(self) -> None:
        """End the loop."""
        self._stopping.set()


def good_keys(found: list[ApiKey]) -> list[Key]:
    """Return the keys that were not revoked, as `auth` takes them."""
    return [
        Key(
            name=key.name,
            sha256=key.sha256,
            scopes=frozenset(key.scopes),
            tenant=key.tenant,
            requests_per_minute=key.requests_per_minute,
            tokens_per_minute=key.tokens_per_minute,
            executions_per_minute=key.executions_per_minute,
        )
        for key in found
        if key.revoked_at is None
    ]
