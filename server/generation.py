"""Verified generation: several attempts, each run against the specification, the best first.

Attempts are sampled in one call of the engine and judged as they finish; as soon as as many as
the client wants are verified, the rest is cancelled. Identical programs run once. When none
passes, `repair` rounds show the model its best attempt with what the visible examples said of it;
hidden ones only decide. The order is: verified, hidden examples, visible ones, agreement of
outputs among attempts, mean log-probability. An honest `verified: false` is a valid answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from ops import metrics, tracing
from ops.records import Attempt, new_id
from sandbox.spec import Spec, extend_prompt
from server.adapters import Adapters
from server.calls import CHAT, Call
from server.errors import BadRequest, EngineRefusal, EngineUnavailable
from server.protocol import SpecRequest
from server.recording import Recorder
from server.replicas import Replicas
from server.replies import Exchange
from server.sse import DONE, Tally, batches, encode, payload
from server.verification import Judge, Judgement, Program, execution_row

log = logging.getLogger(__name__)

Json = dict[str, Any]

QUIET_S = 2.0
"""A streamed request whose answer takes longer is kept alive with comments from here on."""
KEEP_ALIVE_S = 5.0
PIECE_CHARS = 256
"""Characters per chunk of a chosen answer."""
_WHOLE_ONLY = frozenset(("tools", "functions", "prompt_logprobs", "return_token_ids", "echo"))
"""Fields whose results a stream spreads over chunks in ways that only the engine can undo."""


@dataclass(eq=False)
class Try:
    """One attempt: the engine's choice and what became of it."""

    index: int
    choice: Json
    mean_logprob: float | None
    repair_round: int
    program: Program | None
    judging: asyncio.Future[Judgement]

    @property
    def judgement(self) -> Judgement | None:
        """What the sandbox said; None when it was not waited for."""
        if self.judging.done() and not self.judging.cancelled():
            return self.judging.result()
        return None

    @property
    def verified(self) -> bool:
        """Whether it passed everything."""
        return self.judgement is not None and self.judgement.verified


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All attempts, best first, and what they cost."""

    ranked: list[Try]
    usage: Json

    @property
    def verified(self) -> bool:
        """Whether the best attempt passed everything."""
        return bool(self.ranked) and self.ranked[0].verified


class Generator:
    """Answers requests that carry a specification.

    Args:
        engines: where attempts are sampled.
        judge: where they are judged.
        recorder: where they are recorded.
        adapters: told when the engine does not know what it should.
        max_tokens: answer tokens of a request that states no limit of its own: several attempts
            that ramble to the end of the context would cost minutes and pass nothing.
        temperature: of a request that states none. OpenAI's 1 makes small models ramble; papers
            that sample programs take 0.8 (Codex, arXiv 2107.03374; ILF, arXiv 2303.16749).
    """

    def __init__(
        self,
        engines: Replicas,
        judge: Judge,
        recorder: Recorder,
        adapters: Adapters,
        *,
        max_tokens: int,
        temperature: float,
    ) -> None:
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._engines = engines
        self._judge = judge
        self._recorder = recorder
        self._adapters = adapters

    async def answer(self, call: Call, request: SpecRequest, exchange: Exchange) -> str:
        """Answer a request; return the status word of its best choice.

        Raises:
            EngineRefusal, EngineUnavailable: from the engine.
            RecordUnavailable: the answer could not be made durable and is withheld.
        """
        if call.envelope.stream and call.envelope.store:
            # The client learns the id from the headers, before there is a record of it.
            call.announce(self._recorder)
        try:
            return await self._answer(call, request, exchange)
        except EngineRefusal as error:
            raise self._adapters.explain(call.served, error) from error
        finally:
            self._recorder.settle(call.id)

    async def _answer(self, call: Call, request: SpecRequest, exchange: Exchange) -> str:
        if call.envelope.stream:
            outcome = await self._kept_alive(call, request, exchange)
        else:
            outcome = await self.generate(call, request)
        call.spend(outcome.usage)
        chosen = self._choices(call, request, outcome)
        await self._record(call, request, outcome, chosen)
        metrics.verification_seconds.labels(chosen[0]["verification"]["status"]).observe(
            call.sandbox_s
        )
        if call.envelope.stream:
            await self._stream_out(call, outcome, chosen, exchange)
        else:
            answer = {
                "id": call.completion_id,
                "object": "chat.completion",
                "created": int(call.created_at.timestamp()),
                "model": call.served.model,
                "choices": chosen,
                "usage": outcome.usage,
            }
            await exchange.json(call.stamp(answer), headers=call.headers)
        return str(chosen[0]["verification"]["status"])

    async def generate(self, call: Call, request: SpecRequest) -> Outcome:
        """Sample, judge, repair, rank."""
        judged: dict[str, asyncio.Task[Judgement]] = {}
        tries: list[Try] = []
        usage: Counter[str] = Counter()
        with tracing.span("generation", request_id=call.id, model=call.served.model) as span:
            try:
                async with asyncio.timeout(request.options.max_seconds):
                    await self._rounds(call, request, tries, judged, usage)
            except TimeoutError:
                log.info("out of time", extra={"action": "max_seconds", "request_id": call.id})
            finally:
                await _cancel(judged.values())
            span.set(attempts=len(tries), tokens=usage.get("completion_tokens"))
        if not tries:
            tries.append(self._unfinished(request))
        return Outcome(ranked=rank(tries), usage=dict(usage))

    def _unfinished(self, request: SpecRequest) -> Try:
        """What comes back where `max_seconds` were over before anything else could."""
        verdict = asyncio.get_running_loop().create_future()
        verdict.set_result(
            Judgement(
                program=None, verification=None, total=request.spec.check_count, unfinished=True
            )
        )
        message = {"role": "assistant", "content": ""}
        choice = _whole({"index": 0, "message": message, "finish_reason": "length"})
        return Try(
            index=0,
            choice=choice,
            mean_logprob=None,
            repair_round=0,
            program=None,
            judging=verdict,
        )

    async def _rounds(
        self,
        call: Call,
        request: SpecRequest,
        tries: list[Try],
        judged: dict[str, asyncio.Task[Judgement]],
        usage: Counter[str],
    ) -> None:
        """Sample and judge, then repair, adding to `tries`, `judged` and `usage` as it goes."""
        messages = prompt_messages(call.envelope.body, request)
        for round_ in range(request.options.repair + 1):
            prompt = self._prompt(call, messages)
            sampling = _Round(
                self._engines, self._judge, call, request, prompt, round_, tries, judged
            )
            try:
                await sampling.run()
            finally:
                usage.update(sampling.usage)
            if any(t.verified for t in tries):
                return
            worth = rank([t for t in tries if t.judgement and t.judgement.verification])
            if not worth:
                return  # no program at all, or no sandbox: nothing to tell the model
            messages = repair_messages(prompt_messages(call.envelope.body, request), worth[0])

    def _prompt(self, call: Call, messages: list[Json]) -> Json:
        """The messages, with temperature and answer limit where the client states none.

        The engine refuses a limit that does not fit behind the prompt, so none is set where the
        prompt may be long: two characters a token is a careful guess for code and prose.
        """
        body, base = call.envelope.body, self._adapters.base
        prompt: Json = {"messages": messages}
        if body.get("temperature") is None:
            prompt["temperature"] = self._temperature
        stated = any(body.get(name) is not None for name in ("max_tokens", "max_completion_tokens"))
        window = (base.max_model_len if base is not None else None) or 0
        prompt_tokens = sum(len(str(m.get("content"))) for m in messages) // 2 + 64
        if stated or prompt_tokens + self._max_tokens > window:
            return prompt
        return prompt | {"max_tokens": self._max_tokens}

    def _choices(self, call: Call, request: SpecRequest, outcome: Outcome) -> list[Json]:
        keep_logprobs = bool(call.envelope.body.get("logprobs"))
        chosen = []
        for place, attempt in enumerate(outcome.ranked[: call.envelope.n]):
            choice = {**attempt.choice, "index": place}
            if not keep_logprobs:
                choice["logprobs"] = None
            judgement = attempt.judgement or Judgement(
                program=attempt.program, verification=None, total=request.spec.check_count
            )
            choice["verification"] = judgement.public(self._judge.tier)
            chosen.append(choice)
        return chosen

    async def _record(
        self, call: Call, request: SpecRequest, outcome: Outcome, chosen: list[Json]
    ) -> None:
        if not call.envelope.store:
            return
        place = {id(t): i for i, t in enumerate(outcome.ranked[: len(chosen)])}
        ids = {id(t): new_id() for t in sorted(outcome.ranked, key=lambda t: t.index)}
        attempts, executions, seen = [], [], set()
        # Best first: of equal programs, which ran once, the one the client got has the run.
        for attempt in outcome.ranked:
            row = Attempt(
                id=ids[id(attempt)],
                interaction_id=call.id,
                attempt_index=attempt.index,
                choice_index=place.get(id(attempt)),
                text=text_of(attempt.choice),
                program=attempt.program.source if attempt.program else None,
                program_sha256=attempt.program.sha256 if attempt.program else None,
                mean_logprob=attempt.mean_logprob,
                repair_round=attempt.repair_round,
            )
            attempts.append(row)
            if attempt.judgement is None or id(attempt.judging) in seen:
                continue
            seen.add(id(attempt.judging))
            execution = execution_row(attempt.judgement, interaction_id=call.id, attempt_id=row.id)
            if execution is not None:
                executions.append(execution)
        best = outcome.ranked[0].judgement
        unknown = best is None or best.says_nothing or not request.spec.has_checks
        await self._recorder.record(
            call.recording(
                choices=chosen,
                usage=outcome.usage,
                spec=request.spec,
                options={
                    "candidates": request.options.candidates,
                    "early_stop": request.options.early_stop,
                    "repair": request.options.repair,
                    "derived": request.derived,
                },
                verified=None if unknown else outcome.verified,
                attempts=attempts,
                executions=executions,
            )
        )

    # --- streaming ------------------------------------------------------------------------------

    async def _kept_alive(self, call: Call, request: SpecRequest, exchange: Exchange) -> Outcome:
        """Generate; from `QUIET_S` on, comments keep the connection alive.

        Before that nothing is sent, so that a refusal still gets a proper status.
        """
        work = asyncio.create_task(self.generate(call, request), name="generate")
        try:
            pause_s = QUIET_S
            while not (await asyncio.wait({work}, timeout=pause_s))[0]:
                if not exchange.started:
                    await exchange.start(call.headers)
                await exchange.write(b": judging\n\n")
                pause_s = KEEP_ALIVE_S
            return work.result()
        finally:
            await _cancel([work])

    async def _stream_out(
        self, call: Call, outcome: Outcome, chosen: Sequence[Json], exchange: Exchange
    ) -> None:
        """Stream the chosen answers; the verdict and the stamp come last."""
        if not exchange.started:
            await exchange.start(call.headers)
        chunks = list(_chunks(call, outcome, chosen))
        chunks[-1] = call.stamp(chunks[-1])
        for chunk in chunks:
            await exchange.write(encode(chunk))
        await exchange.write(DONE)
        await exchange.finish()


class _Round:
    """One sampling call and the judgements of what it returns."""

    def __init__(
        self,
        engines: Replicas,
        judge: Judge,
        call: Call,
        request: SpecRequest,
        prompt: Json,
        number: int,
        tries: list[Try],
        judged: dict[str, asyncio.Task[Judgement]],
    ) -> None:
        self._engines = engines
        self._judge = judge
        self._call = call
        self._request = request
        self._prompt = prompt
        self._number = number
        self._tries = tries
        self._judged = judged
        self._changed = asyncio.Event()
        self._new: list[asyncio.Task[Judgement]] = []
        self._sampled_at: float | None = None
        self.usage: Json = {}

    async def run(self) -> None:
        """Sample and judge until all is judged, or enough is verified."""
        started = time.perf_counter()
        sampler = asyncio.create_task(self._sample(), name="sample")
        sampler.add_done_callback(lambda _: self._changed.set())
        try:
            while not (self._enough() or (sampler.done() and all(t.done() for t in self._new))):
                await self._changed.wait()
                self._changed.clear()
                if sampler.done() and (error := sampler.exception()) is not None:
                    raise error
        finally:
            sampled_at = time.perf_counter()
            await _cancel([sampler])
            await _cancel(self._new)
            spent = time.perf_counter() - started
            engine_s = min((self._sampled_at or sampled_at) - started, spent)
            self._call.engine_s += engine_s
            self._call.sandbox_s += spent - engine_s

    def _enough(self) -> bool:
        if not self._request.options.early_stop:
            return False
        return sum(t.verified for t in self._tries) >= self._call.envelope.n

    async def _sample(self) -> None:
        async with aclosing(self._sampled()) as choices:
            async for choice in choices:
                self._take(choice)
        self._sampled_at = time.perf_counter()

    def _take(self, choice: Json) -> None:
        spec = self._request.spec
        program = self._judge.program(text_of(choice), spec)
        task = self._judged.get(program.sha256) if program else None
        if task is None or task.cancelled():
            task = asyncio.create_task(self._judge.judge(program, spec), name="judge")
            task.add_done_callback(lambda _: self._changed.set())
            self._new.append(task)
            if program is not None:
                self._judged[program.sha256] = task
        self._tries.append(
            Try(
                index=len(self._tries),
                choice=choice,
                mean_logprob=mean_logprob(choice),
                repair_round=self._number,
                program=program,
                judging=task,
            )
        )
        self._changed.set()

    async def _sampled(self) -> AsyncGenerator[Json, None]:
        body = self._call.upstream(**self._prompt, logprobs=True)
        # Greedy attempts are all the same, and the engine refuses to make several.
        greedy = body.get("temperature") == 0
        body["n"] = self._call.envelope.n if greedy else self._request.options.candidates
        streamed = (
            self._request.options.early_stop
            and body["n"] > self._call.envelope.n
            and not any(body.get(name) for name in _WHOLE_ONLY)
        )
        source = self._from_stream(body) if streamed else self._from_answer(body)
        async with aclosing(source) as choices:
            async for choice in choices:
                yield choice

    async def _from_answer(self, body: Json) -> AsyncGenerator[Json, None]:
        for name in ("stream", "stream_options"):
            body.pop(name, None)
        answer = await self._engines.post(CHAT, body, request_id=self._request_id)
        self.usage = _counts(answer.get("usage"))
        for choice in answer.get("choices") or ():
            yield choice

    async def _from_stream(self, body: Json) -> AsyncGenerator[Json, None]:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        tally, tokens = Tally(), Counter[int]()
        async with self._engines.stream(CHAT, body, request_id=self._request_id) as chunks:
            async for events in batches(chunks):
                for event in events:
                    chunk = payload(event)
                    if chunk is None:
                        continue
                    if "error" in chunk:
                        message = (chunk["error"] or {}).get("message", "")
                        raise EngineUnavailable(f"the engine failed: {message}")
                    finished = tally.add(chunk)
                    self._count(chunk, tokens)
                    for choice in finished:
                        yield _whole(choice)

    def _count(self, chunk: Json, tokens: Counter[int]) -> None:
        """Keep the usage right also when the stream is cut short: the tokens made until then."""
        usage = _counts(chunk.get("usage"))
        if not chunk.get("choices"):
            if usage:
                self.usage = usage
            return
        for part in chunk["choices"]:
            tokens[part["index"]] = usage.get("completion_tokens", tokens[part["index"]])
        made, prompt = sum(tokens.values()), usage.get("prompt_tokens", 0)
        self.usage = {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
        }

    @property
    def _request_id(self) -> str:
        return self._call.id if self._number == 0 else f"{self._call.id}-repair{self._number}"


# --- the pieces -------------------------------------------------------------------------------


def prompt_messages(body: Json, request: SpecRequest) -> list[Json]:
    """The client's messages, the last of the user with the specification's visible part.

    Raises:
        BadRequest: there is no message of the user's that text could be added to.
    """
    messages = list(body["messages"])
    if request.derived:
        return messages  # the prompt says all of it already
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].get("role") == "user":
            messages[place] = _extended(messages[place], request.spec)
            return messages
    raise BadRequest("a message of the user is needed with io_spec", param="messages")


def _extended(message: Json, spec: Spec) -> Json:
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": extend_prompt(content, spec)}
    parts = list(content or ())
    for place in range(len(parts) - 1, -1, -1):
        part = parts[place]
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            parts[place] = {**part, "text": extend_prompt(part["text"], spec)}
            return {**message, "content": parts}
    return {**message, "content": [*parts, {"type": "text", "text": extend_prompt("", spec)}]}


def last_user_text(messages: Sequence[Any]) -> str:
    """The text of the user's last message."""
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            parts = content if isinstance(content, list) else []
            texts = [p.get("text") for p in parts if isinstance(p, dict)]
            return "\n".join(text for text in texts if isinstance(text, str))
    return ""


