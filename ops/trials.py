"""Trials on live traffic: is a version worse than what answered before it, while users ask?

There are two. A *canary* answers a share of the requests for `code` beside the champion. A *watch*
follows every promotion: the new champion is set beside the one before it, which stays loaded as the
way back and may keep a small share of requests (the control); without one it is set beside what the
one before it did last. Three things are compared, each by evidence that may be looked at after
every request (`ops.evidence`):

    verified   requests with a specification: did the answer pass?
    accepted   answers of which somebody said so: were they accepted?
    slow       requests of one kind: did this one take `latency_ratio` times as long as the other's?
               H0 is that this happens at most every second time. Only where both answer at once.

The version is worse when any of the three reaches 3 / error rate (Bonferroni), so the chance to
take back one that is no worse is at most the error rate. It is kept when it is proved better, or
not proved worse within the budget of requests or hours.

What this takes for granted: that requests of both arms are alike. Who asks decides the arm, so that
nobody is moved to and fro (`server.traffic`); with few who ask, a hard question that one of them
repeats weighs on one arm. Of a watch without a control nothing is known about how the time of day
changes what is asked. Requests that are not recorded (`store: false`), that failed
(`server.faults`), or that name a version, are not seen.

All of it is read from the record, so every server sees the same, and a new one goes on where
another was. Nothing is decided here: `server.canary` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from enum import StrEnum
from statistics import fmean, median
from typing import Any

from ops.evidence import evidence, pairs
from ops.records import (
    AdapterState,
    Alias,
    Decision,
    Json,
    LiveAnswer,
    LiveOpinion,
    Transition,
)
from ops.store import Store

ALIAS = "code"
"""The model name that means the champion, or an arm of a trial."""
MEASURES = 3
MOST_BEFORE = 1000
"""Requests of the one before that a watch without a control looks back at."""
MOST_IN_A_PAIR = 8
"""Requests of the arm that is asked more which are set beside one of the other."""
SMALL_SHARE = 0.1
"""Of a canary for which nobody said a share."""


class Kind(StrEnum):
    """Which trial it is."""

    CANARY = "canary"
    """A version that may become the champion answers a share."""
    WATCH = "watch"
    """A version that has become the champion answers all, or nearly all."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a trial goes by.

    `canary_share` and `control_share` are shares of the requests for `code`; a budget is used up by
    requests that the version on trial has answered, or by hours, whichever comes first. Watching is
    off where `watch_hours` is 0.
    """

    canary_share: float = 0.0
    canary_requests: int = 200
    canary_hours: float = 24.0
    watch_requests: int = 200
    watch_hours: float = 24.0
    control_share: float = 0.0
    error_rate: float = 0.05
    tolerated_loss: float = 0.0
    latency_ratio: float = 2.0

    @classmethod
    def among(cls, settings: Mapping[str, Any]) -> Rules:
        """Take the rules out of the settings of releases."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})

    @property
    def threshold(self) -> float:
        """Evidence of one measure that proves something."""
        return MEASURES / self.error_rate


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial that is under way. Version 0 is the base model."""

    kind: Kind
    version: int
    """What is on trial."""
    against: int
    since: datetime
    share: float
    """Of requests: a canary's own, or in a watch the control's."""

    @property
    def name(self) -> str:
        """What is on trial, by its name."""
        return _name(self.version)

    @property
    def split(self) -> int:
        """The version that gets the share: whatever is not the champion."""
        return self.version if self.kind is Kind.CANARY else self.against


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a trial says so far: promote (keep it), reject (take it back), or continue."""

    decision: Decision
    reason: str
    numbers: Json


def current(store: Store, rules: Rules) -> Trial | None:
    """Return the trial that is under way, as the registry has it; a canary comes before a watch."""
    at = store.aliases()
    champion, canary = at.get(Alias.CHAMPION, 0), at.get(Alias.CANARY)
    crowned = _entered(store.transitions(champion), AdapterState.CHAMPION) if champion else None
    if canary is not None:
        begun = _entered(store.transitions(canary), AdapterState.CANARY)
        if begun is None:
            return None
        share = begun.evidence.get("share")
        return Trial(
            kind=Kind.CANARY,
            version=canary,
            against=champion,
            since=max(begun.at, crowned.at) if crowned else begun.at,
            share=share if isinstance(share, float) else rules.canary_share or SMALL_SHARE,
        )
    if crowned is None or rules.watch_hours == 0:
        return None
    # What was champion before has been watched; a way back that was taken is not left again.
    done = store.transitions(champion)[-1].id != crowned.id
    if done or crowned.from_state is AdapterState.RETIRED:
        return None
    return Trial(
        kind=Kind.WATCH,
        version=champion,
        against=at.get(Alias.ROLLBACK, 0),
        since=crowned.at,
        share=rules.control_share,
    )


