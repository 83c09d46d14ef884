"""The endpoints that are passed on, through real clients against a real vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.contracts.conftest import RealEngine, real_engine
from tests.server.conftest import Running, SharedPool, serving

__all__ = ["real_engine"]

pytestmark = [pytest.mark.slow, pytest.mark.engine]
MESSAGES: list[Any] = [{"role": "user", "content": "Say hi."}]


@pytest.fixture(scope="module")
def real(
    real_engine: RealEngine, pool: SharedPool, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with serving(real_engine, tmp_path_factory.mktemp("real"), checker=pool) as running:  # type: ignore[arg-type]
        yield running


def test_responses(real: Running) -> None:
    client = real.openai.with_options(timeout=300)
    whole = client.responses.create(
        model="code", input="Say hi.", instructions="Be brief.", max_output_tokens=5
    )
    with client.responses.stream(model="code", input=MESSAGES, max_output_tokens=5) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text != ""
    for answer in (whole, final):
        row = real.store.interaction(answer.id.removeprefix("resp_"))
        assert row.choices[0]["message"]["content"] == answer.output_text
        assert row.usage["output_tokens"] == 5
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="code", input="x", temperature=-1)


def test_messages(real: Running) -> None:
    with anthropic.Anthropic(
        base_url=real.url, api_key="none", max_retries=0, timeout=300
    ) as client:
        whole = client.messages.create(
            model="code", system="Be brief.", messages=MESSAGES, max_tokens=5
        )
        with client.messages.stream(model="code", messages=MESSAGES, max_tokens=5) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        counted = client.messages.count_tokens(model="code", messages=MESSAGES)
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(model="code", messages=MESSAGES, max_tokens=-1)
    assert text == final.content[0].text != ""  # type: ignore[union-attr]
    assert final.stop_reason == "max_tokens"
    assert counted.input_tokens == final.usage.input_tokens
    for answer in (whole, final):
        row = real.store.interaction(answer.id.removeprefix("msg_"))
        assert row.choices[0]["message"]["content"] == answer.content[0].text  # type: ignore[union-attr]
