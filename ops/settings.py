"""All settings, with their units, defaults and meaning.

Read at entry points only and passed down as values. Sources, strongest first: command-line flags,
environment (`JOURNEYMAN_SERVER__PORT=9000`), one TOML file (`--config`, `$JOURNEYMAN_CONFIG`, or
`journeyman.toml` in the data directory), the defaults below. Unknown keys are refused.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import (
    SettingsError as SettingsSourceError,
)

from ops.errors import SettingsError
from ops.records import PersonalKind, Tainted

PREFIX = "JOURNEYMAN_"
OTHER_VARIABLES = frozenset(
    ("JOURNEYMAN_CONFIG", "JOURNEYMAN_API_KEY", "JOURNEYMAN_DEVICE", "JOURNEYMAN_PYTHON")
)
"""Variables that are ours, and no settings."""
RELOADED = ("server.keys", "server.max_concurrency", "engine.urls", "log_level")
"""Settings that a running server takes over on SIGHUP; the others wait for its next start."""


class Section(BaseModel):
    """A table of the settings file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _number(value: object) -> object:
    """Read a number that came as text, from the environment: a Literal does not do it itself."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


Rank = Annotated[Literal[8, 16, 32, 64, 128], BeforeValidator(_number)]
"""A LoRA rank that the engine can be started with."""


class StoreSettings(Section):
    """Where the record is kept."""

    url: str | None = Field(None, description="SQLAlchemy URL; unset: SQLite in the data directory")


EngineURL = Annotated[str, Field(pattern=r"^(dns\+http|https?)://[^/]+")]


class EngineSettings(Section):
    """The vLLM process, or those that run already."""

    model: str = Field("starter", description="starter, starter-small, a Hub id, or a directory")
    url: str | None = Field(None, description="a running vLLM; unset: `journeyman up` starts one")
    urls: tuple[EngineURL, ...] = Field(
        (),
        description="several running vLLMs with the same model, instead of `url`; one that begins "
        "with dns+http:// stands for every address of its host",
    )
    proved_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="of several engines: the share of those that answer which must have proved a "
        "version before `code` means it",
    )
    min_proved: int = Field(
        1, ge=1, description="and the least number of engines, whether they answer or not"
    )
    port: int = Field(8001, ge=1, le=65535, description="loopback port of the engine we start")
    dtype: str = Field("auto", description="auto, bfloat16, float16 or float32")
    max_model_len: int = Field(4096, ge=256, description="tokens of prompt and answer together")
    max_num_seqs: int = Field(32, ge=1, description="sequences decoded at once")
    max_loras: int = Field(3, ge=3, description="champion, candidate and the one coming in")
    max_cpu_loras: int = Field(5, ge=3, description="max_loras and the way back")
    max_lora_rank: Rank = Field(16, description="the largest rank of an adapter")
    kv_cache_gib: int = Field(2, ge=1, description="KV cache on a CPU host")
    gpu_memory_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of a GPU's memory that the engine takes; leave room for training where "
        "it is on the same GPU; unset: what vLLM takes by itself, nearly all",
    )
    start_timeout_s: float = Field(900.0, gt=0, description="until a starting engine must answer")
    tool_call_parser: str = Field(
        "hermes",
        description="vLLM's reader of tool calls, by the model's family (hermes: Qwen); empty: the "
        "engine refuses requests for them",
    )
    extra_args: tuple[str, ...] = Field((), description="passed on to vLLM as they are")
    merged: bool = Field(
        False,
        description="while nothing is on trial, `journeyman up` serves the champion merged with "
        "its base from a second engine, where memory allows: faster, for an engine more in memory",
    )
    merged_port: int = Field(8002, ge=1, le=65535, description="loopback port of that engine")

    @model_validator(mode="after")
    def _one_way_to_name_them(self) -> EngineSettings:
        if self.url is not None and self.urls:
            raise ValueError("url and urls are both set; name all engines in urls")
        return self


class KeySettings(Section):
    """An API key, by its digest; `journeyman keys create NAME --settings` prints such a table."""

    name: str = Field(min_length=1, max_length=64, description="who holds it, for logs and limits")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, in hex")
    scopes: tuple[Literal["inference", "feedback", "admin"], ...] = Field(
        ("inference", "feedback"), description="what the key may do"
    )
    tenant: str = Field(
        "default", pattern=r"^[A-Za-z0-9_.\-]{1,64}$", description="whose data its requests become"
    )
    requests_per_minute: int | None = Field(None, ge=1, description="of the key, in all")
    tokens_per_minute: int | None = Field(None, ge=1, description="of prompts and answers")
    executions_per_minute: int | None = Field(
        None, ge=0, description="programs of its own that the key may run; 0: none"
    )


class ServerSettings(Section):
    """The HTTP API."""

    host: str = Field(
        "127.0.0.1", description="address the server listens on; others than loopback need keys"
    )
    port: int = Field(8000, ge=1, le=65535, description="port the server listens on")
    max_body_bytes: int = Field(4 << 20, ge=1024, description="the largest body of a request")
    default_candidates: int = Field(4, ge=1, description="attempts per request with examples")
    max_candidates: int = Field(32, ge=1, description="the most attempts one request may ask for")
    spec_max_tokens: int = Field(
        1024, ge=16, description="answer tokens of a request with a spec that states no limit"
    )
    spec_temperature: float = Field(
        0.8, ge=0, le=2, description="temperature of a request with a spec that states none"
    )
    request_timeout_s: float = Field(600.0, gt=0, description="the engine's time for one request")
    max_concurrency: int = Field(256, ge=1, description="requests in flight before 503")
    behind: int = Field(
        1,
        ge=1,
        description="requests of the improver (or any with a `priority` above 0) that run at once "
        "while users are about; the others wait. One is right for a CPU, more for a GPU",
    )
    poll_s: float = Field(1.0, gt=0, description="how often the registry is looked at")
    drain_timeout_s: float = Field(
        120.0, gt=0, description="what a stopping server waits for answers that have begun"
    )
    keys: tuple[KeySettings, ...] = Field(
        (),
        description="API keys beside those of the record; without any, none is asked for, and only "
        "loopback is listened on",
    )


class RetentionSettings(Section):
    """How much of the record is kept. Unset: all of it."""

    max_age_days: float | None = Field(None, gt=0, description="older interactions are forgotten")
    max_interactions: int | None = Field(None, ge=0, description="the oldest ones above it are")
    max_bytes: int | None = Field(
        None, ge=1 << 20, description="of the database; the oldest interactions make room (SQLite)"
    )
    sweep_every_s: float = Field(600.0, gt=0, description="how often the record is looked through")


class ReleaseSettings(Section):
    """How a version that was found better goes live, and is taken back."""

    shadow_requests: int = Field(
        0,
        ge=0,
        description="recent logged requests that a candidate answers again, seen by nobody, before "
        "it goes live; 0: none",
    )
    canary_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of the requests for `code` that a promoted candidate answers first; 0: "
        "it takes the champion's place at once",
    )
    canary_requests: int = Field(
        200,
        ge=1,
        description="requests answered by a canary that is not worse, then it is champion",
    )
    canary_hours: float = Field(24.0, gt=0, description="or after so long, however few they were")
    sticky: Literal["key", "user", "conversation"] = Field(
        "key",
        description="who stays with one arm: an API key, a `user`, a conversation; what a request "
        "lacks gives way to the next. With few keys choose `user`",
    )
    watch_hours: float = Field(
        24.0, ge=0, description="how long a new champion may be taken back by itself; 0: not"
    )
    watch_requests: int = Field(200, ge=1, description="or until it has answered so many requests")
    control_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of requests that the one before goes on answering meanwhile; 0: the new "
        "champion is compared with what that one did before",
    )
    error_rate: float = Field(
        0.05, gt=0, lt=0.5, description="chance to take back a version that is no worse"
    )
    tolerated_loss: float = Field(
        0.0, ge=0, lt=1, description="share of verified or accepted answers that may be lost"
    )
    latency_ratio: float = Field(
        2.0, ge=1, description="so many times as long a request must take to count as slower"
    )


class ScrubSettings(Section):
    """What is taken out of everything that is recorded, beside secrets, which always are."""

    personal: tuple[PersonalKind, ...] = Field(
        tuple(PersonalKind), description="kinds of personal data that are taken out; []: none"
    )
    phone_region: str = Field(
        "US",
        pattern=r"^[A-Z]{2}$",
        description="country whose telephone numbers are known without + and a country code",
    )


class ErasureSettings(Section):
    """What erasing a user's data does beside erasing it."""

    tainted: Tainted = Field(
        Tainted.ROLLBACK,
        description="a champion that had learned from it: rollback (it leaves service at once), or "
        "keep until retrained (it answers until a cycle promotes another)",
    )


