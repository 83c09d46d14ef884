"""`/health`, `/ready` and `/metrics`: is the process alive, can it answer, how is it doing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ops import metrics
from ops.errors import StoreError
from server.state import State, current

router = APIRouter(tags=["operation"])

COUNT_EVERY_S = 15.0
"""Counting rows reads whole indexes; scrapes that come faster see the last numbers."""


@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the process lives."""
    return {"status": "ok"}


@router.get("/ready", responses={503: {"description": "Not ready; `reasons` says why."}})
async def ready(request: Request) -> Response:
    """Say whether requests would be answered, by which adapter, and by how many engines.

    A version that is being loaded, or cannot be, is `pending`: what answered before still does.
    """
    state = current(request)
    reasons = state.adapters.reasons()
    if state.recorder.failure is not None:
        reasons.append(f"the record cannot be written: {state.recorder.failure}")
    champion = state.adapters.champion
    body: dict[str, Any] = {
        "ready": not reasons,
        "reasons": reasons,
        "pending": state.adapters.pending(),
        "engines": state.adapters.counts(),
        "adapter": champion.public if champion is not None else None,
        "merged": state.merged.in_use if state.merged is not None else None,
        "base_model": state.adapters.base.id if state.adapters.base is not None else None,
        "sandbox": state.judge.tier.label,
    }
    if reasons:
        return JSONResponse(body, status_code=503, headers={"Retry-After": "2"})
    return JSONResponse(body)


@router.get("/metrics", response_class=Response)
async def scrape(request: Request) -> Response:
    """Return all metrics in Prometheus' text format."""
    state = current(request)
    counts: _Counts = request.state.counts
    await counts.refresh(state)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


class _Counts:
    """Numbers that live in the record rather than in this process."""

    def __init__(self) -> None:
        self._at = float("-inf")

    async def refresh(self, state: State) -> None:
        if time.monotonic() - self._at < COUNT_EVERY_S:
            return
        self._at = time.monotonic()
        try:
            rows, cycles = await asyncio.to_thread(
                lambda: (state.store.count(), state.store.count_cycles())
            )
        except StoreError:
            metrics.store_errors_total.labels("count").inc()
            return
        for table, number in rows.items():
            metrics.log_rows.labels(table).set(number)
        metrics.cycles.clear()
        for (recipe, cycle_state), number in cycles.items():
            metrics.cycles.labels(recipe, cycle_state.value).set(number)


def new_counts() -> _Counts:
    """Return the part of the state that only `/metrics` uses."""
    return _Counts()
