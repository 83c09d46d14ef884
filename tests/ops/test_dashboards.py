"""Dashboard, alert rules and their runbook: they name only what exists, and the queries run.

What needs Debian's `prometheus` package (promtool, prometheus) is skipped where it is absent.
"""

from __future__ import annotations

import http.server
import importlib.util
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from ops import metrics

ROOT = Path(__file__).parents[2]
HERE = ROOT / "ops" / "dashboards"
DASHBOARD: dict[str, Any] = json.loads((HERE / "journeyman.json").read_text(encoding="utf-8"))
RUNBOOK = ROOT / "ops" / "docs" / "runbook.md"
RULE_TESTS = ("alerts_test.yml", "alerts_days_test.yml")

OURS = [m for m in vars(metrics).values() if isinstance(m, MetricWrapperBase)]

# What the panels and rules use of vLLM's metrics, with the labels that are read.
ENGINE: dict[str, tuple[type[MetricWrapperBase], tuple[str, ...]]] = {
    "vllm:num_requests_running": (Gauge, ()),
    "vllm:num_requests_waiting": (Gauge, ()),
    "vllm:kv_cache_usage_perc": (Gauge, ()),
    "vllm:prefix_cache_queries": (Counter, ()),
    "vllm:prefix_cache_hits": (Counter, ()),
    "vllm:num_preemptions": (Counter, ()),
    "vllm:prompt_tokens": (Counter, ()),
    "vllm:prompt_tokens_cached": (Counter, ()),
    "vllm:generation_tokens": (Counter, ()),
    "vllm:request_success": (Counter, ("finished_reason",)),
    "vllm:time_to_first_token_seconds": (Histogram, ()),
    "vllm:inter_token_latency_seconds": (Histogram, ()),
    "vllm:request_queue_time_seconds": (Histogram, ()),
}
_SUFFIXES: dict[type[MetricWrapperBase], tuple[str, ...]] = {
    Counter: ("_total",),
    Gauge: ("",),
    Histogram: ("_bucket", "_sum", "_count"),
}


def rules(file: str, kind: str) -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((HERE / file).read_text(encoding="utf-8"))["groups"]
    return {rule[kind]: rule for group in groups for rule in group["rules"]}


ALERTS = rules("alerts.yml", "alert")
RECORDED = rules("recording.yml", "record")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> dict[str, str]:
    """Every query of the dashboard, by panel and place."""
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in panels()
        for target in panel["targets"]
    }
    for annotation in DASHBOARD["annotations"]["list"]:
        if "expr" in annotation:
            found[f"annotation {annotation['name']}"] = annotation["expr"]
    return found


def concrete(query: str, window: str) -> str:
    """A query as Grafana sends it, with all servers and engines chosen."""
    for name, value in {
        "$__rate_interval": window,
        "$__range": window,
        "$instance": ".*",
        "$engine": ".*",
    }.items():
        query = query.replace(name, value)
    assert "$" not in query, query
    return query


# --- names ------------------------------------------------------------------------------------

_LABEL_LISTS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_WORDS = frozenset(("and", "or", "unless", "bool", "inf", "nan"))
_NAME = re.compile(r"(?<![\w:.])[a-zA-Z_:][\w:]*+(?!\s*\()")


def names_in(query: str) -> set[str]:
    """The metric names of a PromQL expression; what stands before a parenthesis is a function."""
    query = re.sub(r'"(?:[^"\\]|\\.)*"', '""', query)
    query = re.sub(r"\{[^}]*\}", "", query)
    query = re.sub(r"\[[^\]]*\]", "", query)
    query = _LABEL_LISTS.sub(" ", query)
    query = re.sub(r"\boffset\s+-?\w+", " ", query)
    return {name for name in _NAME.findall(query) if name not in _WORDS}


def wire_names(name: str, kind: type[MetricWrapperBase]) -> set[str]:
    return {name + suffix for suffix in _SUFFIXES[kind]}


def known_names() -> set[str]:
    known = {"up", "ALERTS", *RECORDED}
    for metric in OURS:
        known |= wire_names(next(iter(metric.describe())).name, type(metric))
    for name, (kind, _) in ENGINE.items():
        known |= wire_names(name, kind)
    return known