class TracingSettings(Section):
    """Traces for OpenTelemetry; they need the extra `tracing`."""

    endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="an OTLP/HTTP collector, such as http://127.0.0.1:4318; unset: no traces",
    )
    share: float = Field(1.0, ge=0, le=1, description="part of the requests that are traced")


class SandboxSettings(Section):
    """How model-written programs are run."""

    workers: int = Field(2, ge=1, description="programs that run at once")
    min_tier: int = Field(1, ge=1, le=4, description="refuse to start below this isolation tier")
    runtime: list[str] = Field(
        [],
        description="command of a stronger runtime with a kernel of its own, put before the "
        'interpreter and tried first (tier 4), such as ["runsc", "--network=none", "do"]',
    )
    wall_s: float = Field(5.0, gt=0, description="the longest that a program may take")
    cpu_s: int = Field(5, ge=1, description="the most CPU time that a program may take")
    memory_bytes: int = Field(
        1 << 30,
        ge=1 << 26,
        description="address space of a program, its interpreter and libraries included",
    )
    allow_unsafe: bool = Field(
        False, description="run without isolation; needs UNSAFE_EXEC=i-understand as well"
    )


SWEEP = (5e-5, 1e-4, 2e-4, 4e-4)
"""The learning rates that `sweep` means."""
Rate = Annotated[float, Field(gt=0, lt=1)]
LearningRate = Rate | Literal["sweep"] | Annotated[tuple[Rate, ...], Field(min_length=1)]