def repair_messages(messages: list[Json], attempt: Try) -> list[Json]:
    """Show the model its own attempt and what the visible examples say of it."""
    judgement = attempt.judgement
    said = judgement.verification.feedback() if judgement and judgement.verification else ""
    return [
        *messages,
        {"role": "assistant", "content": text_of(attempt.choice)},
        {
            "role": "user",
            "content": f"The program is not right yet:\n{said}\n\nWrite the whole corrected "
            "program in one Python code block.",
        },
    ]


def rank(tries: Sequence[Try]) -> list[Try]:
    """Sort attempts, best first; the earlier of equals comes first."""
    digests = Counter(d for t in tries if (d := _outputs(t)) is not None)

    def key(attempt: Try) -> tuple[Any, ...]:
        judgement = attempt.judgement
        judged = judgement.rank if judgement is not None else (False, -2.0, -2.0)
        digest = _outputs(attempt)
        agreement = digests[digest] if digest is not None else 0
        logprob = attempt.mean_logprob if attempt.mean_logprob is not None else float("-inf")
        return (*judged, agreement, logprob)

    return sorted(tries, key=key, reverse=True)


def _outputs(attempt: Try) -> str | None:
    judgement = attempt.judgement
    if judgement is None or judgement.verification is None:
        return None
    return judgement.verification.outputs_digest


