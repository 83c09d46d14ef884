"""Every metric name of the product, with unit and meaning, in one place.

Label sets are bounded: no label carries a client's text. vLLM's own metrics stay the engine's.
Whoever measures imports the object from here; `server.health` exposes the default registry, and
the improver's counters reach it through the store (`journeyman_cycles`, `journeyman_adapter_info`),
because it is another process.
"""

from prometheus_client import Counter, Gauge, Histogram

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

requests_total = Counter(
    "journeyman_requests_total", "Requests answered.", ["endpoint", "status", "verification"]
)
request_seconds = Histogram(
    "journeyman_request_seconds", "From request to last byte.", ["endpoint"], buckets=_LATENCY_S
)
request_overhead_seconds = Histogram(
    "journeyman_request_overhead_seconds",
    "Time of a request outside the engine and the sandbox.",
    buckets=_LATENCY_S,
)
requests_in_flight = Gauge("journeyman_requests_in_flight", "Requests being answered.")
requests_behind = Gauge(
    "journeyman_requests_behind",
    "Requests that go behind those of users (a cycle's, or any with a `priority` above 0): "
    "waiting for them, or running.",
    ["state"],
)
requests_sent_away_total = Counter(
    "journeyman_requests_sent_away_total",
    "Requests behind those of users that waited too long and were told to come again.",
)
verification_seconds = Histogram(
    "journeyman_verification_seconds",
    "Time spent judging the attempts of a request.",
    ["status"],
    buckets=_LATENCY_S,
)
candidates_verified_total = Counter(
    "journeyman_candidates_verified_total", "Attempts judged, by verdict.", ["result"]
)
sandbox_errors_total = Counter(
    "journeyman_sandbox_errors_total", "Faults of the sandbox itself.", ["reason"]
)
executions_total = Counter(
    "journeyman_executions_total",
    "Programs of clients: run here (served) or reported (client), by verdict.",
    ["source", "verdict"],
)
feedback_total = Counter("journeyman_feedback_total", "Feedback accepted.", ["metric", "source"])
store_errors_total = Counter("journeyman_store_errors_total", "Failed writes.", ["operation"])
store_write_seconds = Histogram(
    "journeyman_store_write_seconds", "One durable batch of recordings.", buckets=_LATENCY_S
)
forgotten_total = Counter(
    "journeyman_forgotten_total",
    "Interactions deleted: by age, count or size (retention), or by request.",
    ["reason"],
)
engine_up = Gauge("journeyman_engine_up", "1 while the engine answers its health check.")
replica_up = Gauge(
    "journeyman_replica_up", "1 while this engine answers and serves what it should.", ["replica"]
)
replica_in_flight = Gauge(
    "journeyman_replica_in_flight", "Requests that this engine is answering.", ["replica"]
)
replica_requests_total = Counter(
    "journeyman_replica_requests_total",
    "Requests to this engine: answered, or lost, failed or forgotten before a byte of the answer.",
    ["replica", "outcome"],
)
adapter_info = Gauge(
    "journeyman_adapter_info", "1 for each adapter loaded.", ["name", "version", "sha256", "role"]
)
adapter_swap_seconds = Histogram(
    "journeyman_adapter_swap_seconds", "Phases of a swap.", ["phase"], buckets=_LATENCY_S
)
merged_version = Gauge(
    "journeyman_merged_version",
    "The version that the second engine answers for, merged with its base; 0: none.",
)
adapter_swaps_total = Counter("journeyman_adapter_swaps_total", "Swaps tried.", ["outcome"])
adapter_inflight = Gauge(
    "journeyman_adapter_inflight", "Requests running on an adapter version.", ["version"]
)
alias_requests_total = Counter(
    "journeyman_alias_requests_total",
    "Requests for `code`, by what answered: the champion, a canary, or a control.",
    ["role"],
)
trials_total = Counter(
    "journeyman_trials_total",
    "Trials on live traffic that this server ended: canaries and watches, kept or taken back.",
    ["trial", "decision"],
)
rollback_seconds = Histogram(
    "journeyman_rollback_seconds",
    "From a decision to go back until this server answers without the version that was left.",
    buckets=_LATENCY_S,
)
cycles = Gauge("journeyman_cycles", "Improvement cycles in the record.", ["recipe", "state"])
log_rows = Gauge("journeyman_log_rows", "Rows in the record.", ["table"])
loop_errors_total = Counter(
    "journeyman_loop_errors_total", "Errors caught at the edge of a background loop.", ["loop"]
)
scrubbed_total = Counter(
    "journeyman_scrubbed_total",
    "Secrets and personal data taken out of what was recorded.",
    ["kind"],
)