def test_the_reader_of_names_finds_names() -> None:
    query = (
        'sum by (a, le) (rate(x_total{b="y_total"}[5m] offset 1d)) / on (i) group_left () z:w > 1e3'
    )
    assert names_in(query) == {"x_total", "z:w"}
    assert names_in("0 * up or count(up) unless max_over_time(q[1h:5m])") == {"up", "q"}


@pytest.mark.parametrize("place", ["dashboard", "alerts.yml", "recording.yml"])
def test_every_metric_exists(place: str) -> None:
    expressions = {
        "dashboard": queries(),
        "alerts.yml": {name: rule["expr"] for name, rule in ALERTS.items()},
        "recording.yml": {name: rule["expr"] for name, rule in RECORDED.items()},
    }[place]
    known = known_names()
    unknown = {name: sorted(names_in(query) - known) for name, query in expressions.items()}
    assert {name: missing for name, missing in unknown.items() if missing} == {}
    assert all(names_in(query) for query in expressions.values())


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    seen = set().union(*map(names_in, queries().values()))
    missing = [
        name
        for metric in OURS
        if not seen & wire_names(name := next(iter(metric.describe())).name, type(metric))
    ]
    assert missing == []


def test_labels_that_are_asked_for_exist() -> None:
    labels = {"instance", "job", "le", "alertname", "alertstate"}
    labels |= {label for metric in OURS for label in metric._labelnames}
    labels |= {label for _, names in ENGINE.values() for label in names}
    expressions = [*queries().values(), *(r["expr"] for r in (ALERTS | RECORDED).values())]
    asked = set()
    for query in expressions:
        for matchers in re.findall(r"\{([^}]*)\}", query):
            asked |= set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', matchers)))
        for clause in _LABEL_LISTS.findall(query):
            asked |= set(re.findall(r"\w+", clause.split("(", 1)[1]))
    assert asked - labels == set()


def test_the_installed_engine_exports_what_is_used() -> None:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vLLM is not installed in this environment")
    folder = Path(found.origin).parent / "v1" / "metrics"
    source = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    assert [name for name in ENGINE if f'"{name}"' not in source] == []


# --- the dashboard ----------------------------------------------------------------------------


def test_panels_are_complete_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["description"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles))


def test_every_query_can_be_narrowed_to_one_server_or_engine() -> None:
    for place, query in queries().items():
        engine = any(name.startswith("vllm:") for name in names_in(query))
        if names_in(query) != {"ALERTS"}:
            assert ("$engine" if engine else "$instance") in query, place


# --- alerts and their runbook -----------------------------------------------------------------


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_to_do(name: str) -> None:
    rule = ALERTS[name]
    assert name.startswith("Journeyman")
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"ops/docs/runbook.md#{name.lower()}"


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_tests_in_which_it_fires_and_in_which_it_is_silent(name: str) -> None:
    documents = [yaml.safe_load((HERE / file).read_text(encoding="utf-8")) for file in RULE_TESTS]
    checks = [
        bool(check["exp_alerts"])
        for document in documents
        for test in document["tests"]
        for check in test["alert_rule_test"]
        if check["alertname"] == name
    ]
    assert set(checks) == {True, False}


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", RUNBOOK.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_runbook_has_a_section_for_every_alert_and_no_other() -> None:
    found = {title: text for title, text in sections().items() if title.startswith("Journeyman")}
    assert found.keys() == ALERTS.keys()
    for title, text in found.items():
        for part in ("**Meaning.**", "**Likely causes.**", "**What to do.**"):
            assert part in text, f"{title}: {part}"
        severity = ALERTS[title]["labels"]["severity"]
        assert text.lstrip().startswith(f"*{severity}*"), title


# --- with Debian's prometheus package ---------------------------------------------------------


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install prometheus)")
    return found


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=HERE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")


@pytest.mark.parametrize("file", RULE_TESTS)
def test_promtool_runs_the_unit_tests_of_the_alerts(file: str) -> None:
    promtool("test", "rules", file)


@pytest.mark.parametrize("file", RULE_TESTS)
def test_promtool_refuses_what_no_alert_does(file: str, tmp_path: Path) -> None:
    """Or the tests of the alerts could say anything."""
    copy = shutil.copytree(HERE, tmp_path / "dashboards")
    document = yaml.safe_load((copy / file).read_text(encoding="utf-8"))
    test, fires = next(
        (test, check)
        for test in document["tests"]
        for check in test["alert_rule_test"]
        if check["exp_alerts"]
    )
    fires["exp_alerts"], document["tests"] = [], [test]
    (copy / file).write_text(yaml.safe_dump(document), encoding="utf-8")
    command = [program("promtool"), "test", "rules", file]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert fires["alertname"] in done.stdout + done.stderr