class TrainSettings(Section):
    """The LoRA training step."""

    rank: Rank = Field(16, description="LoRA's rank")
    alpha: int = Field(32, ge=1, description="LoRA's scale: alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of LoRA's inputs while it is trained")
    learning_rate: LearningRate = Field(
        2e-4,
        description="a rate; or several, or `sweep` for the usual ones: short runs on a part of "
        "the rows, judged on held-out rows, choose among them",
    )
    epochs: int = Field(
        2, ge=1, description="passes over rows whose recipe does not say how many (only one does)"
    )
    batch_rows: int = Field(8, ge=1, description="rows per optimiser step")
    max_tokens: int = Field(1024, ge=64, description="longest row; longer ones are dropped")
    seed: int = Field(7, description="of the split, the order of rows and the first weights")
    gradient_checkpointing: bool = Field(
        False,
        description="compute activations again instead of keeping them: less memory, more time",
    )
    held_out_share: float = Field(
        0.1, ge=0, lt=0.5, description="of the rows: not trained on, to choose the best step"
    )
    preferences: Literal["none", "dpo", "kto"] = Field(
        "none",
        description="also learn which of two answers is better (dpo), or which answers were kept "
        "and refused (kto), after the rows to imitate",
    )
    beta: float = Field(0.1, gt=0, description="how near to the base model preferences hold it")
    preference_learning_rate: float = Field(2e-5, gt=0, description="of the preference training")
    preference_epochs: int = Field(1, ge=1, description="passes over the preferences")

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The rates on offer."""
        if self.learning_rate == "sweep":
            return SWEEP
        several = self.learning_rate
        return several if isinstance(several, tuple) else (float(several),)


class PreferenceSettings(Section):
    """Learning from what was kept, refused, edited, passed and failed."""

    min_rows: int = Field(16, ge=1, description="a cycle with fewer rows to learn from is skipped")
    max_interactions: int = Field(
        2000, ge=1, description="logged requests looked at, those with people's words first"
    )


class IlfSettings(Section):
    """Imitation learning from language feedback."""

    samples: int = Field(4, ge=1, description="refinements asked per wrong program")
    temperature: float = Field(0.8, ge=0, description="of what is sampled")
    max_answer_tokens: int = Field(384, ge=16, description="of one program")
    min_rows: int = Field(8, ge=1, description="a cycle with fewer rows to learn from is skipped")
    max_interactions: int = Field(400, ge=1, description="failed requests looked at, at most")
    control: Literal["feedback", "shuffled", "none", "resample"] = Field(
        "feedback", description="what the refiner is told; controls are for dry runs only"
    )
    refiner: Literal["served", "own"] = Field(
        "served",
        description="who refines: the served model, or an adapter trained on people's corrections "
        "first (the paper), where there are enough",
    )
    corrections: int = Field(
        44, ge=1, description="corrections that train a refiner of its own (the paper: 44)"
    )
    machine_feedback: bool = Field(
        True, description="derive feedback from failing visible examples where nobody gave any"
    )
    demonstrations: Literal["none", "capped", "all"] = Field(
        "capped", description="where no refinement passes, learn from a demonstration that does"
    )
    demonstrations_per_refinement: float = Field(
        1.0, ge=0, description="the most demonstrations for each refinement, where capped"
    )


class SourceSettings(Section):
    """What recipes start from beside the record."""

    tables: Path | None = Field(
        None, description="directory of CSV files: what GIFT4Code sets its tasks on"
    )
    tables_licence: str | None = Field(None, description="noted on rows made of the tables")
    corpus: Path | None = Field(
        None,
        description="folder of .py and .jsonl files, or one of them: code that is right, learned "
        "by Inverse-Instruct and replayed by GIFT4Code",
    )
    corpus_licence: str | None = Field(
        None, description="noted on rows made of the corpus, where a line of it names none"
    )
    max_requests: int = Field(
        2000, ge=0, description="logged requests looked at for tables, calls and right answers"
    )


class Gift4CodeSettings(Section):
    """Learning to obey specifications. Defaults are GIFT4Code's (arXiv 2402.08073) where known."""

    min_rows: int = Field(8, ge=1, description="a cycle with fewer rows to learn from is skipped")
    max_contexts: int = Field(40, ge=1, description="tables and calls used in one cycle")
    intents: int = Field(6, ge=1, description="tasks asked for each context (the paper: 6)")
    programs: int = Field(5, ge=1, description="programs sampled for each task (the paper: 5)")
    temperature: float = Field(0.8, ge=0, description="of what is sampled")
    max_answer_tokens: int = Field(256, ge=16, description="of one program")
    kept_per_intent: int = Field(2, ge=1, description="the most rows of one task")
    per_signature: int = Field(3, ge=1, description="the most rows that call the same APIs")
    summaries: int = Field(3, ge=1, description="summaries asked until one holds")
    replay_share: float = Field(
        2 / 3, ge=0, lt=1, description="part of all rows that is replayed code (the paper: 2/3)"
    )
    spec_dropout: float = Field(
        0.25, ge=0, le=1, description="part of made rows without a spec; the kinds share the rest"
    )


