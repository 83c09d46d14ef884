"""What the routes share: built once in `app`, handed to each request, never changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from ops.erasure import Eraser
from ops.registry import Registry
from ops.settings import ImproverSettings, ReleaseSettings, ServerSettings
from ops.store import Store
from ops.trials import Rules
from sandbox.types import Limits
from server.adapters import Adapters
from server.auth import LOCAL, Identity
from server.forwarding import Forwarder
from server.generation import Generator
from server.merged import Merged
from server.protocol import Envelope
from server.recording import Recorder
from server.replicas import Replicas
from server.traffic import Sticky, who
from server.verification import Judge


@dataclass(frozen=True, kw_only=True)
class Improvement:
    """What a cycle that is asked for through the API starts with."""

    settings: ImproverSettings
    release: ReleaseSettings
    engine_model: str
    max_lora_rank: int
    cycles_dir: Path


@dataclass(frozen=True, kw_only=True)
class State:
    """The parts of a running server."""

    settings: ServerSettings
    replicas: Replicas
    store: Store
    registry: Registry
    eraser: Eraser
    recorder: Recorder
    adapters: Adapters
    merged: Merged | None
    """The second engine, where there shall be one."""
    judge: Judge
    limits: Limits
    """The most that a client's own program may use."""
    improvement: Improvement
    evaluations_dir: Path
    """Where `journeyman eval` leaves its results."""
    forwarder: Forwarder
    generator: Generator
    rules: Rules
    """What trials on live traffic go by."""
    sticky: Sticky

    def who(self, envelope: Envelope, identity: Identity) -> str:
        """What decides over the arm that answers a request, while a version is on trial."""
        key = identity.name if identity is not LOCAL else None
        return who(envelope, key=key, tenant=identity.tenant, sticky=self.sticky)


def current(request: Request) -> State:
    """Return the state of the server that answers this request."""
    state: State = request.state.server
    return state
