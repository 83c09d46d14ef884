"""Ask a server through LiteLLM, and print what it understood as JSON.

python litellm_client.py URL [WHAT…]        in the environment of `ops/run clients`
"""

import asyncio
import json
import sys

import litellm

URL = sys.argv[1]
MESSAGES = [{"role": "user", "content": "add"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"where": {"type": "string"}}},
    },
}
litellm.suppress_debug_info = True  # it prints advice with errors
SERVER = {
    "model": "openai/code",
    "api_base": f"{URL}/v1",
    "api_key": "none",
    "num_retries": 0,
    "max_tokens": 16,
}


def whole():
    answer = litellm.completion(messages=MESSAGES, **SERVER)
    return {"id": answer.id, "text": answer.choices[0].message.content}


def stream():
    chunks = list(litellm.completion(messages=MESSAGES, stream=True, **SERVER))
    built = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    return {"id": chunks[0].id, "text": built.choices[0].message.content}


async def asynchronous():
    answer = await litellm.acompletion(messages=MESSAGES, **SERVER)
    return {"id": answer.id, "text": answer.choices[0].message.content}


def text():
    answer = litellm.text_completion(
        prompt="add", **SERVER | {"model": "text-completion-openai/code"}
    )
    return {"id": answer.id, "text": answer.choices[0].text}


def tool():
    answer = litellm.completion(messages=MESSAGES, tools=[TOOL], **SERVER)
    message = answer.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "nothing"}
    after = litellm.completion(messages=[*MESSAGES, message, result], tools=[TOOL], **SERVER)
    arguments = json.loads(message.tool_calls[0].function.arguments)
    return {"arguments": arguments, "text": after.choices[0].message.content}


def stream_tool():
    chunks = list(litellm.completion(messages=MESSAGES, tools=[TOOL], stream=True, **SERVER))
    built = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    return json.loads(built.choices[0].message.tool_calls[0].function.arguments)


def verified():
    spec = {"entry_point": "add", "examples": [{"input": [1, 2], "output": 3}]}
    answer = litellm.completion(messages=MESSAGES, extra_body={"io_spec": spec}, **SERVER)
    return {"id": answer.id, "text": answer.choices[0].message.content}


def refused():
    try:
        litellm.completion(messages=MESSAGES, **SERVER | {"model": "openai/gpt-4"})
    except litellm.NotFoundError as error:
        return error.status_code
    return None


async def main():
    found = {"asynchronous": await asynchronous()}
    for ask in (whole, stream, text, refused, tool, stream_tool, verified):
        if not sys.argv[2:] or ask.__name__ in sys.argv[2:]:
            found[ask.__name__] = ask()
    sys.stdout.write(json.dumps(found))


asyncio.run(main())
