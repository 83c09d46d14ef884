"""The rows that `server` and `improver` exchange through the store, as frozen dataclasses.

Nothing here talks to a database: `ops.tables.schema` says in which table each record is kept.
Times are UTC-aware. Identifiers are UUIDv7 text, so they sort by time.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

Json = dict[str, Any]

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The layers an adapter may change: the improver trains these, the engine takes these."""


def now() -> datetime:
    """Return the current time, UTC-aware."""
    return datetime.now(UTC)


_RANDOM_BITS = 74
_id_lock = threading.Lock()
_last_id = (0, 0)


def new_id() -> str:
    """Return a UUIDv7 (RFC 9562, section 5.7) as text, greater than every one before it.

    48 bits of milliseconds, then random ones. Ids made in one millisecond go up by a random step
    (section 6.2, method 2), so that the order of ids is the order in which a process made them.
    """
    global _last_id
    with _id_lock:
        milliseconds = time.time_ns() // 1_000_000
        number = int.from_bytes(os.urandom(10), "big") >> (80 - _RANDOM_BITS + 1)
        if milliseconds <= _last_id[0]:  # also after the clock was set back
            milliseconds = _last_id[0]
            number = _last_id[1] + 1 + int.from_bytes(os.urandom(4), "big")
        _last_id = (milliseconds, number)
    high, low = number >> 62, number & ((1 << 62) - 1)
    value = milliseconds << 80 | 0x7 << 76 | high << 64 | 0x2 << 62 | low
    return str(uuid.UUID(int=value))


class Source(StrEnum):
    """Where an interaction, execution or piece of feedback comes from."""

    SERVED = "served"
    """Written by this installation's model for a client."""
    IMPORTED = "imported"
    """Brought in by `journeyman import`: another model may have written it."""
    CLIENT = "client"
    """Reported by a client: believed only as far as the client is."""


UPLOADED = "/v1/files"
"""The endpoint of interactions that a client has uploaded in a file."""


class FeedbackSource(StrEnum):
    """Who gave the feedback."""

    HUMAN = "HUMAN"
    MODEL = "MODEL"
    """Words written by a language model."""
    MACHINE = "MACHINE"
    """Derived by a program, for instance from a failing visible example."""


class Metric(StrEnum):
    """The feedback metrics with a fixed meaning. Other names are installation-defined."""

    ACCEPTED = "accepted"
    """bool: the user kept the answer."""
    TESTS_PASSED = "tests_passed"
    """bool: the user's own tests passed."""
    RATING = "rating"
    """float."""
    EDIT_DISTANCE = "edit_distance"
    """float: how far the user moved from the answer."""
    COMMENT = "comment"
    """str: language feedback, what is wrong and how to mend it."""
    DEMONSTRATION = "demonstration"
    """str: the program that should have been."""


class CycleState(StrEnum):
    """Where an improvement cycle stands."""

    QUEUED = "queued"
    """Asked for, not yet taken by an improver."""
    PAUSED = "paused"
    """Asked for, and held back by its user: no improver takes it."""
    RUNNING = "running"
    """Held by an improver whose lease is alive."""
    SUCCEEDED = "succeeded"
    """Ran to its end. Whether its adapter was promoted is a separate question."""
    SKIPPED = "skipped"
    """Not enough to learn from; the report says what is missing."""
    FAILED = "failed"
    """Ended by an error, which is kept."""
    CANCELLED = "cancelled"
    """Ended by its user."""


class AdapterState(StrEnum):
    """The life of an adapter version."""

    BUILT = "built"
    """On disk, complete, never examined."""
    EXAMINED = "examined"
    """The gate has its numbers."""
    SHADOW = "shadow"
    """Examined; loaded beside the champion to answer where nobody sees it."""
    CANARY = "canary"
    """Answers a share of the requests for `code`; a step before it takes the champion's place."""
    CHAMPION = "champion"
    """The alias `code` answers with it."""
    RETIRED = "retired"
    """Was champion; kept as a way back."""
    REJECTED = "rejected"
    """Not promoted, or refused by the engine; the reason is kept."""
    ERASED = "erased"
    """Its files are gone."""


