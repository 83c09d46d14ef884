"""`python victim.py DATA_DIR ENGINE_URL,…`: servers to be killed, quick to start.

All is imported and the application built once. For each port that is read, a server is forked off
that listens on it, and its process id written. Their sandbox approves of everything, because
nothing untrusted runs in it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import uvicorn

sys.path.insert(0, str(Path(__file__).parents[2]))
from ops.settings import EngineSettings, ServerSettings, Settings
from sandbox.spec import Spec
from sandbox.types import Tier, Verdict, Verification
from server.app import create_app


class Approving:
    """Finds every program right."""

    tier = Tier.NONE

    async def check(self, code: str, spec: Spec) -> Verification:
        return Verification(
            verified=True,
            verdict=Verdict.OK,
            passed=1,
            total=1,
            passed_visible=1,
            total_visible=1,
            passed_hidden=0,
            total_hidden=0,
            examples=(),
            duration_s=0.0,
            tier=Tier.NONE,
        )

    def gauges(self) -> dict[str, float]:
        return {}

    async def __aenter__(self) -> Approving:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return None


def main() -> None:
    settings = Settings(
        data_dir=Path(sys.argv[1]),
        engine=EngineSettings(urls=tuple(sys.argv[2].split(","))),
        server=ServerSettings(poll_s=0.1),
    )
    # It has opened nothing yet: its lifespan does, in the child.
    app = create_app(settings, checker=Approving())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the killed are not waited for
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            uvicorn.run(app, host="127.0.0.1", port=int(line), log_config=None, access_log=False)
            os._exit(0)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
