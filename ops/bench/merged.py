"""The second engine from its beginning to its end: merged, proved, asked, killed, left.

    python ops/bench/merged.py [--model starter-small] [--data DIR]

A whole installation is started as its user would start it, with `engine.merged`. Told with seconds:
when the champion's merged weights answer, what a token costs there and on the first engine (CPU
time, which hardly feels other load), what becomes of requests while the second engine is killed
(SIGKILL), of another champion and of a rollback. Exits 1 when a request failed, or an answer was
not the word that its adapter writes (`one_word.py`). Not measured: a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import httpx

from ops.bench import soak
from ops.bench.footprint import cpu_s, rss_mib, tree

TOKENS = 32
WAIT_S = 900.0
STARTED = time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer: what came, and of whom."""

    status: int
    version: int | None
    text: str

    def word(self) -> str:
        """The one word of the answer; what it is instead where it is not one."""
        words = set(self.text.split())
        return words.pop() if len(words) == 1 else self.text[:80]


def say(line: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"{time.monotonic() - STARTED:7.1f} s  {line}", flush=True)


def ask(url: str, model: str = "code") -> Answer:
    """Ask one question."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Name a colour."}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=300)
    if response.status_code != 200:
        return Answer(status=response.status_code, version=None, text=response.text[:200])
    answer = response.json()
    text = answer["choices"][0]["message"]["content"]
    return Answer(status=200, version=answer["adapter"]["version"], text=text)


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait, and say when it has come about."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {WAIT_S:.0f} s: {what}")
        time.sleep(0.2)
    say(what)


def cost(url: str, model: str, pid: int) -> str:
    """CPU milliseconds a token of one answer, of the process that writes it."""
    used = cpu_s(pid)
    ask(url, model)
    return f"{(cpu_s(pid) - used) / TOKENS * 1000:.1f} ms of CPU a token"


def killed(installation: soak.Installation) -> list[Answer]:
    """Ask without pause while the second engine is killed, and return the answers."""
    answers: list[Answer] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            answers.append(ask(installation.url))

    clients = [threading.Thread(target=client) for _ in range(2)]
    for one in clients:
        one.start()
    time.sleep(3)
    for pid in tree(installation.guards()["second engine"])[1:]:
        if b"api_server" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    say("the second engine is killed")
    until(lambda: _ready(installation)["merged"] is None, "the server has left it")
    time.sleep(3)
    stop.set()
    for one in clients:
        one.join()
    return answers


def _ready(installation: soak.Installation) -> dict[str, Any]:
    body: dict[str, Any] = httpx.get(f"{installation.url}/ready", timeout=30).json()
    return body


def run(installation: soak.Installation, system: soak.System) -> list[str]:
    """Live through it all; returns what went wrong."""
    words: dict[int | None, str] = {}
    answers: list[Answer] = []

    def champion(word: str) -> int:
        version = system.release(word, len(words)).version
        words[version] = word
        system.registry.promote(version, actor="bench", reason="bench", force=True)
        return version

    def answers_with(version: int) -> None:
        until(
            lambda: (_ready(installation)["adapter"] or {}).get("version") == version,
            f"code@v{version} answers",
        )
        answers.append(ask(installation.url))

    def merged(version: int) -> None:
        until(
            lambda: (_ready(installation)["merged"] or {}).get("version") == version,
            f"code@v{version} is answered merged",
        )
        answers.append(ask(installation.url))

    first = champion("apple")
    answers_with(first)
    say(f"beside its base: {cost(installation.url, 'code', installation.guards()['engine'])}")
    merged(first)
    receipt = system.store.receipts(version=first)[0]
    say(f"both engines differ by {receipt.probe['merged_error']:.4f} nats a token")
    guards = installation.guards()
    say(f"merged: {cost(installation.url, 'code', guards['second engine'])}")
    say(", ".join(f"{name} {rss_mib(pid):.0f} MiB" for name, pid in guards.items()))
    answers += killed(installation)
    merged(first)
    second = champion("silver")
    answers_with(second)
    merged(second)
    system.registry.rollback(actor="bench", reason="bench")
    answers_with(first)
    wrong = [a for a in answers if a.status != 200 or a.word() != words.get(a.version)]
    say(f"{len(answers)} answers, {len(wrong)} of them wrong or failed")
    return [str(answer) for answer in wrong]


def main(options: argparse.Namespace) -> int:
    """Start an installation, live through it, and end it."""
    os.environ["JOURNEYMAN_ENGINE__MERGED"] = "true"
    os.environ["JOURNEYMAN_ENGINE__MERGED_PORT"] = str(soak.free_port())
    with (
        tempfile.TemporaryDirectory(prefix="merged-", dir=options.data) as name,
        soak.installed(Path(name), options.model) as (installation, system),
    ):
        asyncio.run(installation.until_ready())
        say("ready")
        wrong = run(installation, system)
    print(*wrong, sep="\n")
    return 1 if wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="starter-small", help="starter-small, starter, …")
    parser.add_argument("--data", type=Path, help="where the installation is put meanwhile")
    return parser.parse_args()


if __name__ == "__main__":
    # As Ctrl-C: what was started is stopped.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(_options()))