class _Exposition(http.server.BaseHTTPRequestHandler):
    """A server and an engine that move a little before every scrape."""

    moving: list[Any]
    registries: list[CollectorRegistry]

    def do_GET(self) -> None:
        for child in self.moving:
            child.observe(0.02) if hasattr(child, "observe") else child.inc()
        body = b"".join(generate_latest(registry) for registry in self.registries)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


LABEL_VALUES = {
    "endpoint": ("/v1/chat/completions", "/v1/feedback"),
    "status": ("200", "503"),
    "verification": ("Success", "Failed", "SandboxError"),
    "result": ("OK", "TIMEOUT"),
    "role": ("champion", "rollback"),
    "outcome": ("proved", "flipped"),
    "state": ("succeeded", "running"),
}
"""Values that the queries ask for; other labels get any."""


def _children(metric: MetricWrapperBase) -> Iterator[Any]:
    labels = list(metric._labelnames)
    if not labels:
        yield metric
        return
    for turn in range(max(len(LABEL_VALUES.get(label, ("x",))) for label in labels)):
        values = [LABEL_VALUES.get(label, ("x",)) for label in labels]
        yield metric.labels(*(value[turn % len(value)] for value in values))


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A real Prometheus with our rules, scraping every metric of ours and of the engine."""
    program("prometheus")
    home = tmp_path_factory.mktemp("prometheus")
    registry = CollectorRegistry()
    moving: list[Any] = []
    for metric in OURS:
        described = next(iter(metric.describe()))
        copy = type(metric)(
            described.name, described.documentation, metric._labelnames, registry=registry
        )
        moving += _children(copy)
    for name, (kind, labels) in ENGINE.items():
        moving += _children(kind(name, name, labels, registry=registry))
    handler = type("Handler", (_Exposition,), {"moving": moving, "registries": [registry]})
    target = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    serving = threading.Thread(target=target.serve_forever, name="exposition", daemon=True)
    serving.start()

    address = f"127.0.0.1:{target.server_address[1]}"
    try:
        with running(home, {"journeyman": address, "vllm": address}) as client:
            wait_for(client, "journeyman:verified:ratio7d and on () count_over_time(up[1m]) > 8")
            yield client
    finally:
        target.shutdown()
        target.server_close()
        serving.join()


@contextmanager
def running(home: Path, targets: dict[str, str]) -> Iterator[httpx.Client]:
    """A real Prometheus with our configuration and rules, looking at these addresses by job."""
    binary = program("prometheus")
    config = yaml.safe_load((HERE / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
    config["rule_files"] = []
    for file in ("recording.yml", "alerts.yml"):
        text = re.sub(r"interval: \w+", "interval: 200ms", (HERE / file).read_text("utf-8"))
        (home / file).write_text(text, encoding="utf-8")
        config["rule_files"].append(str(home / file))
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    (home / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = home / "log"
    command = [
        binary,
        f"--config.file={home / 'prometheus.yml'}",
        f"--storage.tsdb.path={home / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            deadline = time.monotonic() + 30
            while not _is_ready(client):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait(10)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(client: httpx.Client, query: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not ask(client, query):
        assert time.monotonic() < deadline, f"nothing after {timeout_s} s: {query}"
        time.sleep(0.2)


def ask(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    answer = client.get("/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", f"{query}: {answer}"
    data: list[dict[str, Any]] = answer["data"]["result"]
    return data


def test_every_panel_shows_something_in_a_real_prometheus(prometheus: httpx.Client) -> None:
    empty = [
        place for place, query in queries().items() if not ask(prometheus, concrete(query, "1m"))
    ]
    assert empty == []


def test_every_rule_is_healthy_in_a_real_prometheus(prometheus: httpx.Client) -> None:
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    states = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert states.keys() == ALERTS.keys() | RECORDED.keys()
    assert {name: health for name, health in states.items() if health != "ok"} == {}


def test_the_variables_find_servers_and_engines(prometheus: httpx.Client) -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.findall(r"label_values\(([\w:]+), (\w+)\)", variable["definition"])[
                0
            ]
            found = prometheus.get(f"/api/v1/label/{label}/values", params={"match[]": metric})
            assert found.json()["data"], variable["name"]
