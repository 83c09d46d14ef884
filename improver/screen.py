"""Look at every row once more before it may be trained on.

In this order: the firewall again (it fails closed); secrets; exact duplicates and near-duplicates
of rows before; caps for one task, one user and one tenant. Trusted rows are looked at first, so
that they stay where two are alike. A program that holds the expected values of its own checks is
flagged and kept: 9 % of the ILF paper's human programs do (legitimate strings, mostly).

What a person should look at is not dropped but put into quarantine: rows that hold a secret, and
rows of users who are not trusted. Quarantined rows are kept apart with their reasons and trained on
by nobody; their secrets are taken out.

Not covered: personal data in prose; caps per key, since the record does not say which key asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from improver.firewall import (
    LEAST_CODE_SHINGLES,
    Firewall,
    code_shingles,
    code_tokens,
    jaccard,
)
from improver.types import Drop, Phase, Row
from ops.records import Json
from ops.redaction import Scrubber, secrets_in
from sandbox.spec import Spec, show_value
from sandbox.values import decode

TWIN = 0.95
"""Programs this alike, variables renamed, are one program."""


@dataclass(frozen=True, kw_only=True)
class Caps:
    """How much one source may weigh, and whose rows a person looks at first."""

    per_user: int = 200
    per_tenant: int | None = None
    per_task: int = 4
    distrusted: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Screened:
    """The rows that may be trained on, and the others with their reasons."""

    rows: list[Row]
    drops: list[Drop]
    quarantine: list[Drop]
    report: Json = field(default_factory=dict)


def screen(
    rows: Sequence[Row], specs: Mapping[str, Spec], firewall: Firewall, caps: Caps | None = None
) -> Screened:
    """Screen rows.

    Args:
        rows: what recipes built.
        specs: for each row's id, the specification it was accepted by, hidden part included.
        firewall: the examination's fingerprints.
        caps: how much one source may weigh.

    Raises:
        FirewallError: the firewall has no fingerprints.
    """
    seen = _Seen(caps or Caps())
    kept: dict[str, Row] = {}
    drops: list[Drop] = []
    quarantine: list[Drop] = []
    for row in sorted(rows, key=lambda row: -int(row.provenance.get("phase", Phase.TRUSTED))):
        hit = check_row(row, specs[row.id], firewall)
        suspicion = None if hit else seen.suspicion(row)
        if suspicion is not None:
            quarantine.append(_dropped(scrubbed(row, Scrubber()), *suspicion))
        elif hit is not None or (hit := seen.repeats(row)) is not None:
            drops.append(_dropped(row, *hit))
        else:
            seen.take(row)
            literal = holds_expected_values(row.program, specs[row.id])
            provenance = row.provenance | {"holds_expected_values": literal}
            kept[row.id] = replace(row, provenance=provenance)
    clean = [kept[row.id] for row in rows if row.id in kept]
    report = {
        "rows": len(clean),
        "dropped": dict(Counter(drop.reason for drop in drops)),
        "quarantined": dict(Counter(drop.reason for drop in quarantine)),
        "flagged_holding_expected_values": sum(
            row.provenance["holds_expected_values"] for row in clean
        ),
        "examination_tasks": firewall.size,
    }
    return Screened(rows=clean, drops=drops, quarantine=quarantine, report=report)


class _Seen:
    """What was kept so far."""

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._ids: set[str] = set()
        self._programs: set[tuple[str, str, str | None]] = set()
        self._shingles: list[tuple[frozenset[str], Row]] = []
        self._users: Counter[str] = Counter()
        self._tenants: Counter[str] = Counter()
        self._tasks: Counter[str] = Counter()

    def suspicion(self, row: Row) -> tuple[str, str] | None:
        """Why a person should look at a row; None where nobody needs to."""
        asked = Counter(kind for text in _texts(row.messages) for kind in secrets_in(text))
        answered = Counter(secrets_in(row.answer)) + Counter(secrets_in(row.program))
        answered += Counter(secrets_in(row.rejected or ""))
        # A prompt with a secret's mark in it is as it was recorded; an answer must not learn one.
        del asked["redacted"]
        if kinds := sorted(asked + answered):
            return "holds a secret", ", ".join(kinds)
        user = row.provenance.get("user")
        if user is not None and user in self._caps.distrusted:
            return "user is not trusted", str(user)
        return None

    def repeats(self, row: Row) -> tuple[str, str] | None:
        """Why a row brings nothing new, or too much of one source; None where it may stay."""
        caps = self._caps
        if row.id in self._ids or _answer_of(row) in self._programs:
            return "duplicate", ""
        if self._is_twin(row):
            return "near-duplicate program", ""
        if self._tasks[row.task] >= caps.per_task:
            return "too many rows of one task", ""
        user, tenant = (row.provenance.get(name) for name in ("user", "tenant"))
        if user is not None and self._users[user] >= caps.per_user:
            return "too many rows of one user", ""
        full = caps.per_tenant is not None and self._tenants[str(tenant)] >= caps.per_tenant
        if tenant is not None and full:
            return "too many rows of one tenant", str(tenant)
        return None

    def _is_twin(self, row: Row) -> bool:
        grams = _grams(row.program)
        return len(grams) >= LEAST_CODE_SHINGLES and any(
            jaccard(grams, other) >= TWIN
            for other, of in self._shingles
            if not _of_one_program(row, of)
        )

    def take(self, row: Row) -> None:
        """Remember a row that is kept."""
        self._ids.add(row.id)
        self._programs.add(_answer_of(row))
        self._shingles.append((_grams(row.program), row))
        self._tasks[row.task] += 1
        if (user := row.provenance.get("user")) is not None:
            self._users[user] += 1
        if (tenant := row.provenance.get("tenant")) is not None:
            self._tenants[tenant] += 1


def _answer_of(row: Row) -> tuple[str, str, str | None]:
    """What a row teaches: a preference is not the row that imitates its better answer."""
    return row.prompt_sha256, row.program_sha256, row.rejected


def _of_one_program(row: Row, other: Row) -> bool:
    """Whether two rows are meant to share a program: its request, and one that was made for it.

    Inverse-Instruct makes such pairs, of a corpus or of what another recipe learns too.
    """
    snippet = row.provenance.get("snippet")
    if snippet is not None and snippet == other.provenance.get("snippet"):
        return True
    return row.recipe != other.recipe and not set(row.interaction_ids).isdisjoint(
        other.interaction_ids
    )


def _grams(program: str) -> frozenset[str]:
    tokens = code_tokens(program)
    return code_shingles(tokens) if tokens is not None else frozenset()


def _dropped(row: Row, reason: str, detail: str) -> Drop:
    return Drop(reason=reason, detail=detail, interaction_ids=row.interaction_ids, row=row)


def scrubbed(row: Row, scrubber: Scrubber) -> Row:
    """Return a row as it may be kept: recipes read tables and corpora that nobody has scrubbed."""
    return replace(
        row,
        messages=scrubber.value(row.messages),
        answer=scrubber.text(row.answer),
        program=scrubber.text(row.program),
        rejected=None if row.rejected is None else scrubber.text(row.rejected),
        provenance=scrubber.value(row.provenance),
    )


def scrubbed_drop(drop: Drop, scrubber: Scrubber) -> Drop:
    """Return a drop whose row is as it may be kept."""
    return drop if drop.row is None else replace(drop, row=scrubbed(drop.row, scrubber))


def check_row(row: Row, spec: Spec, firewall: Firewall) -> tuple[str, str] | None:
    """Ask the firewall about a row; None where it is clean.

    Raises:
        FirewallError: the firewall has no fingerprints.
    """
    request = next((m["content"] for m in reversed(row.messages) if m["role"] == "user"), None)
    if not isinstance(request, str):
        return "examination: not comparable", "the row has no request that is text"
    # The prompt holds the rendered specification, which would drown a short text's likeness.
    text = request.rsplit("\n\nSpecification:\n", 1)[0]
    task_id = (row.provenance.get("metadata") or {}).get("task_id")
    hit = firewall.check(
        text=text,
        spec=spec,
        program=row.program,
        task_ids=[task_id] if task_id else [],
        around=[*_texts(row.messages), row.answer, row.rejected or ""],
    )
    return None if hit is None else (f"examination: {hit.reason}", hit.exam_id)


def _texts(messages: Sequence[Json]) -> Iterator[str]:
    """All that is text in a conversation."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            yield content
        else:
            yield from (str(part["text"]) for part in content or () if "text" in part)


def holds_expected_values(program: str, spec: Spec) -> bool:
    """Whether a program holds the expected values of all its checks as literals."""
    values = {show_value(decode(e.output)) for e in spec.examples if e.has_output}
    telling = {value for value in values if len(value) > 3}
    return len(telling) >= 2 and all(value in program for value in telling)