class InverseInstructSettings(Section):
    """Learning from code. Defaults are those of Inverse-Instruct (arXiv 2407.05700) where known."""

    min_rows: int = Field(8, ge=1, description="a cycle with fewer rows to learn from is skipped")
    max_snippets: int = Field(400, ge=1, description="programs used in one cycle")
    summaries: int = Field(
        10, ge=0, description="instructions sampled for each program (the paper: 10)"
    )
    temperature: float = Field(0.8, ge=0, description="of what is sampled")
    max_summary_tokens: int = Field(256, ge=16, description="of one instruction")
    top_k: int = Field(1, ge=1, description="instructions kept of each program (the paper: 1)")
    selection: Literal["auto", "judge", "likelihood", "execution", "random"] = Field(
        "auto", description="auto: the model's own Yes or No (the paper), if better than chance"
    )
    prompt_logprobs: bool = Field(
        False, description="allow the likelihood judge; it has killed vLLM 0.32 on a CPU with LoRA"
    )
    order: Literal["self_made_first", "trusted_first", "mixed"] = Field(
        "self_made_first", description="order of training; the others are the paper's controls"
    )
    run_snippets: bool = Field(True, description="leave out programs that fail in the sandbox")
    bare_share: float = Field(
        0.5, ge=0, le=1, description="part of programs whose docstrings are taken out"
    )
    calibration: int = Field(40, ge=0, description="programs the judge is tried on")
    round_trips: int = Field(2, ge=1, description="programs written to judge one instruction")
    max_answer_tokens: int = Field(384, ge=16, description="of one program")