def text_of(choice: Json) -> str:
    """The text of a choice."""
    content = (choice.get("message") or {}).get("content")
    return content if isinstance(content, str) else ""


def mean_logprob(choice: Json) -> float | None:
    """Mean log-probability (nats) of a choice's tokens."""
    tokens = (choice.get("logprobs") or {}).get("content") or []
    values = [t["logprob"] for t in tokens if isinstance(t.get("logprob"), (int, float))]
    return sum(values) / len(values) if values else None


def _counts(usage: Any) -> Json:
    if not isinstance(usage, dict):
        return {}
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {name: usage[name] for name in names if isinstance(usage.get(name), int)}


def _whole(choice: Json) -> Json:
    """A choice added up from chunks, with the fields that a whole answer has."""
    empty = {"refusal": None, "annotations": None, "audio": None, "function_call": None}
    message = {**empty, **choice.get("message", {"role": "assistant", "content": ""})}
    return {"logprobs": None, "stop_reason": None, **choice, "message": message}


def _chunks(call: Call, outcome: Outcome, chosen: Sequence[Json]) -> list[Json]:
    head = {
        "id": call.completion_id,
        "object": "chat.completion.chunk",
        "created": int(call.created_at.timestamp()),
        "model": call.served.model,
    }

    def chunk(index: int, delta: Json, finish: str | None = None, **more: Any) -> Json:
        part = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish, **more}
        return {**head, "choices": [part]}

    chunks = []
    for choice in chosen:
        place, message = choice["index"], choice.get("message") or {}
        chunks.append(chunk(place, {"role": "assistant", "content": ""}))
        text = text_of(choice)
        for start in range(0, len(text), PIECE_CHARS):
            chunks.append(chunk(place, {"content": text[start : start + PIECE_CHARS]}))
        if message.get("tool_calls"):
            calls = [{"index": i, **c} for i, c in enumerate(message["tool_calls"])]
            chunks.append(chunk(place, {"tool_calls": calls}))
        chunks.append(
            chunk(
                place,
                {},
                choice.get("finish_reason") or "stop",
                stop_reason=choice.get("stop_reason"),
                verification=choice["verification"],
            )
        )
    if call.envelope.include_usage:
        chunks.append(
            {
                **head,
                "choices": [],
                "usage": outcome.usage,
                "verification": chosen[0]["verification"],
            }
        )
    return chunks


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have let go of what they hold."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: whoever needed it has had it