class Alias(StrEnum):
    """Names that point at an adapter version, or at the base model when unset."""

    CHAMPION = "champion"
    """What `code` means."""
    CANDIDATE = "candidate"
    """Loaded beside the champion while it is examined; reached by its pinned name only."""
    CANARY = "canary"
    """Answers a share of the requests for `code`, beside the champion (`ops.trials`)."""
    ROLLBACK = "rollback"
    """Where `journeyman rollback` goes; kept loaded."""


class Tainted(StrEnum):
    """What becomes of a champion that had learned from data that were erased."""

    ROLLBACK = "rollback"
    """It leaves service at once; the last clean one answers, or the base model."""
    KEEP = "keep until retrained"
    """It answers until a cycle promotes another, and is never the way back then."""


class Decision(StrEnum):
    """The word of the gate."""

    PROMOTE = "promote"
    REJECT = "reject"
    CONTINUE = "continue"
    """Undecided within its budget: not promoted, may be tried again with more data."""


class PersonalKind(StrEnum):
    """What of a person's data is taken out of the record."""

    EMAIL = "email"
    PHONE = "phone"
    PAYMENT_CARD = "payment_card"
    IBAN = "iban"
    NATIONAL_NUMBER = "national_number"
    """Of a person, by the state: tax, insurance or identity."""
    IP_ADDRESS = "ip_address"
    """Only public ones."""


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """One request and its answer, as the client saw it.

    `choices` are the OpenAI choices that were returned, best first. `spec` is the I/O
    specification with its hidden part. `adapter_version` 0 means the base model.
    """

    id: str
    created_at: datetime
    source: Source
    endpoint: str
    model: str
    base_model: str
    adapter_name: str
    adapter_version: int
    adapter_sha256: str
    messages: list[Json]
    params: Json
    choices: list[Json]
    usage: Json
    spec: Json | None = None
    verified: bool | None = None
    episode_id: str | None = None
    tenant: str = "default"
    user: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    duration_s: float = 0.0
    engine_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One program written for an interaction. `choice_index` is None when it was not returned."""

    id: str
    interaction_id: str
    attempt_index: int
    choice_index: int | None
    text: str
    program: str | None
    program_sha256: str | None
    mean_logprob: float | None
    repair_round: int = 0


@dataclass(frozen=True, kw_only=True)
class Execution:
    """One judged run of a program, hidden examples included. Never shown to a model unfiltered."""

    id: str
    created_at: datetime
    source: Source
    interaction_id: str | None
    attempt_id: str | None
    program_sha256: str
    verdict: str
    verified: bool
    passed: int
    total: int
    examples: list[Json]
    tier: str
    duration_s: float
    error_type: str | None = None
    error_message: str | None = None
    stdout: str = ""
    stderr: str = ""
    tenant: str | None = None
    """Whose it is, for a client's own program or report; None for attempts."""


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """What somebody said of an interaction. Exactly one of `interaction_id`, `episode_id` is set.

    The same (target, metric, identifier, choice_index) overwrites: see `Store.put_feedback`.
    """

    id: str
    created_at: datetime
    updated_at: datetime
    interaction_id: str | None
    episode_id: str | None
    metric: str
    value: bool | float | str
    source: FeedbackSource
    choice_index: int = 0
    identifier: str = ""
    user: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


def new_feedback(
    metric: str,
    value: bool | float | str,
    source: FeedbackSource,
    *,
    interaction_id: str | None = None,
    episode_id: str | None = None,
    at: datetime | None = None,
    choice_index: int = 0,
    identifier: str = "",
    user: str | None = None,
    tags: dict[str, str] | None = None,
) -> Feedback:
    """Return feedback under an id of its own, given at a time (now)."""
    at = at or now()
    return Feedback(
        id=new_id(),
        created_at=at,
        updated_at=at,
        interaction_id=interaction_id,
        episode_id=episode_id,
        metric=metric,
        value=value,
        source=source,
        choice_index=choice_index,
        identifier=identifier,
        user=user,
        tags=tags or {},
    )


def imported_interaction(
    interaction_id: str,
    *,
    endpoint: str,
    messages: list[Json],
    answer: str,
    at: datetime,
    model: str = "",
) -> Interaction:
    """Return an answer that no model of this installation wrote; who said it is the caller's."""
    return Interaction(
        id=interaction_id,
        created_at=at,
        source=Source.IMPORTED,
        endpoint=endpoint,
        model=model,
        base_model=model,
        adapter_name="",
        adapter_version=0,
        adapter_sha256="",
        messages=messages,
        params={},
        choices=[{"index": 0, "message": {"role": "assistant", "content": answer}}],
        usage={},
    )