class ScreenSettings(Section):
    """The last look at rows before they are trained on."""

    rows_per_user: int = Field(200, ge=1, description="the most rows that come from one user")
    rows_per_tenant: int | None = Field(
        None, ge=1, description="the most rows that come from one tenant; unset: no limit"
    )
    rows_per_task: int = Field(4, ge=1, description="the most rows of one task or program")
    distrusted_users: tuple[str, ...] = Field(
        (), description="users whose rows go into quarantine, for a person to look at"
    )


class GateSettings(Section):
    """The examination of a candidate."""

    tasks: Path | None = Field(None, description="JSONL of held-out tasks; unset: the built-in set")
    subset: str | None = Field(None, description="only tasks whose row has this field true")
    max_tasks: int = Field(200, ge=1, description="of an examination's target, at most")
    guard_tasks: int = Field(20, ge=0, description="built-in tasks asked without their spec")
    max_answer_tokens: int = Field(384, ge=16, description="of one program")
    seeds: int = Field(
        1, ge=1, description="answers of each arm to a task; above 1 sampled, each with its seed"
    )
    error_rate: float = Field(0.05, gt=0, lt=0.5, description="chance to promote one no better")
    minimum_effect: float = Field(
        0.0, ge=0, lt=1, description="share of tasks by which a candidate must be proved better"
    )
    guard_margin: float = Field(0.1, gt=0, lt=1, description="tolerated loss on the guard")
    guard_file: Path | None = Field(
        None, description="JSONL of further guard tasks, in any shape that `tasks` takes"
    )
    replay_tasks: int = Field(
        50, ge=0, description="logged requests with hidden examples that are asked again; 0: none"
    )
    replay_share: float = Field(
        0.2, ge=0, le=1, description="share of such requests that is never learned from"
    )
    replay_margin: float = Field(0.1, gt=0, lt=1, description="tolerated loss on replay")
    vault_parts: int = Field(
        4,
        ge=0,
        description="one of so many parts of the tasks is asked last only; none below 2, or where "
        "a part has fewer than 20 tasks",
    )
    vault_margin: float = Field(0.1, gt=0, lt=1, description="tolerated loss in the vault")
    secrets: Path | None = Field(
        None, description="JSONL of planted secrets (`prefix`, `secret`) that none may tell"
    )
    logprobs: bool = Field(True, description="ask for likely tokens, to see entropy fall")
    max_length_ratio: float = Field(2.0, gt=1, description="tolerated change of mean length")
    max_refusal_rise: float = Field(
        0.05, ge=0, lt=1, description="tolerated rise of answers that decline or ask back"
    )
    max_similarity_rise: float = Field(
        0.1, ge=0, lt=1, description="tolerated rise of the likeness of answers to each other"
    )
    min_entropy_ratio: float = Field(
        0.5, ge=0, lt=1, description="the least part of the champion's entropy that must be left"
    )
    max_divergence: float | None = Field(
        1.0,
        gt=0,
        description="the most nats a token from the base model within programs of the guard's "
        "tasks; unset: not measured",
    )
    temperature: float = Field(
        0.0, ge=0, description="of answers; 0: none, unless `seeds` asks for several"
    )


class RetentionOfAdapters(Section):
    """Which adapter versions keep their files."""

    keep_recent: int = Field(10, ge=1, description="the newest versions")
    keep_best: int = Field(5, ge=0, description="beside them those that solved most target tasks")


