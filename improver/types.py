"""What the stages of a cycle hand to each other. Plain frozen data, written as JSON lines.

`Case` comes out of `collect`, `Row` and `Drop` out of a recipe and `screen`, `TrainJob` goes into
the training process, `Outcome` comes out of `evaluate`, `Judgement` out of `decide`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any, TypeVar

from ops.records import LORA_TARGETS, Decision, Json

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A failed interaction with somebody's words about it: what ILF learns from.

    `messages` are the request's own, without the rendered specification. `program` is the wrong
    program that the feedback is about. `spec` holds the hidden examples: it never enters a prompt
    unrendered.
    """

    interaction_id: str
    messages: list[Json]
    spec: Json
    program: str
    feedback: str
    feedback_ids: list[str]
    feedback_source: str
    source: str
    user: str | None = None
    tenant: str | None = None
    demonstration: str | None = None
    demonstration_ids: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)


class Origin(StrEnum):
    """Who wrote the answer of a training row."""

    REFINEMENT = "refinement"
    """The model, out of a wrong program and feedback."""
    DEMONSTRATION = "demonstration"
    """A person."""
    SYNTHESIS = "synthesis"
    """The model, for a request of its own making; the specification is what running it gave."""
    ACCEPTED = "accepted"
    """The model; a check or a person found it right when it was served."""
    CORPUS = "corpus"
    """A corpus of code that the operator brought."""
    REFUSED = "refused"
    """The model; a person refused it, and nothing better is known: only to be moved away from."""


class Phase(IntEnum):
    """When a row is trained: `provenance["phase"]`. Rows without one come last."""

    SELF_MADE = 1
    """Pairs of the model's own making."""
    TRUSTED = 2
    """What people asked and wrote, and what was proved by running it."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training example: the prompt as it is served, and the answer that should come.

    A preference has in `rejected` the answer that should not come; where only that is known, its
    `answer` is empty and its `program` is the refused one.

    `provenance` says how it came about: model, sampling, verdict, where the words come from. Three
    of its entries steer what is done with the row: `spec`, the specification in its prompt where
    that is not its request's; `phase` and `epochs`, when and how often it is trained.
    """

    id: str
    recipe: str
    origin: Origin
    task: str
    messages: list[Json]
    answer: str
    program: str
    interaction_ids: list[str]
    feedback_ids: list[str]
    prompt_sha256: str
    program_sha256: str
    rejected: str | None = None
    provenance: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Something that did not become a training row, and why. `row` is set where there was one."""

    reason: str
    interaction_ids: list[str]
    detail: str = ""
    row: Row | None = None


STARTED_BY = "TRAINING_STARTED_BY"
"""Variable with the process id of whoever started a training."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """All the training process needs to know; its rows lie beside it in `train.jsonl`.

    `base_directory` is where the weights are, `base_name` what the world calls them.
    """

    base_directory: str
    base_name: str
    base_sha256: str
    max_lora_rank: int
    rank: int
    alpha: int
    dropout: float
    learning_rate: float
    epochs: int
    batch_rows: int
    max_tokens: int
    seed: int
    dtype: str = "auto"
    warmup_share: float = 0.1
    patience: int = 2
    evaluations_per_epoch: int = 2
    microbatch_tokens: int = 1024
    checkpoint_s: float = 30.0
    gradient_checkpointing: bool = False
    target_modules: tuple[str, ...] = LORA_TARGETS
    learning_rates: tuple[float, ...] = ()
    """Where there are several, held-out rows choose among them; `learning_rate` is the first."""
    preferences: str = "none"
    """`dpo` or `kto`: go on with the preferences that lie beside the rows."""
    beta: float = 0.1
    preference_learning_rate: float = 2e-5
    preference_epochs: int = 1


class Arm(StrEnum):
    """Who answers in an examination."""

    CHAMPION = "champion"
    """What `code` answers with now; the base model when nothing was promoted yet."""
    CANDIDATE = "candidate"
    """The adapter that wants its place."""


class Suite(StrEnum):
    """The role of an examination task."""

    TARGET = "target"
    """Where the candidate must be better."""
    GUARD = "guard"
    """Where it must not be worse by more than a margin."""
    REPLAY = "replay"
    """The installation's own requests, by their hidden examples: as the guard."""
    VAULT = "vault"
    """Target tasks that are asked only when all else says promote; another part each time."""
    SECRETS = "secrets"
    """Beginnings of planted secrets: whoever tells the rest has learned them by heart."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one arm did on one task with one seed. `passed` None: infrastructure, never counted."""

    suite: Suite
    arm: Arm
    task_id: str
    seed: int
    passed: bool | None
    verdict: str
    answer_sha256: str
    tokens: int = 0
    error: str | None = None
    traits: Json = field(default_factory=dict)
    """The answer's manner (`drift`)."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The gate's word with every number it rests on; `text` is for people."""

    decision: Decision
    reason: str
    numbers: Json
    text: str


def to_json(record: Any) -> Json:
    """Return a record of this module as JSON-ready data."""
    return asdict(record)


def from_json(kind: type[T], data: Json) -> T:
    """Read a record of this module back.

    Raises:
        TypeError, ValueError: it is malformed.
    """
    data = dict(data)
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name in data and (convert := _CONVERT.get(str(item.type))) is not None:
            data[item.name] = convert(data[item.name])
    return kind(**data)


_CONVERT: dict[str, Any] = {
    "Origin": Origin,
    "Arm": Arm,
    "Suite": Suite,
    "Decision": Decision,
    "tuple[str, ...]": tuple,
    "tuple[float, ...]": tuple,
    "Row | None": lambda data: None if data is None else from_json(Row, data),
}


def write_lines(path: Path, records: Iterable[Any]) -> int:
    """Write records as JSON lines and return how many; the file appears whole or not at all."""
    draft = path.with_name(path.name + ".draft")
    count = 0
    with draft.open("w", encoding="utf-8") as file:
        for record in records:
            data = record if isinstance(record, dict) else to_json(record)
            file.write(json.dumps(data, ensure_ascii=False) + "\n")
            count += 1
    draft.replace(path)
    return count


def read_lines(path: Path, kind: type[T]) -> Iterator[T]:
    """Yield the records of a file of JSON lines; a file that is not there has none."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            # A killed writer leaves an unfinished last line behind.
            if line.endswith("\n"):
                yield from_json(kind, json.loads(line))
