"""ILF's own refiner: an adapter trained on people's corrections, which serves one cycle's build.

Taken are failed requests for which somebody gave the program that should have been. The adapter
learns (task, wrong program, feedback) → that program, and then refines other requests: those it was
trained on are not refined, as in the paper, whose 44 corrections come from tasks of their own. It
is registered, so that every refinement names who wrote it, but it is no candidate for `code`.

Source: step 3 of ILF (arXiv 2303.16749), where the refiner is a copy of the base, tuned on 44
human refinements. Deviations: LoRA; a correction need not be a small edit of the wrong program.

Not here: training (`trainer`), asking the refiner (`recipes.ilf`).
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from improver import evaluate, screen
from improver.attempts import Judge, together
from improver.firewall import Firewall
from improver.policy import Policy
from improver.recipes.base import case_seed
from improver.recipes.ilf import correction, task_of
from improver.types import Case, Row
from ops.records import AdapterState
from ops.registry import Registry
from ops.store import Store
from sandbox.spec import Spec, parse_spec


async def corrections(
    cases: Sequence[Case],
    pool: Judge,
    firewall: Firewall,
    caps: screen.Caps,
    *,
    wanted: int,
    seed: int,
) -> tuple[list[Row], list[Case]]:
    """Make the refiner's training rows, and say which cases are left to be refined.

    Args:
        cases: failed interactions with feedback.
        pool: judges the corrections; one that fails teaches nothing.
        firewall: the examination's fingerprints.
        caps: how much one source may weigh.
        wanted: how many rows; drawn at random where there are more.
        seed: of the drawing.

    Raises:
        SandboxError: the sandbox failed.
        FirewallError: the firewall has no fingerprints.
    """
    offered = [case for case in cases if case.demonstration is not None]
    random.Random(case_seed(seed, "refiner")).shuffle(offered)
    made = await together(correction(case, pool) for case in offered)
    pairs = [(case, row) for case, row in zip(offered, made, strict=True) if row is not None]
    specs: Mapping[str, Spec] = {row.id: parse_spec(case.spec) for case, row in pairs}
    clean = screen.screen([row for _, row in pairs], specs, firewall, caps).rows[:wanted]
    taught = {row.task for row in clean}
    return clean, [case for case in cases if task_of(case) not in taught]


@asynccontextmanager
async def serving(
    store: Store, registry: Registry, policy: Policy, version: int, *, timeout_s: float
) -> AsyncIterator[str]:
    """Have the server load a version for the length of the block; yields why it refused, if so.

    Raises:
        SwapError: no server said anything within `timeout_s`.
        PolicyError: the server cannot be asked.
    """
    if registry.get(version).state is not AdapterState.BUILT:
        yield f"it is {registry.get(version).state}"
        return
    registry.nominate(version)
    try:
        yield await evaluate.wait_for_candidate(
            store, registry, policy, version, timeout_s=timeout_s
        )
    finally:
        registry.nominate(None)