def settled(store: Store, rules: Rules) -> int | None:
    """Return the champion, while nothing is on trial, examined or in shadow; None else."""
    at = store.aliases()
    champion = at.get(Alias.CHAMPION)
    if champion is None or {Alias.CANARY, Alias.CANDIDATE} & at.keys():
        return None
    return champion if current(store, rules) is None else None


def judge(store: Store, trial: Trial, rules: Rules, *, elapsed_s: float) -> Verdict:
    """Compare the arms as far as the record goes.

    Args:
        store: the record.
        trial: what is compared.
        rules: what it goes by.
        elapsed_s: how long the trial has been under way.
    """
    versions = (trial.version, trial.against)
    answers = store.live_answers(ALIAS, versions, since=trial.since)
    opinions = store.live_opinions(ALIAS, versions, since=trial.since)
    alone = trial.kind is Kind.WATCH and trial.share == 0
    if alone:
        mine = [a for a in answers if a.adapter_version == trial.version]
        said = [o for o in opinions if o.adapter_version == trial.version]
        other, before = (trial.against,), trial.since
        answers = mine + store.live_answers(ALIAS, other, before=before, limit=MOST_BEFORE)
        told = store.live_opinions(ALIAS, other, before=before, limit=MOST_BEFORE)
        # What was said later would change which values meet.
        opinions = said + [o for o in told if o.at < before]
    verified = quality(trial, _verdicts(answers), rules, alone=alone)
    accepted = quality(trial, _opinions(opinions), rules, alone=alone)
    slow = {} if alone else _slowness(trial, answers, rules)
    requests = sum(a.adapter_version == trial.version for a in answers)
    numbers: Json = {
        "trial": str(trial.kind),
        "version": trial.version,
        "against": trial.against,
        "share": trial.share,
        "since": trial.since.isoformat(),
        "elapsed_s": round(elapsed_s, 3),
        "requests": {"candidate": requests, "champion": len(answers) - requests},
        "verified": verified,
        "accepted": accepted,
        "slow": slow,
        "threshold": rules.threshold,
        "rules": asdict(rules),
    }
    decision, reason = _word(trial, numbers, rules, elapsed_s)
    return Verdict(decision=decision, reason=reason, numbers=numbers)


def describe(numbers: Json) -> str:
    """Return the numbers of a trial as a few sentences."""
    this, other = _name(numbers["version"]), _name(numbers["against"])
    asked = numbers["requests"]
    lines = [f"{this} answered {asked['candidate']} requests, {other} {asked['champion']}."]
    for word in ("verified", "accepted"):
        found = numbers[word]
        if found.get("pairs"):
            lines.append(
                f"{word.capitalize()}: {this} {_part(found['candidate'])}, {other} "
                f"{_part(found['champion'])}; evidence worse {found['e_worse']:.3g}, better "
                f"{found['e_better']:.3g} ({numbers['threshold']:.3g} would prove it)."
            )
    slow = numbers["slow"]
    if slow.get("pairs"):
        lines.append(
            f"Time: {this} {slow['candidate_s']:.2f} s, {other} {slow['champion_s']:.2f} s "
            f"(medians); much slower in {slow['slower']} of {slow['pairs']} comparisons, evidence "
            f"{slow['e_worse']:.3g}."
        )
    return "\n".join(lines)


