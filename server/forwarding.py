"""Plain completions: the engine's answer, passed on as it is, stamped and recorded.

Whole answers gain our fields; streams are the engine's bytes except for the last chunk, which
carries the stamp. Either is durable before its last byte leaves. Requests with an `io_spec` are
`generation`'s.
"""

from __future__ import annotations

import time
from typing import Any

from server.adapters import Adapters
from server.calls import CHAT, TEXT, Call
from server.dialects import choices_of, is_typed, relay_for
from server.errors import EngineRefusal, EngineUnavailable
from server.recording import Recorder
from server.replicas import Replicas
from server.replies import Exchange
from server.sse import batches

Json = dict[str, Any]


class Forwarder:
    """Passes plain requests on to the engine."""

    def __init__(self, engines: Replicas, recorder: Recorder, adapters: Adapters) -> None:
        self._engines = engines
        self._recorder = recorder
        self._adapters = adapters

    async def answer(self, call: Call, exchange: Exchange) -> None:
        """Answer a request that has no specification.

        Raises:
            EngineRefusal, EngineUnavailable: from the engine.
            RecordUnavailable: the answer could not be made durable and is withheld.
        """
        try:
            if call.envelope.stream:
                await self._stream(call, exchange)
            else:
                await self._whole(call, exchange)
        except EngineRefusal as error:
            raise self._adapters.explain(call.served, error) from error

    async def count(self, call: Call, exchange: Exchange) -> None:
        """Pass on a request that generates nothing; nothing is recorded.

        Raises:
            EngineRefusal, EngineUnavailable: from the engine.
        """
        try:
            answer = await self._engines.post(call.endpoint, call.upstream(), request_id=call.id)
        except EngineRefusal as error:
            raise self._adapters.explain(call.served, error) from error
        await exchange.json(answer)

    async def _whole(self, call: Call, exchange: Exchange) -> None:
        asked = time.perf_counter()
        answer = await self._engines.post(call.endpoint, call.upstream(), request_id=call.id)
        call.engine_s = time.perf_counter() - asked
        call.stamp(answer)
        choices = choices_of(call.endpoint, answer)
        await self._record(call, choices, answer.get("usage") or {})
        await exchange.json(answer, headers=call.headers)

    async def _stream(self, call: Call, exchange: Exchange) -> None:
        body = call.upstream(stream=True)
        if call.endpoint in (CHAT, TEXT) and not call.envelope.include_usage:
            # Asked for in any case, for the record; the extra chunk is kept from the client.
            body["stream_options"] = {
                **(body.get("stream_options") or {}),
                "include_usage": True,
                "continuous_usage_stats": False,
            }
        asked = time.perf_counter()
        if call.envelope.store:
            call.announce(self._recorder)
        try:
            async with self._engines.stream(call.endpoint, body, request_id=call.id) as chunks:
                await exchange.start(call.headers, typed=is_typed(call.endpoint))
                relay = relay_for(call)
                async for events in batches(chunks):
                    passed = b"".join(filter(None, map(relay.take, events)))
                    if passed:
                        await exchange.write(passed)
                    if relay.done:
                        break
            call.engine_s = time.perf_counter() - asked
            if not relay.done:
                raise EngineUnavailable("the engine's stream broke off")
            if not relay.failed:
                await self._record(call, relay.choices, relay.usage)
            await exchange.write(relay.rest())
            await exchange.finish()
        finally:
            self._recorder.settle(call.id)

    async def _record(self, call: Call, choices: list[Json], usage: Json) -> None:
        call.spend(usage)
        if call.envelope.store:
            await self._recorder.record(call.recording(choices=choices, usage=usage))