class ImproverSettings(Section):
    """The improvement cycle."""

    server_url: str | None = Field(None, description="unset: the server of these settings")
    schedule: str | None = Field("0 3 * * *", description="cron of the nightly cycle; unset: none")
    after_feedback: int | None = Field(
        200,
        ge=1,
        description="a cycle also begins when people have said so much since the last one; "
        "unset: not for that",
    )
    after_failures: int | None = Field(
        None, ge=1, description="the same for requests whose every attempt failed"
    )
    after_accepted: int | None = Field(None, ge=1, description="the same for accepted answers")
    idle_minutes: float | None = Field(
        None,
        gt=0,
        description="cycles begin, and training goes on, only when the engine has served nobody "
        "for so long; unset: at any time",
    )
    recipe: str = Field(
        "ilf",
        description="ilf, gift4code, inverse_instruct, preferences, or all: each that has enough "
        "data",
    )
    sources: SourceSettings = SourceSettings()
    nice: int = Field(
        10,
        ge=0,
        le=19,
        description="added niceness of the training process; the improver around it adds half",
    )
    train: TrainSettings = TrainSettings()
    ilf: IlfSettings = IlfSettings()
    gift4code: Gift4CodeSettings = Gift4CodeSettings()
    inverse_instruct: InverseInstructSettings = InverseInstructSettings()
    preferences: PreferenceSettings = PreferenceSettings()
    screen: ScreenSettings = ScreenSettings()
    gate: GateSettings = GateSettings()
    adapters: RetentionOfAdapters = RetentionOfAdapters()


def default_data_dir() -> Path:
    """Return `$XDG_DATA_HOME/journeyman`."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "journeyman"


class Settings(BaseSettings):
    """Everything an entry point needs to know."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
    )

    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="where database, adapters, cycles and logs lie",
    )
    benchmarks_dir: Path | None = Field(
        None, description="where the rows of benchmarks lie, for `journeyman eval`; none ship"
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="auto: text in a terminal, JSON elsewhere"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least that is logged"
    )
    store: StoreSettings = StoreSettings()
    engine: EngineSettings = EngineSettings()
    server: ServerSettings = ServerSettings()
    retention: RetentionSettings = RetentionSettings()
    release: ReleaseSettings = ReleaseSettings()
    scrub: ScrubSettings = ScrubSettings()
    erasure: ErasureSettings = ErasureSettings()
    sandbox: SandboxSettings = SandboxSettings()
    tracing: TracingSettings = TracingSettings()
    improver: ImproverSettings = ImproverSettings()

    @property
    def store_url(self) -> str:
        """The URL of the record."""
        return self.store.url or f"sqlite:///{self.data_dir / 'journeyman.db'}"

    @property
    def engine_url(self) -> str:
        """The base URL of the engine, or of the first of several, without `/v1`."""
        first = self.engine.urls[0].removeprefix("dns+") if self.engine.urls else None
        return (self.engine.url or first or f"http://127.0.0.1:{self.engine.port}").rstrip("/")

    @property
    def engine_is_ours(self) -> bool:
        """Whether `journeyman up` starts the engine; else others run one, or several."""
        return self.engine.url is None and not self.engine.urls

    @property
    def engine_urls(self) -> tuple[str, ...]:
        """The base URLs of all engines, as `server.replicas` takes them."""
        return tuple(url.rstrip("/") for url in self.engine.urls) or (self.engine_url,)

    @property
    def server_url(self) -> str:
        """The base URL under which this machine reaches the server, without `/v1`."""
        if self.improver.server_url is not None:
            return self.improver.server_url.rstrip("/")
        host = self.server.host
        reachable = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
        return f"http://{reachable}:{self.server.port}"

    @property
    def adapters_dir(self) -> Path:
        """Where adapter versions lie."""
        return self.data_dir / "adapters"

    @property
    def merged_dir(self) -> Path:
        """Where the champion lies merged with its base, while a second engine serves it."""
        return self.data_dir / "merged"

    @property
    def merged_url(self) -> str | None:
        """Where that engine listens while there is one; None: there shall be none."""
        return f"http://127.0.0.1:{self.engine.merged_port}" if self.engine.merged else None

    @property
    def cycles_dir(self) -> Path:
        """Where cycles keep their stages' inputs and outputs."""
        return self.data_dir / "cycles"

    @property
    def evaluations_dir(self) -> Path:
        """Where `journeyman eval` leaves its answers, unless told otherwise."""
        return self.data_dir / "evaluations"


