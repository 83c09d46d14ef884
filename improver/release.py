"""Make a decision true: promote or reject in the registry, and see that the server follows.

Nothing is decided here. The server swaps by itself when the registry says so, proves what it loaded
and leaves a receipt; a promotion that it cannot prove is taken back by the server (see
`ops.registry.Registry.refuse`). Where a share of the traffic is set for it, a promotion makes the
candidate the canary, and what happens to it then is the server's affair (`server.canary`): the
cycle does not wait for it.
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
_ON_THE_WAY = (AdapterState.BUILT, AdapterState.EXAMINED, AdapterState.SHADOW)


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


async def into_shadow(
    store: Store,
    registry: Registry,
    policy: Policy,
    version: int,
    *,
    reason: str,
    timeout_s: float,
    poll_s: float = 0.2,
) -> str:
    """Let a promoted candidate answer where nobody sees it; repeating it changes nothing.

    Returns:
        Nothing once the server answers with it; else why it cannot.

    Raises:
        SwapError: no server loaded it within `timeout_s`.
        PolicyError: the server cannot be asked.
    """
    adapter = registry.get(version)
    if adapter.state is AdapterState.EXAMINED:
        registry.shadow(version, actor=ACTOR, reason=reason)
    elif adapter.state is AdapterState.SHADOW:
        registry.nominate(version)  # it was resumed: the pause had taken it back
    else:
        return f"it is {adapter.state}"
    give_up = time.monotonic() + timeout_s
    while adapter.name not in await policy.models():
        if registry.get(version).state is AdapterState.REJECTED:
            return store.transitions(version)[-1].reason
        if time.monotonic() > give_up:
            raise SwapError(f"no server loaded {adapter.name} within {timeout_s:.0f} s")
        await asyncio.sleep(poll_s)
    return ""


async def release(
    store: Store,
    registry: Registry,
    policy: Policy,
    version: int,
    judgement: Judgement,
    *,
    timeout_s: float,
    poll_s: float = 0.2,
    against: int | None = None,
    canary_share: float = 0.0,
) -> Release:
    """Promote or reject; after a promotion wait until the server answers with the version.

    Safe to repeat: what was done before a kill is not done again.

    Args:
        store: the record.
        registry: the adapters.
        policy: the server.
        version: the candidate.
        judgement: the gate's word.
        timeout_s: how long the server may take to swap.
        poll_s: seconds between two looks.
        against: the version it was examined against, 0 for the base model: another champion that
            has come since makes the word worthless. None: whichever.
        canary_share: share of the requests for `code` that it answers first; 0: it is the champion.

    Raises:
        SwapError: the server did not swap within `timeout_s`; the registry keeps its word.
        PolicyError: the server cannot be asked.
    """
    if judgement.decision is not Decision.PROMOTE:
        return _reject(registry, version, judgement)
    reason = _move(registry, version, judgement, against=against, canary_share=canary_share)
    if reason:
        return Release(state=AdapterState.REJECTED, reason=reason)
    history = store.transitions(version)
    crowned = [t.at for t in history if t.to_state is AdapterState.CHAMPION]
    if not crowned:
        # The canary, or somebody has rejected it meanwhile.
        return Release(state=registry.get(version).state, reason=history[-1].reason)
    await _answering(registry, policy, version, timeout_s=timeout_s, poll_s=poll_s)
    after_s = (now() - crowned[-1]).total_seconds()
    state = registry.get(version).state
    kept = state is AdapterState.CHAMPION
    receipts = await _receipts(store, version, crowned[-1], poll_s)
    swap = _swap(receipts[0], after_s) if receipts else None
    reason = judgement.reason if kept else (receipts[0].reason if receipts else "taken back")
    return Release(state=state, reason=reason, swap=swap)


def _reject(registry: Registry, version: int, judgement: Judgement) -> Release:
    """Take out of the way what the gate did not find better."""
    adapter, reason = registry.get(version), judgement.reason
    if judgement.decision is Decision.CONTINUE:
        reason = f"undecided within the budget: {reason}"
    if adapter.state in (*_ON_THE_WAY, AdapterState.CANARY):
        registry.reject(version, actor=ACTOR, reason=reason, evidence=judgement.numbers)
    elif registry.at(Alias.CANDIDATE) == adapter:
        registry.nominate(None)
    return Release(state=AdapterState.REJECTED, reason=reason)


def _move(
    registry: Registry,
    version: int,
    judgement: Judgement,
    *,
    against: int | None,
    canary_share: float,
) -> str:
    """Make the candidate champion or canary, unless that was done; return why it may not be."""
    if registry.get(version).state not in _ON_THE_WAY:
        return ""
    champion = registry.at(Alias.CHAMPION)
    now_at = champion.version if champion is not None else 0
    if against is not None and now_at != against:
        reason = f"another champion ({_name(now_at)}) came while it was examined"
        registry.reject(version, actor=ACTOR, reason=reason, evidence=judgement.numbers)
        return reason
    numbers, reason = judgement.numbers, judgement.reason
    if canary_share:
        evidence = numbers | {"share": canary_share}
        registry.canary(version, actor=ACTOR, reason=reason, evidence=evidence)
    else:
        registry.promote(version, actor=ACTOR, reason=reason, evidence=numbers, over=against)
    return ""


async def _answering(
    registry: Registry, policy: Policy, version: int, *, timeout_s: float, poll_s: float
) -> None:
    """Wait until the server answers with the version, or it is not the champion any more.

    Raises:
        SwapError: neither came about in time.
    """
    give_up = time.monotonic() + timeout_s
    while await policy.champion_version() != version:
        if registry.get(version).state is not AdapterState.CHAMPION:
            return
        if time.monotonic() > give_up:
            raise SwapError(
                f"{_name(version)} is promoted, but no server answers with it after "
                f"{timeout_s:.0f} s"
            )
        await asyncio.sleep(poll_s)


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


def _name(version: int) -> str:
    return f"code@v{version}" if version else "the base model"


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