def imported_attempt(interaction: Interaction, program: str, program_sha256: str) -> Attempt:
    """Return the one attempt of an imported interaction: its answer, and the program in it."""
    return Attempt(
        id=new_id(),
        interaction_id=interaction.id,
        attempt_index=0,
        choice_index=0,
        text=interaction.choices[0]["message"]["content"],
        program=program,
        program_sha256=program_sha256,
        mean_logprob=None,
    )


@dataclass(frozen=True, kw_only=True)
class LiveAnswer:
    """What a trial on live traffic looks at of an interaction."""

    id: str
    created_at: datetime
    adapter_version: int
    endpoint: str
    verified: bool | None
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class LiveOpinion:
    """What somebody said of an answer that a trial looks at: whether it was accepted."""

    at: datetime
    adapter_version: int
    accepted: bool


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """One improvement cycle, from collecting to releasing."""

    id: str
    created_at: datetime
    recipe: str
    trigger: str
    state: CycleState
    stage: str
    settings: Json
    directory: str
    started_at: datetime | None = None
    finished_at: datetime | None = None
    report: Json = field(default_factory=dict)
    error: str | None = None
    adapter_version: int | None = None


@dataclass(frozen=True, kw_only=True)
class CycleEvent:
    """A line of a cycle's log."""

    id: str
    cycle_id: str
    created_at: datetime
    level: str
    message: str
    data: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DatasetRow:
    """Lineage of one training row, kept or dropped. The text lies in the cycle's directory."""

    cycle_id: str
    row_id: str
    recipe: str
    kept: bool
    reason: str | None
    interaction_ids: list[str]
    feedback_ids: list[str]
    prompt_sha256: str
    program_sha256: str


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An immutable, content-addressed LoRA adapter."""

    version: int
    sha256: str
    created_at: datetime
    state: AdapterState
    directory: str
    base_model: str
    base_sha256: str
    rank: int
    cycle_id: str | None
    recipe: str
    lineage: Json = field(default_factory=dict)
    tainted_by: str | None = None
    """The erasure that took rows away from which this was trained; see `ops.erasure`."""

    @property
    def name(self) -> str:
        """The name under which the engine and `/v1/models` know it, for instance `code@v12`."""
        return f"code@v{self.version}"


@dataclass(frozen=True, kw_only=True)
class Transition:
    """A change of an adapter's state: when, by whom, why, on what evidence."""

    id: str
    version: int
    from_state: AdapterState | None
    to_state: AdapterState
    at: datetime
    actor: str
    reason: str
    evidence: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """The certificate of what was erased of one user: numbers and names, no text of the user's."""

    id: str
    created_at: datetime
    actor: str
    tenant: str | None
    """None: wherever the user was."""
    subject_sha256: str
    """By which who knows the user's id can recognise the certificate: `ops.erasure.subject`."""
    policy: Tainted
    finished_at: datetime | None = None
    """None: there are files, or a running cycle, that still have to be looked at."""
    counts: dict[str, int] = field(default_factory=dict)
    adapters: list[Json] = field(default_factory=list)
    traces: dict[str, list[str]] = field(default_factory=dict)
    """Ids by which files are searched, for going on after a kill; empty when it is finished."""


@dataclass(frozen=True, kw_only=True)
class SwapReceipt:
    """What a server proved before it moved the alias to a version, or why it refused."""

    id: str
    at: datetime
    server: str
    version: int
    from_version: int
    accepted: bool
    reason: str
    phases_s: dict[str, float]
    probe: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Share:
    """What an API key has left of something it may use so much of in a minute."""

    key_sha256: str
    what: str
    """`requests`, `tokens` or `executions`."""
    per_minute: int
    level: float

    def with_level(self, level: float) -> Share:
        """Return the same share with another level."""
        return replace(self, level=level)


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key to the API, by its digest. The key itself is known to its holder only."""

    id: str
    created_at: datetime
    created_by: str
    name: str
    """Who holds it, for logs and limits; no two keys that are good have the same."""
    sha256: str
    scopes: list[str]
    tenant: str = "default"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    executions_per_minute: int | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """A living process."""

    process: str
    at: datetime
    pid: int
    host: str
    state: Json = field(default_factory=dict)
