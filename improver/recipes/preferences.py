"""Preferences: rows with a better and a worse answer, for DPO, or one judged alone, for KTO.

DPO (arXiv 2305.18290) learns from pairs: accepted and refused, edited and original, verified and
failed. KTO (arXiv 2402.01306) learns from answers judged one by one, and takes pairs apart. For
code, preferences from execution are known to help (PLUM, arXiv 2406.06887), at sizes far above the
starter models'.

Nothing is asked of a model here. A person's program is run first, where checks are there to run it
by: one that fails is no better answer. Both answers are shown to the firewall. A row without a
better answer has an empty `answer` and can only be moved away from; rows of this recipe are never
trained on as if they were answers to imitate (`dataset` keeps them apart).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from improver.attempts import together
from improver.recipes.base import (
    Built,
    Tools,
    fenced,
    live_messages,
    messages_sha256,
    request_text,
)
from improver.signals import Kind, Signal
from improver.types import Case, Drop, Origin, Row, from_json, to_json
from ops.records import Json
from sandbox.errors import SandboxError, SpecError
from sandbox.extract import program_sha256
from sandbox.spec import Spec, parse_spec
from sandbox.types import INFRASTRUCTURE


@dataclass(frozen=True, kw_only=True)
class Options:
    """`loss` is what the rows are for: `dpo` takes pairs only."""

    loss: Literal["dpo", "kto"] = "dpo"


class Preferences:
    """The recipe.

    Args:
        options: See there.
        signals: What the record says of answers (`signals.collect_signals`).
    """

    name = "preferences"

    def __init__(self, options: Options, *, signals: Sequence[Signal]) -> None:
        self._options = options
        self._signals = signals

    async def build(self, cases: Sequence[Case], tools: Tools) -> Built:
        """Make a row of each signal; failed interactions (`cases`) play no part."""
        done = await together(self._once(signal, tools) for signal in self._signals)
        made = [from_json(Row, one["row"]) for one in done if "row" in one]
        drops = [from_json(Drop, one["drop"]) for one in done if "drop" in one]
        rows = list({row.id: row for row in made}.values())
        report: Json = {
            "loss": self._options.loss,
            "signals": len(self._signals),
            "pairs": sum(row.rejected is not None and bool(row.answer) for row in rows),
            "kept_alone": sum(row.rejected is None for row in rows),
            "refused_alone": sum(not row.answer for row in rows),
            "by_kind": dict(Counter(row.provenance["preference"] for row in rows)),
        }
        return Built(rows=rows, drops=drops, report=report)

    async def _once(self, signal: Signal, tools: Tools) -> Json:
        made = await self._make(signal, tools)
        tools.on_case()
        if isinstance(made, Row):
            return {"row": to_json(made)}
        return {"drop": to_json(made)}

    async def _make(self, signal: Signal, tools: Tools) -> Row | Drop:
        try:
            spec = parse_spec(signal.spec)
        except SpecError as error:
            return _drop(signal, "spec not readable", str(error))
        if self._options.loss == "dpo" and not signal.is_pair:
            return _drop(signal, "judged alone: DPO needs pairs")
        if why := await self._unproved(signal, spec, tools):
            return _drop(signal, *why)
        row = make_row(signal, spec)
        for program in filter(None, (signal.better, signal.worse)):
            hit = tools.firewall.check(
                text=request_text(signal.messages),
                spec=spec,
                program=program,
                task_ids=[signal.metadata["task_id"]] if signal.metadata.get("task_id") else [],
            )
            if hit is not None:
                return _drop(signal, f"examination: {hit.reason}", hit.exam_id, row)
        return row

    async def _unproved(self, signal: Signal, spec: Spec, tools: Tools) -> tuple[str, str] | None:
        """Why a person's program is no better answer; None where it is, or nobody can tell."""
        if signal.kind is not Kind.EDIT or signal.better is None or not spec.has_checks:
            return None
        try:
            verification = await tools.pool.check(signal.better, spec)
        except SandboxError as error:
            return "sandbox error", str(error)
        if verification.verdict in INFRASTRUCTURE:
            return "sandbox error", str(verification.verdict)
        return None if verification.verified else ("edit fails", str(verification.verdict))


def make_row(signal: Signal, spec: Spec) -> Row:
    """The row of a signal: the live prompt, and both answers in the form that is served."""
    messages = live_messages(signal.messages, spec)
    prompt = messages_sha256(messages)
    program = signal.better or signal.worse or ""
    origin = Origin.REFUSED
    if signal.better is not None:
        origin = Origin.DEMONSTRATION if signal.kind is Kind.EDIT else Origin.ACCEPTED
    digests = [program_sha256(one) if one else "" for one in (signal.better, signal.worse)]
    return Row(
        id=messages_sha256([{"preference": [prompt, *digests]}])[:24],
        recipe=Preferences.name,
        origin=origin,
        task=prompt,
        messages=messages,
        answer=fenced(signal.better) if signal.better is not None else "",
        rejected=fenced(signal.worse) if signal.worse is not None else None,
        program=program,
        interaction_ids=signal.interaction_ids,
        feedback_ids=signal.feedback_ids,
        prompt_sha256=prompt,
        program_sha256=program_sha256(program),
        provenance={
            "preference": str(signal.kind),
            "spec": spec.to_json(),
            "source": signal.source,
            "user": signal.user,
            "tenant": signal.tenant,
            "model": signal.model,
            "metadata": signal.metadata,
        },
    )


def _drop(signal: Signal, reason: str, detail: str = "", row: Row | None = None) -> Drop:
    return Drop(reason=reason, detail=detail, interaction_ids=signal.interaction_ids, row=row)