def _word(trial: Trial, numbers: Json, rules: Rules, elapsed_s: float) -> tuple[Decision, str]:
    other = _name(trial.against)
    for word in ("verified", "accepted"):
        found = numbers[word]
        if found.get("e_worse", 0.0) >= rules.threshold:
            return Decision.REJECT, (
                f"worse than {other} on live traffic: {_part(found['candidate'])} {word} instead "
                f"of {_part(found['champion'])} (evidence {found['e_worse']:.3g}, "
                f"{rules.threshold:.3g} proves it)"
            )
    slow = numbers["slow"]
    if slow.get("e_worse", 0.0) >= rules.threshold:
        return Decision.REJECT, (
            f"slower than {other} on live traffic: {slow['candidate_s']:.2f} s instead of "
            f"{slow['champion_s']:.2f} s a request, more than {rules.latency_ratio:g} times as "
            f"long in {slow['slower']} of {slow['pairs']} comparisons"
        )
    for word in ("verified", "accepted"):
        found = numbers[word]
        if found.get("e_better", 0.0) >= rules.threshold:
            return Decision.PROMOTE, (
                f"better than {other} on live traffic: {_part(found['candidate'])} {word} instead "
                f"of {_part(found['champion'])}"
            )
    canary = trial.kind is Kind.CANARY
    most = rules.canary_requests if canary else rules.watch_requests
    hours = rules.canary_hours if canary else rules.watch_hours
    asked = numbers["requests"]["candidate"]
    if asked >= most or elapsed_s >= hours * 3600:
        return Decision.PROMOTE, f"not worse than {other} in {asked} live requests"
    return Decision.CONTINUE, f"{asked} of {most} live requests"


Mark = tuple[datetime, int, bool]
"""When, which version, and whether it went well."""


def quality(trial: Trial, marks: Sequence[Mark], rules: Rules, *, alone: bool) -> Json:
    """Return both arms' shares of what went well, and the evidence about them.

    Args:
        trial: what is compared.
        marks: of both versions, in any order.
        rules: what it goes by.
        alone: the other version's marks are from before, not from meanwhile.
    """
    came = [(at, version == trial.version, good) for at, version, good in sorted(marks)]
    mine = [good for _, own, good in came if own]
    theirs = [good for _, own, good in came if not own]
    if alone:
        # The newest of the past first; each is used once.
        met = [(float(a), float(b)) for a, b in zip(mine, reversed(theirs), strict=False)]
    else:
        met = _met(trial, [(own, float(good)) for _, own, good in came], fmean)
    scores = [a - b for a, b in met]
    return {
        "candidate": {"judged": len(mine), "passed": sum(mine)},
        "champion": {"judged": len(theirs), "passed": sum(theirs)},
        "pairs": len(met),
        "e_worse": evidence([-s for s in scores], rules.tolerated_loss),
        "e_better": evidence(scores),
    }


def _slowness(trial: Trial, answers: Sequence[LiveAnswer], rules: Rules) -> Json:
    kinds: dict[tuple[str, bool], list[tuple[datetime, bool, float]]] = {}
    for a in answers:
        kind = a.endpoint, a.verified is None
        own = a.adapter_version == trial.version
        kinds.setdefault(kind, []).append((a.created_at, own, a.duration_s))
    met = [
        pair
        for came in kinds.values()
        for pair in _met(trial, [(own, seconds) for _, own, seconds in sorted(came)], median)
    ]
    if not met:
        return {"pairs": 0}
    slower = sum(mine > rules.latency_ratio * theirs for mine, theirs in met)
    return {
        "candidate_s": round(median(mine for mine, _ in met), 4),
        "champion_s": round(median(theirs for _, theirs in met), 4),
        "pairs": len(met),
        "slower": slower,
        "e_worse": evidence([1.0] * slower + [-1.0] * (len(met) - slower)),
    }


def _met(
    trial: Trial, came: Sequence[tuple[bool, float]], middle: Callable[[list[float]], float]
) -> list[tuple[float, float]]:
    """Pairs of what the version on trial did and what the other did, whichever is asked more."""
    few = trial.version == trial.split
    most = max(1, min(MOST_IN_A_PAIR, round(1 / trial.share) - 1)) if trial.share else 1
    found = [(one, middle(many)) for one, many in pairs([(own == few, v) for own, v in came], most)]
    return found if few else [(theirs, mine) for mine, theirs in found]


def _verdicts(answers: Sequence[LiveAnswer]) -> list[Mark]:
    return [
        (a.created_at, a.adapter_version, a.verified) for a in answers if a.verified is not None
    ]


def _opinions(opinions: Sequence[LiveOpinion]) -> list[Mark]:
    return [(o.at, o.adapter_version, o.accepted is True) for o in opinions]


def _entered(history: Sequence[Transition], state: AdapterState) -> Transition | None:
    """When a version last came into a state from another one."""
    found = [t for t in history if t.to_state is state and t.from_state is not state]
    return found[-1] if found else None


def _name(version: int) -> str:
    return f"code@v{version}" if version else "the base model"


def _part(arm: Json) -> str:
    judged = arm["judged"]
    return f"{arm['passed']} of {judged} ({arm['passed'] / judged:.0%})" if judged else "none"
