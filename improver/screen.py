"""Look at every row once more before it may be trained on.

The firewall again (it fails closed), exact duplicates and near-duplicates of rows before, a cap per
user, and a flag for programs that hold the expected values of their own checks. The flag drops
nothing: 9 % of the ILF paper's human programs trip it (legitimate strings, mostly).

Not covered: secrets. No maintained detector is among the dependencies, and a home-made one would
promise what it cannot keep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from improver.errors import FirewallError
from improver.firewall import (
    LEAST_CODE_SHINGLES,
    Firewall,
    code_shingles,
    code_tokens,
    jaccard,
)
from improver.types import Drop, Row
from ops.records import Json
from sandbox.spec import Spec, show_value
from sandbox.values import decode

TWIN = 0.95
"""Programs this alike, variables renamed, are one program."""
ROWS_PER_USER = 200


@dataclass(frozen=True, kw_only=True)
class Screened:
    """The rows that may be trained on, and the others with their reasons."""

    rows: list[Row]
    drops: list[Drop]
    report: Json = field(default_factory=dict)


def screen(rows: Sequence[Row], specs: dict[str, Spec], firewall: Firewall) -> Screened:
    """Screen rows.

    Args:
        rows: what a recipe built.
        specs: for each row's id, the specification it was accepted by, hidden part included.
        firewall: the examination's fingerprints.

    Raises:
        FirewallError: the firewall has no fingerprints.
    """
    kept: list[Row] = []
    drops: list[Drop] = []
    programs: set[tuple[str, str]] = set()
    shingles: list[frozenset[str]] = []
    users: Counter[str] = Counter()
    flagged = 0
    for row in rows:
        reason, detail = "", ""
        tokens = code_tokens(row.program)
        grams = code_shingles(tokens) if tokens is not None else frozenset()
        user = row.provenance.get("user")
        hit = check_row(row, specs[row.id], firewall)
        if hit is not None:
            reason, detail = hit
        elif (row.prompt_sha256, row.program_sha256) in programs:
            reason = "duplicate"
        elif len(grams) >= LEAST_CODE_SHINGLES and any(jaccard(grams, o) >= TWIN for o in shingles):
            reason = "near-duplicate program"
        elif user is not None and users[user] >= ROWS_PER_USER:
            reason = "too many rows of one user"
        if reason:
            drops.append(
                Drop(reason=reason, detail=detail, interaction_ids=row.interaction_ids, row=row)
            )
            continue
        programs.add((row.prompt_sha256, row.program_sha256))
        shingles.append(grams)
        if user is not None:
            users[user] += 1
        literal = holds_expected_values(row.program, specs[row.id])
        flagged += literal
        provenance = row.provenance | {"holds_expected_values": literal}
        kept.append(replace(row, provenance=provenance))
    report = {
        "rows": len(kept),
        "dropped": dict(Counter(drop.reason for drop in drops)),
        "flagged_holding_expected_values": flagged,
        "examination_tasks": firewall.size,
    }
    return Screened(rows=kept, drops=drops, report=report)


def check_row(row: Row, spec: Spec, firewall: Firewall) -> tuple[str, str] | None:
    """Ask the firewall about a row; None where it is clean.

    Raises:
        FirewallError: the firewall has no fingerprints.
    """
    request = next((m["content"] for m in reversed(row.messages) if m["role"] == "user"), None)
    if not isinstance(request, str):
        raise FirewallError(f"row {row.id} has no request to compare")
    # The prompt holds the rendered specification, which would drown a short text's likeness.
    text = request.rsplit("\n\nSpecification:\n", 1)[0]
    task_id = (row.provenance.get("metadata") or {}).get("task_id")
    hit = firewall.check(
        text=text, spec=spec, program=row.program, task_ids=[task_id] if task_id else []
    )
    return None if hit is None else (f"examination: {hit.reason}", hit.exam_id)


def holds_expected_values(program: str, spec: Spec) -> bool:
    """Whether a program holds the expected values of all its checks as literals."""
    values = {show_value(decode(e.output)) for e in spec.examples if e.has_output}
    telling = {value for value in values if len(value) > 3}
    return len(telling) >= 2 and all(value in program for value in telling)
