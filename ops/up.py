"""`journeyman up`: from settings to a running installation, and its orderly end.

Checks what can be checked at once (one supervisor for each data directory, free ports, an engine
build, a sandbox that isolates), makes the model ready, starts engine, server and improver under
`ops.processes`, says how to use them, and stays until it is told to stop.
"""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from ops import merges, models, processes, second_engine, services
from ops.errors import ProcessError
from ops.models import Model
from ops.processes import Child, Supervisor
from ops.records import now
from ops.second_engine import SecondEngine
from ops.services import EngineBuild, Service
from ops.settings import Settings

_REMINDER_S = 15.0
"""Between two lines about the same wait, where there is no terminal to keep one line alive."""


class Announcer:
    """Tells a person what goes on: a living line in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._status = console.status("") if console.is_terminal else None
        self._showing = False
        self._reminded: dict[str, float] = {}

    def say(self, line: str) -> None:
        """Print a line."""
        self.console.print(f"• {line}", markup=False, highlight=False, soft_wrap=True)

    def waiting(self, child: Child, what: str) -> None:
        """Show what is waited for, and for how long by now."""
        line = f"{child.service.name}: {what} · {child.seconds:.0f} s"
        if self._status is not None:
            self._status.update(escape(line))
            if not self._showing:
                self._status.start()
                self._showing = True
        elif child.seconds - self._reminded.get(child.service.name, 0.0) >= _REMINDER_S:
            self._reminded[child.service.name] = child.seconds
            self.say(line)

    def done(self) -> None:
        """Take the living line away."""
        if self._status is not None and self._showing:
            self._status.stop()
            self._showing = False


def up(settings: Settings, console: Console) -> int:
    """Run the installation until SIGINT or SIGTERM, and return the exit status.

    Raises:
        OpsError: something is missing or in the way; nothing that was started is left running.
    """
    announcer = Announcer(console)
    began = time.monotonic()
    with processes.only_one(settings.data_dir):
        processes.require_port(settings.server.host, settings.server.port, "server", "--port")
        second_engine.require(settings)
        build = _build(settings)
        with _interruptible():
            _require_isolation(settings)
            model = models.resolve(settings.engine.model, say=announcer.say)
        if not settings.engine.merged:
            merges.keep_only(settings.merged_dir, None)  # of a time when it was set
        todo = _services(settings, model, build)
        state = _state(settings, model, build)

        def changed() -> None:
            state["services"] = processes.child_states(supervisor)
            processes.write_state(settings.data_dir, state)

        supervisor = Supervisor(
            todo, logs=settings.data_dir / "logs", say=announcer.say, changed=changed
        )
        second = None
        if build is not None and settings.engine.merged:
            second = SecondEngine(settings, model, build, supervisor, announcer.say)
        with _stopped_by_signals(supervisor.request_stop):
            try:
                announcer.say(f"starting {_listed(todo)} (logs: {settings.data_dir / 'logs'})")
                supervisor.start(lambda child: announcer.waiting(child, _what(child, model)))
                announcer.done()
                if not supervisor.stopping:
                    state["ready_at"] = now().isoformat()
                    state["sandbox"] = _isolation(settings)
                    changed()
                    announcer.say(f"ready after {time.monotonic() - began:.0f} s")
                    words = _welcome(settings, model, build, state["sandbox"])
                    console.print(words, markup=False, highlight=False, soft_wrap=True)
                supervisor.run(second.look if second is not None else lambda: None)
            finally:
                announcer.done()
                if second is not None:
                    second.close()
                supervisor.stop()
                announcer.say("stopped")
    return 0


# --- before the start -----------------------------------------------------------------------


def _build(settings: Settings) -> EngineBuild | None:
    """Return the engine that will be started; None where a running one is named."""
    if settings.engine_is_ours:
        flag = "--engine-port"
        processes.require_port("127.0.0.1", settings.engine.port, "engine", flag)
        return services.engine_build()
    name, problems = ("engine.urls" if settings.engine.urls else "engine.url"), []
    for url in settings.engine_urls:
        try:
            httpx.get(f"{url.removeprefix('dns+')}/health", timeout=10).raise_for_status()
        except httpx.HTTPError as error:
            problems.append(f"the engine at {url} ({name}) does not answer: {error}")
        else:
            return None  # one is enough to begin with
    raise ProcessError("; ".join(problems))


def _require_isolation(settings: Settings) -> None:
    """Refuse early what the server would refuse after minutes of loading a model.

    Raises:
        ProcessError: this machine cannot isolate the programs a model writes.
    """
    if settings.sandbox.allow_unsafe:
        return
    command = [*services.SANDBOX, "run", "-"]
    done = subprocess.run(command, input="pass", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ProcessError(
            "this machine cannot isolate the programs a model writes, so nothing is started: "
            f"{done.stderr.strip()[-1000:]}\n`journeyman sandbox check` shows what is missing"
        )


def _isolation(settings: Settings) -> str:
    """Return the tier that the running server runs programs in."""
    try:
        ready = httpx.get(f"{settings.server_url}/ready", timeout=10).json()
        return str(ready["sandbox"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return "unknown"


def _services(settings: Settings, model: Model, build: EngineBuild | None) -> list[Service]:
    engine = [] if build is None else [services.engine(settings, model, build)]
    return [*engine, services.server(settings, model), services.improver(settings, model)]


def _state(settings: Settings, model: Model, build: EngineBuild | None) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "started_at": now().isoformat(),
        "ready_at": None,
        "url": settings.server_url,
        "engine_url": settings.engine_url,
        "engine": f"vLLM {build.version} on {build.device}" if build else "not ours",
        "model": models.as_json(model),
        "sandbox": "unknown",
        "services": [],
    }


# --- signals --------------------------------------------------------------------------------


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end this like Ctrl-C does: there is nothing to stop in order yet."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    before = {
        number: signal.signal(number, handle)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- words ----------------------------------------------------------------------------------


def _listed(todo: list[Service]) -> str:
    names = [service.name for service in todo]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _what(child: Child, model: Model) -> str:
    return f"loading {model.name}" if child.service.name == "engine" else "starting"


def _welcome(settings: Settings, model: Model, build: EngineBuild | None, tier: str) -> str:
    device = "an engine of its own" if build is None else build.device.upper()
    if build is not None and build.device == "cuda":
        device = ", ".join(services.gpus()) or device
    url = settings.server_url
    return textwrap.dedent(
        f"""
        Journeyman is ready: {url}
          model    {model.name} as `code` ({model.origin})
          device   {device}
          sandbox  {tier}
          data     {settings.data_dir}
          console  {url}/console

        Try it:

          curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{{
            "model": "code", "max_tokens": 512,
            "messages": [{{"role": "user", "content": "Write median(xs), the median of a list."}}],
            "io_spec": {{"examples": [{{"input": [[3, 1, 2]], "output": 2}},
                                     {{"input": [[4, 1, 3, 2]], "output": 2.5, "hidden": true}}]}}
          }}'

        or in Python (pip install openai):

          from openai import OpenAI
          client = OpenAI(base_url="{url}/v1", api_key="unused")
          answer = client.chat.completions.create(
              model="code",
              max_tokens=512,
              messages=[{{"role": "user", "content": "Write median(xs), the median of a list."}}],
              extra_body={{"io_spec": {{"examples": [
                  {{"input": [[3, 1, 2]], "output": 2}},
                  {{"input": [[4, 1, 3, 2]], "output": 2.5, "hidden": True}}]}}}},
          )
          print(answer.choices[0].message.content)
          print(answer.choices[0].verification)

        Ctrl-C stops everything.
        """
    )
