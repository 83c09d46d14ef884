"""Make a decision true: promote or reject in the registry, and see that the server follows.

Nothing is decided here. The server swaps by itself when the registry says so, proves what it loaded
and leaves a receipt; a promotion that it cannot prove is taken back by the server (see
`ops.registry.Registry.refuse`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import datetime

from improver.errors import SwapError
from improver.policy import Policy
from improver.types import Judgement
from ops.errors import OpsError
from ops.records import AdapterState, Alias, Decision, Json, SwapReceipt, now
from ops.registry import Registry
from ops.store import Store

logger = logging.getLogger(__name__)

ACTOR = "improver"
RECEIPT_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Release:
    """What became of the candidate."""

    state: AdapterState
    reason: str
    swap: Json | None = None

    def as_json(self) -> Json:
        """As plain data."""
        return {"state": str(self.state), "reason": self.reason, "swap": self.swap}


def record_examination(registry: Registry, version: int, judgement: Judgement) -> None:
    """Write the gate's numbers to the candidate's history; repeating it changes nothing."""
    if registry.get(version).state is AdapterState.BUILT:
        evidence = judgement.numbers | {"text": judgement.text}
        registry.examined(version, actor=ACTOR, reason=judgement.reason, evidence=evidence)


async def release(
    store: Store,
    registry: Registry,
    policy: Policy,
    version: int,
    judgement: Judgement,
    *,
    timeout_s: float,
    poll_s: float = 0.2,
) -> Release:
    """Promote or reject; after a promotion wait until the server answers with the version.

    Safe to repeat: what was done before a kill is not done again.

    Raises:
        SwapError: the server did not swap within `timeout_s`; the registry keeps its word.
        PolicyError: the server cannot be asked.
    """
    adapter = registry.get(version)
    if judgement.decision is not Decision.PROMOTE:
        reason = judgement.reason
        if judgement.decision is Decision.CONTINUE:
            reason = f"undecided within the budget: {reason}"
        if adapter.state in (
            AdapterState.BUILT,
            AdapterState.EXAMINED,
            AdapterState.SHADOW,
            AdapterState.CANARY,
        ):
            registry.reject(version, actor=ACTOR, reason=reason, evidence=judgement.numbers)
        elif registry.at(Alias.CANDIDATE) == adapter:
            registry.nominate(None)
        return Release(state=AdapterState.REJECTED, reason=reason)
    if adapter.state is not AdapterState.CHAMPION:
        registry.promote(version, actor=ACTOR, reason=judgement.reason, evidence=judgement.numbers)
    history = store.transitions(version)
    decided = [t.at for t in history if t.to_state is AdapterState.CHAMPION][-1]
    give_up = time.monotonic() + timeout_s
    while await policy.champion_version() != version:
        if registry.get(version).state is not AdapterState.CHAMPION:
            break
        if time.monotonic() > give_up:
            raise SwapError(
                f"{adapter.name} is promoted, but no server answers with it after {timeout_s:.0f} s"
            )
        await asyncio.sleep(poll_s)
    after_s = (now() - decided).total_seconds()
    state = registry.get(version).state
    kept = state is AdapterState.CHAMPION
    receipts = await _receipts(store, version, decided, poll_s)
    swap = _swap(receipts[0], after_s) if receipts else None
    reason = judgement.reason if kept else (receipts[0].reason if receipts else "taken back")
    return Release(state=state, reason=reason, swap=swap)


def tidy(registry: Registry, *, keep_recent: int, keep_best: int) -> list[str]:
    """Erase old versions as the settings say; what stands in the way is logged, and no more."""
    try:
        erased = registry.retain(keep_recent=keep_recent, keep_best=keep_best, actor=ACTOR)
    except (OpsError, OSError):
        logger.exception("old adapters could not be erased", extra={"action": "retain"})
        return []
    return [adapter.name for adapter in erased]


async def _receipts(
    store: Store, version: int, since: datetime, poll_s: float
) -> list[SwapReceipt]:
    """The version's receipts, newest first; the one of the swap is written just after it."""
    give_up = time.monotonic() + RECEIPT_S
    while True:
        receipts = store.receipts(version=version)
        if (receipts and receipts[0].at >= since) or time.monotonic() > give_up:
            return receipts
        await asyncio.sleep(poll_s)


def _swap(receipt: SwapReceipt, after_s: float) -> Json:
    return {
        "accepted": receipt.accepted,
        "server": receipt.server,
        "reason": receipt.reason,
        "phases_s": receipt.phases_s,
        "load_and_prove_s": round(sum(receipt.phases_s.values()), 3),
        "answering_after_s": round(after_s, 3),
        "probe": receipt.probe,
    }
