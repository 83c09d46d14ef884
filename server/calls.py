"""One inference request on its way: who asks, what answers, how it is stamped and recorded.

A `Call` is made once the model name is resolved. It writes the engine's body, puts our fields on
the answer and turns answer and attempts into the rows of the record. It does no I/O.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ops.records import Attempt, Execution, Interaction, Source, new_id, now
from ops.store import Recording
from sandbox.spec import Spec
from server.adapters import Served
from server.auth import Identity
from server.protocol import Envelope
from server.recording import Recorder

Json = dict[str, Any]

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
COUNT_TOKENS = "/v1/messages/count_tokens"
EXECUTIONS = "/v1/executions"
_PREFIX = {CHAT: "chatcmpl-", TEXT: "cmpl-", RESPONSES: "resp_", MESSAGES: "msg_"}
_ASKED = ("messages", "prompt", "input", "instructions", "system")
_NOT_PARAMS = frozenset((*_ASKED, "model", "stream", "stream_options", "user"))
ID_HEADER = "x-journeyman-interaction-id"


@dataclass(kw_only=True)
class Call:
    """A request that is being answered. Times are seconds; `started` is a monotonic clock."""

    endpoint: str
    envelope: Envelope
    served: Served
    identity: Identity
    rewrite: Json = field(default_factory=dict)
    """What the engine gets instead of the client's fields; None leaves one out."""
    id: str = field(default_factory=new_id)
    previous_response_id: str | None = None
    """The response that this one goes on from."""
    created_at: datetime = field(default_factory=now)
    started: float = field(default_factory=time.perf_counter)
    engine_s: float = 0.0
    sandbox_s: float = 0.0

    def __post_init__(self) -> None:
        self.episode_id = self.envelope.episode_id or new_id()

    @property
    def completion_id(self) -> str:
        """The `id` of the answer; the engine makes the same from the request id we send it."""
        return _PREFIX[self.endpoint] + self.id

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that name the interaction."""
        return {ID_HEADER: self.id}

    def upstream(self, **changes: Any) -> Json:
        """The body for the engine: the client's, with the model that answers it."""
        body = {**self.envelope.body, **self.rewrite, "model": self.served.model, **changes}
        for name in self.rewrite:
            if body[name] is None:
                del body[name]
        salt = self.served.salt(body.get("cache_salt"), tenant=self.identity.tenant)
        if salt is not None:
            body["cache_salt"] = salt
        return body

    def announce(self, recorder: Recorder) -> None:
        """Let feedback on this answer in from now on, before there is a record of it."""
        recorder.issue(self.id, tenant=self.identity.tenant, choices=self.envelope.n)

    def spend(self, usage: Json) -> None:
        """Count the tokens of the answer against the shares of who asked."""
        total = usage.get("total_tokens")
        if total is None:  # Anthropic states no sum
            total = (usage.get("input_tokens") or 0) + (usage.get("output_tokens") or 0)
        if isinstance(total, int):
            self.identity.spend(total)

    def stamp(self, answer: Json) -> Json:
        """Put our fields on an answer or on the last chunk of a stream."""
        answer["id"] = self.completion_id
        answer["system_fingerprint"] = self.served.fingerprint
        answer["adapter"] = self.served.public
        answer["episode_id"] = self.episode_id
        if self.endpoint == RESPONSES:
            answer["metadata"] = self.envelope.metadata
            answer["previous_response_id"] = self.previous_response_id
        return answer

    def recording(
        self,
        *,
        choices: Sequence[Json],
        usage: Json,
        spec: Spec | None = None,
        options: Json | None = None,
        verified: bool | None = None,
        attempts: Sequence[Attempt] = (),
        executions: Sequence[Execution] = (),
    ) -> Recording:
        """The rows of this request."""
        body = self.envelope.body
        params = {key: value for key, value in body.items() if key not in _NOT_PARAMS}
        if options:
            params["io_spec"] = options
        if self.endpoint == RESPONSES and body.get("instructions"):
            params["instructions"] = True  # they are the first message
        interaction = Interaction(
            id=self.id,
            created_at=self.created_at,
            source=Source.SERVED,
            endpoint=self.endpoint,
            model=self.envelope.model,
            base_model=self.served.base,
            adapter_name=self.served.name,
            adapter_version=self.served.version,
            adapter_sha256=self.served.sha256,
            messages=_messages(self.endpoint, body),
            params=params,
            choices=[compact(choice) for choice in choices],
            usage=usage,
            # The split into visible and hidden is written down, so that no later change of the
            # rule can show a model what was held back from it.
            spec=spec.marked().to_json() if spec is not None else None,
            verified=verified,
            episode_id=self.episode_id,
            tenant=self.identity.tenant,
            user=self.envelope.user,
            metadata=self.envelope.metadata,
            duration_s=time.perf_counter() - self.started,
            engine_s=self.engine_s,
        )
        return Recording(interaction=interaction, attempts=attempts, executions=executions)


def _messages(endpoint: str, body: Json) -> list[Json]:
    if endpoint in (CHAT, MESSAGES):
        system = body.get("system") if endpoint == MESSAGES else None
        return _system(system) + list(body.get("messages") or [])
    if endpoint == RESPONSES:
        given = body.get("input")
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        return _system(body.get("instructions")) + list(items or [])
    prompt = body.get("prompt")
    message: Json = {"role": "user", "content": prompt}
    if body.get("suffix"):
        message["suffix"] = body["suffix"]
    return [message]


def _system(content: Any) -> list[Json]:
    return [{"role": "system", "content": content}] if content else []


def compact(choice: Json) -> Json:
    """A choice as it is recorded: without empty fields and without log-probabilities."""
    kept = {
        key: value
        for key, value in choice.items()
        if value is not None and key not in ("logprobs", "prompt_logprobs")
    }
    message = kept.get("message")
    if isinstance(message, dict):
        kept["message"] = {
            key: value
            for key, value in message.items()
            if value is not None and not (key == "tool_calls" and not value)
        }
    return kept


def bare_id(completion_id: str) -> str:
    """The interaction id within a completion's id; a bare one stays as it is."""
    for prefix in _PREFIX.values():
        completion_id = completion_id.removeprefix(prefix)
    return completion_id