def config_file(config: Path | None = None, data_dir: Path | None = None) -> Path:
    """Return the settings file that `load` reads; the default one need not exist.

    Raises:
        SettingsError: a file was named that does not exist.
    """
    file = config or (Path(env) if (env := os.environ.get("JOURNEYMAN_CONFIG")) else None)
    if file is None:
        folder = data_dir or os.environ.get("JOURNEYMAN_DATA_DIR") or default_data_dir()
        return Path(folder) / "journeyman.toml"
    if not file.is_file():
        raise SettingsError(f"the settings file {file} does not exist")
    return file


def load(config: Path | None = None, **flags: Any) -> Settings:
    """Read the settings.

    Args:
        config: the TOML file; unset: `$JOURNEYMAN_CONFIG`, else `journeyman.toml` of the data
            directory where there is one.
        flags: values that win over every other source; None values are ignored.

    Raises:
        SettingsError: a key is unknown or a value malformed; the message names it.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    file = config_file(config, given.get("data_dir"))

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            toml = TomlConfigSettingsSource(settings_cls, toml_file=file)
            return init_settings, env_settings, toml

    _refuse_unknown_variables()
    try:
        read = FromFile(**given)
        return Settings.model_construct(**dict(read))
    except ValidationError as error:
        raise SettingsError(f"settings: {problems(error)}") from error
    except SettingsSourceError as error:  # a variable that should be JSON
        raise SettingsError(f"settings: {error}: {error.__cause__ or 'malformed'}") from error
    except ValueError as error:  # malformed TOML
        raise SettingsError(f"settings file {file}: {error}") from error


def problems(error: ValueError) -> str:
    """Return what is wrong with settings as one line: each place, and the nearest known name."""
    if not isinstance(error, ValidationError):
        return str(error)
    lines = []
    for one in error.errors():
        path = [str(part) for part in one["loc"]]
        text = one["msg"]
        if one["type"] == "extra_forbidden":
            text = "no such setting" + _nearest(path)
        lines.append(f"{'.'.join(path)}: {text}")
    return "; ".join(lines)


def names(section: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """Yield the name of every setting, such as `server.port`."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from names(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _nearest(path: Sequence[str]) -> str:
    """A question after the setting that was probably meant."""
    given = ".".join(path)
    every = [*names(), *{name.rpartition(".")[0] for name in names()} - {""}]
    found = difflib.get_close_matches(given, every, n=1, cutoff=0.75)
    # Right name, wrong table: `port = 9000` at the top of the file.
    found = found or [name for name in names() if name.rpartition(".")[2] == path[-1]]
    return f"; did you mean {' or '.join(found[:3])}?" if found else ""


def _refuse_unknown_variables() -> None:
    """Refuse variables that look like settings and are none; pydantic passes them over.

    Names without a section may be somebody else's (Kubernetes makes `JOURNEYMAN_SERVICE_HOST`):
    of these only what is nearly ours is refused.

    Raises:
        SettingsError: names the variable, and what was probably meant.
    """
    fields = Settings.model_fields
    plain = [name for name in names() if "." not in name]
    for variable in sorted(os.environ):
        head, name = variable[: len(PREFIX)].upper(), variable[len(PREFIX) :].lower()
        section, nested, _ = name.partition("__")
        if head != PREFIX or section in fields or variable.upper() in OTHER_VARIABLES:
            continue
        near = difflib.get_close_matches(name, plain, n=1, cutoff=0.85)
        if nested or near:
            meant = f"; did you mean {PREFIX}{near[0].upper()}?" if near else ""
            meant = meant or _nearest(name.split("__"))
            raise SettingsError(f"settings: {variable}: no such setting{meant}")


def differences(before: Settings, after: Settings) -> list[str]:
    """Return the names of the settings that are not the same."""
    return [name for name in names() if _at(before, name) != _at(after, name)]


def _at(settings: Settings, name: str) -> Any:
    found: Any = settings
    for part in name.split("."):
        found = getattr(found, part)
    return found
