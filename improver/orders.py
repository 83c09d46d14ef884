"""What its user wants of a running cycle: asked every few seconds while it runs.

Pausing and cancelling move the cycle's state in the record (`Store.pause_cycle`, `cancel_cycle`),
from any process. Whoever runs the cycle sees that it is no longer `running` and stops at once,
also in the middle of a stage: the training process is ended and keeps its last checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from improver.errors import Halted
from ops.errors import StoreUnavailable
from ops.records import CycleState
from ops.store import Store

logger = logging.getLogger(__name__)

LOOK_S = 2.0


@asynccontextmanager
async def heeded(store: Store, cycle_id: str) -> AsyncIterator[None]:
    """Run the block for as long as the cycle is `running`.

    Raises:
        Halted: it was paused or cancelled; the block was cancelled where it stood.
    """
    work = asyncio.current_task()
    if work is None:
        raise RuntimeError("orders are heeded by a task")
    watch = asyncio.create_task(_watch(store, cycle_id, work), name="cycle-orders")
    try:
        yield
    except asyncio.CancelledError:
        # Cancelled from outside as well (a stop, a lost lease): that goes first.
        if not watch.done() or watch.cancelled() or work.uncancel() > 0:
            raise
        raise Halted(f"cycle {cycle_id} is {watch.result()}") from None
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def _watch(store: Store, cycle_id: str, work: asyncio.Task[object]) -> CycleState:
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            state = (await asyncio.to_thread(store.cycle, cycle_id)).state
        except StoreUnavailable as error:
            logger.warning("no orders: %s", error, extra={"action": "cycle_orders"})
            continue
        if state is not CycleState.RUNNING:
            work.cancel()
            return state
