"""Results of `journeyman eval` as evals and runs: a benchmark is an eval, each result file a run.

Files are looked at as they are asked for; one that cannot be read is none. What could not be judged
is `errored`, never `failed`. The comparison of two models is the gate's, in `evals`.
"""

from __future__ import annotations

import json
import logging
import re
from functools import lru_cache
from pathlib import Path

from ops.records import Json

log = logging.getLogger(__name__)

MOST_FILES = 1000
PREFIX = "eval_benchmark_"
RUN_PREFIX = "evalrun_"


def benchmarks(directory: Path) -> list[Json]:
    """The evals: every benchmark that was put to a model, by its name."""
    found = {run["eval_id"]: run for run in reversed(runs(directory))}
    return [_eval(found[eval_id]) for eval_id in sorted(found)]


def runs(directory: Path, eval_id: str | None = None) -> list[Json]:
    """The runs of an eval, or of all, newest first."""
    try:
        files = [(path, path.stat()) for path in directory.glob("*.json")]
    except OSError:
        return []
    files.sort(key=lambda file: (file[1].st_mtime_ns, file[0].name), reverse=True)
    found = [_run(path, stat.st_mtime_ns) for path, stat in files[:MOST_FILES]]
    return [run for run in found if run is not None and eval_id in (None, run["eval_id"])]


def _eval(run: Json) -> Json:
    name = run["metadata"]["benchmark"]
    return {
        "id": run["eval_id"],
        "object": "eval",
        "name": name,
        "created_at": run["created_at"],
        "data_source_config": {"type": "custom", "schema": {"type": "object"}},
        "testing_criteria": [
            {
                "type": "python",
                "id": "execution",
                "name": "execution",
                "source": "# every check of the task, run in the sandbox",
            }
        ],
        "metadata": {"benchmark": name},
    }


@lru_cache(maxsize=MOST_FILES)
def _run(path: Path, mtime_ns: int) -> Json | None:
    """A result file as a run; read again only when it was written again."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return _as_run(path.stem, mtime_ns, report)
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s is no result: %s", path.name, error, extra={"action": "score_unread"})
        return None


def _as_run(name: str, mtime_ns: int, report: Json) -> Json:
    model, benchmark = str(report["model"]), str(report["benchmark"])
    eval_id = PREFIX + re.sub(r"[^\w.+\-]+", "_", benchmark)
    passed = sum(int(task["passed"]) for task in report["results"])
    judged, errored = int(report["judged"]), int(report["not_judged"])
    counts = {
        "total": judged + errored,
        "passed": passed,
        "failed": judged - passed,
        "errored": errored,
    }
    return {
        "id": RUN_PREFIX + name,
        "object": "eval.run",
        "eval_id": eval_id,
        "created_at": mtime_ns // 1_000_000_000,
        "name": f"{benchmark}, {model}",
        "model": model,
        "status": "completed",
        "data_source": {
            "type": "completions",
            "model": model,
            "source": {"type": "file_id", "id": benchmark},
        },
        "error": {"code": "", "message": ""},
        "metadata": {
            "benchmark": benchmark,
            "tasks": str(report["tasks"]),
            "adapter_versions": ", ".join(map(str, report["adapter_versions"])),
        },
        "per_model_usage": [],
        "per_testing_criteria_results": [
            {"testing_criteria": "execution", "passed": passed, "failed": judged - passed}
        ],
        "report_url": "",
        "result_counts": counts,
        "comparison": None,
        "pass_at": report["pass_at"],
    }
