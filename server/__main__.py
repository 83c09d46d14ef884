"""`python -m server`: read the settings, listen, and on SIGTERM finish what is in flight."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from ops import logs, settings, tracing
from ops.errors import SettingsError
from server.app import create_app

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Server(uvicorn.Server):
    """uvicorn's server, for which being asked to stop is no failure, and SIGHUP means: read again.

    Args:
        config: uvicorn's.
        reload: reads the settings again.
    """

    def __init__(self, config: uvicorn.Config, reload: Callable[[], None]) -> None:
        super().__init__(config)
        self._reload = reload

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and from then on take over settings when told to."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        await super().startup(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop gracefully on the first signal, at once on a second Ctrl-C.

        uvicorn's own version raises the signal again when all is done, so that a clean stop
        would look like a death to whoever started us.
        """
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def main() -> int:
    """Run the server until it is stopped; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    parser.add_argument("--config", type=Path, help="settings file (TOML)")
    parser.add_argument("--data-dir", type=Path, help="where database and adapters lie")
    given = parser.parse_args()
    try:
        read = settings.load(given.config, data_dir=given.data_dir)
        logs.configure(read.log_format, read.log_level)
        traced = read.tracing
        tracing.configure(traced.endpoint, "journeyman-server", share=traced.share)
        app = create_app(read)
    except SettingsError as error:
        print(f"journeyman: {error}", file=sys.stderr)
        return 2
    # The writer thread would otherwise hold up the event loop for 5 ms at a time.
    sys.setswitchinterval(0.0005)
    # What was imported lives as long as the process: no collection need look at it again, and
    # with fewer of the full ones fewer requests wait for one.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    server = _Server(
        uvicorn.Config(
            app,
            host=read.server.host,
            port=read.server.port,
            loop="uvloop",
            http="httptools",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(read.server.drain_timeout_s),
        ),
        reload=partial(_reload, given, app, [read]),
    )
    server.run()
    return 0 if server.started else 1


def _reload(given: argparse.Namespace, app: FastAPI, before: list[settings.Settings]) -> None:
    """Take over those settings that can be; name those that cannot. `before`: those in force."""
    try:
        read = settings.load(given.config, data_dir=given.data_dir)
    except SettingsError as error:
        log.error("the settings stay as they are: %s", error, extra={"action": "reload"})
        return
    changed = settings.differences(before[0], read)
    app.state.reload(read)
    logs.configure(read.log_format, read.log_level)
    taken = [name for name in changed if name in settings.RELOADED]
    waiting = [name for name in changed if name not in settings.RELOADED]
    log.info("the settings were read again", extra={"action": "reload", "taken_over": taken})
    if waiting:
        words = "these settings wait for the server's next start: %s"
        log.warning(words, ", ".join(waiting), extra={"action": "reload"})


if __name__ == "__main__":
    sys.exit(main())
