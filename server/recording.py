"""Recording: one writer thread in front of the store, many recordings a commit.

A reply awaits `record` before its last byte leaves, so what was acknowledged is durable. The
thread takes whatever has queued up meanwhile into one transaction: the disk is waited for once per
batch, not once per request. While the store cannot be written, `require` refuses requests before
they cost anything, and the thread tries again by itself. Reading the record is the routes' matter.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from ops import metrics, tracing
from ops.errors import Conflict, StoreError
from ops.records import Heartbeat, Interaction, Json, now
from ops.redaction import Scrubber
from ops.store import Recording, Store
from server.errors import RecordUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")
MAX_BATCH = 256
RETRY_S = 1.0
HEARTBEAT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class _Job:
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    recording: Recording | None = None
    call: Callable[[], Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Issued:
    """An answer on its way: whose it is, and how many choices it will have."""

    tenant: str
    choices: int


class Recorder:
    """Writes to the store from one thread of its own. Start it before use, close it after.

    Args:
        store: the record.
        scrubber: what `record` passes every row through; whoever writes otherwise uses it too.
        process: the name of its heartbeat.
    """

    def __init__(
        self, store: Store, scrubber: Scrubber | None = None, *, process: str = "server"
    ) -> None:
        self._store = store
        self.scrubber = scrubber or Scrubber()
        self._process = process
        self.state: Callable[[], Json] = dict
        """What heartbeats say of this process; called in the writer thread."""
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._issued: dict[str, Issued] = {}
        self._expected: set[str] = set()
        self._failure: str | None = None
        self._beaten_at = 0.0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Write what is queued and end the thread."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    @property
    def failure(self) -> str | None:
        """Why the store cannot be written; None while it can."""
        return self._failure

    def require(self) -> None:
        """Refuse work that could not be recorded.

        Raises:
            RecordUnavailable: the last write failed and none has succeeded since.
        """
        if self._failure is not None:
            raise RecordUnavailable(f"the record cannot be written: {self._failure}")

    async def record(self, recording: Recording) -> None:
        """Make a recording durable.

        Raises:
            RecordUnavailable: it was not written.
        """
        with tracing.span("record", request_id=recording.interaction.id):
            await self._submit(recording=recording)

    async def write(self, call: Callable[[], T]) -> T:
        """Run another write of the store in the writer thread, in order with the recordings.

        Raises:
            RecordUnavailable: the store cannot be written.
            StoreError: what else `call` raises of it (`NotFound`, `Conflict`).
        """
        result: T = await self._submit(call=call)
        return result

    async def forget(self, find: Callable[[], Interaction]) -> list[str]:
        """Delete an interaction and all that hangs on it; return the adapters it has taught.

        Args:
            find: looks it up in the writer thread, and may refuse to.

        Raises:
            RecordUnavailable, StoreError: as in `write`.
        """

        def delete() -> list[str]:
            row = find()
            taught = self._store.adapters_taught_by(row.id)
            self._store.delete([row.id])
            return [adapter.name for adapter in taught]

        names = await self.write(delete)
        metrics.forgotten_total.labels("request").inc()
        return names

    # --- answers that are still being streamed -------------------------------------------------

    def issue(self, interaction_id: str, *, tenant: str, choices: int) -> None:
        """Note that a client knows this id though its interaction is not durable yet."""
        self._issued[interaction_id] = Issued(tenant=tenant, choices=choices)

    def settle(self, interaction_id: str) -> None:
        """Note that the interaction is durable, or will never be."""
        self._issued.pop(interaction_id, None)
        self._expected.discard(interaction_id)

    def issued(self, interaction_id: str) -> Issued | None:
        """What is known of an answer that is still on its way; None for all others."""
        return self._issued.get(interaction_id)

    def expect(self, interaction_ids: Collection[str]) -> None:
        """Note that feedback on these was kept before them. For the writer thread."""
        self._expected.update(interaction_ids)

    # --- the thread ---------------------------------------------------------------------------

    async def _submit(
        self, recording: Recording | None = None, call: Callable[[], Any] | None = None
    ) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.put(_Job(future=future, loop=loop, recording=recording, call=call))
        return await future

    def _run(self) -> None:
        self._beat()
        while True:
            try:
                job = self._queue.get(timeout=RETRY_S if self._failure else HEARTBEAT_S)
            except queue.Empty:
                self._beat()
                continue
            if job is None:
                return
            batch, closing = self._gather(job)
            self._write_all(batch)
            if time.monotonic() - self._beaten_at > HEARTBEAT_S:
                self._beat()
            if closing:
                return

    def _gather(self, first: _Job) -> tuple[list[_Job], bool]:
        """Take what has queued up behind `first`; say whether the end was among it."""
        batch = [first]
        while len(batch) < MAX_BATCH:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return batch, True
            batch.append(job)
        return batch, False

    def _write_all(self, batch: list[_Job]) -> None:
        run: list[_Job] = []
        for job in batch:
            if job.recording is not None:
                run.append(job)
                continue
            self._add(run)
            run = []
            self._call(job)
        self._add(run)

    def _add(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        started = time.perf_counter()
        try:
            recordings = [self.scrubber.recording(j.recording) for j in jobs if j.recording]
            adopting = self._expected.intersection(r.interaction.id for r in recordings)
            self._store.add(recordings, adopting=adopting)
            self._expected -= adopting
        except Exception as error:  # the loop's edge: the thread must outlive any row
            if len(jobs) > 1 and not _down(error):
                # One bad row must not take its neighbours with it.
                for job in jobs:
                    self._add([job])
                return
            self._failed("add", error)
            for job in jobs:
                _reject(job, error)
            return
        metrics.store_write_seconds.observe(time.perf_counter() - started)
        self._failure = None
        for job in jobs:
            _resolve(job, None)

    def _call(self, job: _Job) -> None:
        if job.call is None:
            return
        try:
            result = job.call()
        except Exception as error:  # the loop's edge
            if _down(error):
                self._failed("call", error)
            _reject(job, error)
            return
        self._failure = None
        _resolve(job, result)

    def _beat(self) -> None:
        """Write a heartbeat; while the store is failing this is how its recovery is seen."""
        self._beaten_at = time.monotonic()
        beat = Heartbeat(
            process=self._process,
            at=now(),
            pid=os.getpid(),
            host=socket.gethostname(),
            state=self.state(),
        )
        try:
            self._store.beat(beat)
        except Exception as error:  # the loop's edge
            self._failed("beat", error)
        else:
            if self._failure is not None:
                log.warning("the record can be written again", extra={"action": "store_up"})
            self._failure = None

    def _failed(self, operation: str, error: Exception) -> None:
        metrics.store_errors_total.labels(operation).inc()
        if not isinstance(error, StoreError):
            metrics.loop_errors_total.labels("recorder").inc()
        if _down(error):
            self._failure = str(error)
        log.error(
            "the record could not be written: %s",
            error,
            extra={"action": "store_error", "operation": operation},
            exc_info=None if isinstance(error, StoreError) else error,
        )


def _down(error: Exception) -> bool:
    return isinstance(error, StoreError) and not isinstance(error, (Conflict, LookupError))


def _resolve(job: _Job, result: Any) -> None:
    def settle() -> None:
        if not job.future.done():
            job.future.set_result(result)

    _call_soon(job, settle)


def _reject(job: _Job, error: Exception) -> None:
    wrapped: Exception = error
    if _down(error) or (job.recording is not None):
        wrapped = RecordUnavailable(f"the record could not be written: {error}")
        wrapped.__cause__ = error

    def settle() -> None:
        if not job.future.done():
            job.future.set_exception(wrapped)

    _call_soon(job, settle)


def _call_soon(job: _Job, settle: Callable[[], None]) -> None:
    try:
        job.loop.call_soon_threadsafe(settle)
    except RuntimeError:  # the loop is closed: nobody waits any more
        log.warning("a write ended after its request", extra={"action": "late_write"})
