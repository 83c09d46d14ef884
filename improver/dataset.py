"""Make the training files out of screened rows, and write their lineage into the record.

`train.jsonl` and `held_out.jsonl` are split by groups of near-duplicate tasks (`likeness`), drawn
by a hash of the group and the seed: a row stays on its side from cycle to cycle as long as no
likeness joins its group to another. Preferences have two files of their own, `preferences.jsonl`
and `preferences_held_out.jsonl`, split alike, so that no refused answer is ever imitated. The
lineage says of every row, kept or dropped, which interactions and feedback it comes from.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from improver.errors import NotEnough
from improver.likeness import groups
from improver.types import Drop, Row, write_lines
from ops.records import DatasetRow, Json
from ops.store import Store

LEAST_HELD_OUT = 2
LARGEST_SHARE = 2.0
"""Held out is at most so many times the share that is wanted: one big group may be half of all."""
PREFERENCES = "preferences"
"""The recipe whose rows have files of their own."""
FILES = ("train", "held_out", "preferences", "preferences_held_out")
"""What `write` leaves, as JSON lines."""
HELP = {
    "ilf": "More failed requests with hidden examples and comments would help.",
    "gift4code": "More tables would help (--tables), or requests with visible examples.",
    "inverse_instruct": "More code that is right would help (--corpus), or accepted answers.",
    "preferences": "More accepted and refused answers of one request would help, or corrections.",
}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The files' rows and the numbers."""

    train: list[Row]
    held_out: list[Row]
    preferences: list[Row] = field(default_factory=list)
    preferences_held_out: list[Row] = field(default_factory=list)
    report: Json = field(default_factory=dict)


def split(rows: Sequence[Row], *, held_out_share: float, seed: int) -> Dataset:
    """Split rows by groups of tasks that are alike.

    Fewer than two held-out rows say nothing: then all rows are trained on, without early stop.
    """
    rows = sorted(rows, key=lambda row: row.id)
    group_of = groups(rows)
    drawn = _drawn(group_of, held_out_share, seed)
    sides: dict[tuple[bool, bool], list[Row]] = {
        (preference, held): [] for preference in (False, True) for held in (False, True)
    }
    for row in rows:
        sides[row.recipe == PREFERENCES, group_of[row.id] in drawn].append(row)
    for preference in (False, True):
        if len(sides[preference, True]) < LEAST_HELD_OUT:
            both = [*sides[preference, False], *sides[preference, True]]
            sides[preference, False] = sorted(both, key=lambda row: row.id)
            sides[preference, True] = []
    train, held_out = sides[False, False], sides[False, True]
    report = {
        "train": len(train),
        "held_out": len(held_out),
        "preferences": len(sides[True, False]),
        "preferences_held_out": len(sides[True, True]),
        "groups": len(set(group_of.values())),
        "by_recipe": dict(Counter(row.recipe for row in rows)),
        "by_origin": dict(Counter(str(row.origin) for row in rows)),
        "by_feedback": dict(
            Counter(words for row in rows if (words := row.provenance.get("feedback_source")))
        ),
    }
    return Dataset(
        train=train,
        held_out=held_out,
        preferences=sides[True, False],
        preferences_held_out=sides[True, True],
        report=report,
    )


def _drawn(group_of: Mapping[str, str], held_out_share: float, seed: int) -> set[str]:
    """The groups that are held out."""
    sizes = Counter(group_of.values())
    most = LARGEST_SHARE * held_out_share * len(group_of)
    drawn: set[str] = set()
    held = 0
    for group in sorted(sizes, key=lambda group: _share(group, seed)):
        if _share(group, seed) >= held_out_share:
            break
        if held + sizes[group] <= max(most, LEAST_HELD_OUT):
            drawn.add(group)
            held += sizes[group]
    return drawn


def require(rows: Sequence[Row], least: Mapping[str, int], drops: Sequence[Drop]) -> None:
    """Refuse to train on too little.

    Args:
        rows: what is left.
        least: how many rows are wanted of each recipe that took part, were it alone; together
            they need no more than the most modest of them.
        drops: what was lost on the way.

    Raises:
        NotEnough: says how many rows there are, how many are wanted, and where the others went.
    """
    recipe, wanted = min(least.items(), key=lambda item: item[1])
    if len(rows) >= wanted:
        return
    reasons = Counter(drop.reason for drop in drops).most_common(3)
    lost = "; ".join(f"{count} times {reason!r}" for reason, count in reasons)
    raise NotEnough(
        f"{len(rows)} training rows, {wanted} are wanted (improver.{recipe}.min_rows)"
        + (f"; dropped: {lost}" if lost else "")
        + f". {' '.join(HELP[name] for name in least if name in HELP)}"
    )


def write(directory: Path, dataset: Dataset) -> None:
    """Write the files."""
    for name in FILES:
        write_lines(directory / f"{name}.jsonl", getattr(dataset, name))


def keep_lineage(store: Store, cycle_id: str, rows: Sequence[Row], drops: Sequence[Drop]) -> None:
    """Write where every row comes from, also of those that were dropped."""
    lineage = {row.id: _lineage(cycle_id, row, None) for row in rows}
    for drop in drops:
        if drop.row is not None and drop.row.id not in lineage:
            lineage[drop.row.id] = _lineage(cycle_id, drop.row, drop.reason)
    store.replace_dataset(cycle_id, list(lineage.values()))


def drop_from_lineage(store: Store, cycle_id: str, row_ids: Sequence[str], reason: str) -> None:
    """Note that rows which were kept were not trained on after all."""
    gone = set(row_ids)
    if gone:
        rows = [
            replace(row, kept=False, reason=reason) if row.row_id in gone else row
            for row in store.dataset(cycle_id)
        ]
        store.replace_dataset(cycle_id, rows)


def _lineage(cycle_id: str, row: Row, reason: str | None) -> DatasetRow:
    return DatasetRow(
        cycle_id=cycle_id,
        row_id=row.id,
        recipe=row.recipe,
        kept=reason is None,
        reason=reason,
        interaction_ids=row.interaction_ids,
        feedback_ids=row.feedback_ids,
        prompt_sha256=row.prompt_sha256,
        program_sha256=row.program_sha256,
    )


def _share(task: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}|{task}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48
