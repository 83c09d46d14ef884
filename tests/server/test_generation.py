"""Verified generation: several attempts, judged in the real sandbox, the best first."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandbox import SandboxError, Spec, Tier, Verification
from tests.fake_engine import FakeEngine
from tests.server.conftest import Running, SharedPool, serving

RIGHT = "```python\ndef add(a, b):\n    return a + b\n```"
WRONG = "```python\ndef add(a, b):\n    return a - b\n```"
HALF = "```python\ndef add(a, b):\n    return a + b if a < 5 else 0\n```"
BROKEN = "```python\ndef add(a, b)\n    return\n```"
PROSE = "I would rather not write a program."
SPEC: dict[str, Any] = {
    "summary": "Add two numbers.",
    "types": "(a: int, b: int) -> int",
    "entry_point": "add",
    "examples": [
        {"input": [1, 2], "output": 3},
        {"input": [7777, 8888], "output": 16665, "hidden": True},
    ],
}
MESSAGES: list[Any] = [{"role": "user", "content": "Write a function that adds."}]


def _answers(server: Running, *texts: str) -> None:
    server.engine.script = lambda body, index: texts[index % len(texts)]


def _verified(server: Running, spec: Any = SPEC, **body: Any) -> dict[str, Any]:
    response = server.chat(messages=MESSAGES, io_spec=spec, **body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_the_best_of_four_attempts_comes_back(server: Running) -> None:
    _answers(server, WRONG, BROKEN, RIGHT, PROSE)
    answer = server.openai.chat.completions.create(
        model="code", messages=MESSAGES, extra_body={"io_spec": SPEC}
    )
    assert [choice.message.content for choice in answer.choices] == [RIGHT]
    extra = answer.choices[0].model_extra
    assert extra is not None
    verification = extra["verification"]
    assert (verification["verified"], verification["status"]) == (True, "Success")
    assert (verification["passed"], verification["total"]) == (2, 2)
    assert [e["status"] for e in verification["examples"]] == ["Success", "Success"]
    assert verification["sandbox"] == Tier(server_tier(server)).label
    sent = server.engine.bodies()[-1]
    assert sent["n"] == server.settings.server.default_candidates
    assert "io_spec" not in sent


def server_tier(server: Running) -> int:
    label = server.http.get("/ready").json()["sandbox"]
    return next(tier for tier in Tier if tier.label == label)


def test_what_a_client_leaves_open_is_set_for_sampling_programs(server: Running) -> None:
    _answers(server, RIGHT)
    _verified(server)
    sent = server.engine.bodies()[-1]
    assert (sent["temperature"], sent["max_tokens"]) == (0.8, 1024)
    _verified(server, temperature=0.3, max_completion_tokens=50)
    sent = server.engine.bodies()[-1]
    assert (sent["temperature"], sent["max_completion_tokens"]) == (0.3, 50)
    assert "max_tokens" not in sent


def test_the_prompt_holds_the_visible_part_only(server: Running) -> None:
    _answers(server, RIGHT)
    _verified(server)
    (message,) = server.engine.bodies()[-1]["messages"]
    assert message["content"].startswith(MESSAGES[0]["content"])
    assert "add(1, 2) == 3" in message["content"]
    assert "16665" not in message["content"]
    assert "8888" not in message["content"]
    parts = [{"type": "text", "text": "Write add."}]
    server.chat(messages=[{"role": "user", "content": parts}], io_spec=SPEC)
    (message,) = server.engine.bodies()[-1]["messages"]
    assert "add(1, 2) == 3" in message["content"][0]["text"]


def test_when_none_passes_the_best_comes_marked(server: Running) -> None:
    _answers(server, PROSE, WRONG, HALF, BROKEN)
    answer = _verified(server, n=4)
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert texts[0] == HALF
    assert texts[-1] == PROSE
    verification = answer["choices"][0]["verification"]
    assert verification["verified"] is False
    assert verification["status"] == "Failed"
    assert (verification["passed"], verification["total"]) == (1, 2)
    row = server.store.interactions()[0]
    assert row.verified is False


def test_hidden_values_never_leave(server: Running) -> None:
    _answers(server, HALF)
    response = server.chat(messages=MESSAGES, io_spec=SPEC | {"repair": 1})
    whole = server.http.get(f"/v1/interactions/{response.json()['id']}")
    assert whole.json()["spec"]["examples"][0]["output"] == 3
    prompts = json.dumps(server.engine.bodies())
    for text in (response.text, whole.text, prompts):
        assert "16665" not in text
        assert "8888" not in text
    # The record itself knows them: the improver needs what was held back.
    row = server.store.interactions()[0]
    assert row.spec is not None
    assert row.spec["examples"][1]["output"] == 16665


def test_attempts_and_executions_are_recorded_and_identical_programs_run_once(
    server: Running,
) -> None:
    _answers(server, WRONG, WRONG + "\nDone.", HALF, PROSE)
    answer = _verified(server, SPEC | {"early_stop": False})
    interaction_id = answer["id"].removeprefix("chatcmpl-")
    attempts = server.store.attempts(interaction_id)
    assert [a.attempt_index for a in attempts] == [0, 1, 2, 3]
    assert [a.choice_index for a in attempts] == [None, None, 0, None]
    assert attempts[0].program_sha256 == attempts[1].program_sha256
    assert attempts[3].program is None
    assert [a.mean_logprob for a in attempts] == pytest.approx([-1, -1 / 2, -1 / 3, -1 / 4])
    executions = server.store.executions(interaction_id)
    assert len(executions) == 2
    assert {e.program_sha256 for e in executions} == {a.program_sha256 for a in attempts[:3]}
    assert [e["hidden"] for e in executions[0].examples] == [False, True]
    whole = server.http.get(f"/v1/interactions/{interaction_id}").json()
    assert len(whole["attempts"]) == 4
    assert [e["message"] for e in whole["executions"][0]["examples"]][1] is None


def test_equals_are_ranked_by_agreement_then_probability(server: Running) -> None:
    one = "```python\ndef f(x):\n    return x + 1\n```"
    same = "```python\ndef f(y):\n    return 1 + y\n```"
    other = "```python\ndef f(x):\n    return x + 2\n```"
    _answers(server, one, same, other)
    spec = {"entry_point": "f", "examples": [{"input": [1]}, {"input": [5]}], "candidates": 3}
    answer = _verified(server, spec, n=3)
    assert [c["message"]["content"] for c in answer["choices"]] == [same, one, other]
    assert answer["choices"][0]["verification"]["status"] == "Unchecked"
    assert server.store.interactions()[0].verified is None


def test_enough_verified_attempts_cancel_the_rest(server: Running) -> None:
    long = "word " * 400 + WRONG
    server.engine.script = lambda body, index: RIGHT if index == 0 else long
    server.engine.token_delay_s = 0.02
    started = time.monotonic()
    answer = _verified(server)
    assert answer["choices"][0]["verification"]["verified"] is True
    assert time.monotonic() - started < 4
    server.until(lambda: server.engine.aborted == 1, timeout_s=3)
    assert server.engine.running == 0
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 9 < usage["completion_tokens"] < 1600


def test_max_seconds_brings_back_what_is_there(server: Running) -> None:
    long = "word " * 400 + RIGHT
    server.engine.script = lambda body, index: WRONG if index == 0 else long
    server.engine.token_delay_s = 0.02
    answer = _verified(server, SPEC | {"max_seconds": 1.0})
    choice = answer["choices"][0]
    assert (choice["message"]["content"], choice["verification"]["verified"]) == (WRONG, False)
    server.until(lambda: server.engine.running == 0, timeout_s=3)
    server.engine.script = lambda body, index: long
    for max_seconds in (0.5, 1e-9):
        answer = _verified(server, SPEC | {"max_seconds": max_seconds})
        [choice] = answer["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
        assert choice["verification"]["verified"] is False
        assert choice["verification"]["status"] == "TimeLimitExceeded"
        assert "max_seconds" in choice["verification"]["message"]
        [row] = server.store.interactions(limit=1)
        assert row.verified is None  # nothing was wrong: there was nothing
        assert server.store.executions(row.id) == []
        server.until(lambda: server.engine.running == 0, timeout_s=3)


def test_repair_shows_visible_failures_and_can_mend(server: Running) -> None:
    server.engine.script = lambda body, index: RIGHT if len(body["messages"]) > 1 else WRONG
    answer = _verified(server, SPEC | {"repair": 2, "candidates": 2})
    assert answer["choices"][0]["verification"]["verified"] is True
    first, second = server.engine.bodies()[-2:]
    assert len(first["messages"]) == 1
    assert [m["role"] for m in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == WRONG
    assert "add(1, 2)" in second["messages"][2]["content"]
    attempts = server.store.attempts(answer["id"].removeprefix("chatcmpl-"))
    assert [a.repair_round for a in attempts][:3] == [0, 0, 1]
    assert answer["usage"]["completion_tokens"] >= 27


def test_a_request_without_checks_makes_one_attempt(server: Running) -> None:
    _answers(server, RIGHT)
    answer = _verified(server, {"summary": "Add.", "types": "(a, b) -> int"})
    assert server.engine.bodies()[-1]["n"] == 1
    verification = answer["choices"][0]["verification"]
    assert (verification["verified"], verification["total"]) == (False, 0)
    assert server.store.interactions()[0].verified is None


def test_greedy_attempts_are_one(server: Running) -> None:
    _answers(server, RIGHT)
    answer = _verified(server, temperature=0)
    assert server.engine.bodies()[-1]["n"] == 1
    assert answer["choices"][0]["verification"]["verified"] is True


def test_auto_finds_the_checks_of_the_prompt(server: Running) -> None:
    _answers(server, WRONG, RIGHT)
    prompt = "Write add.\n>>> add(1, 2)\n3\nassert add(2, 2) == 4"
    messages = [{"role": "user", "content": prompt}]
    answer = server.chat(messages=messages, io_spec="auto").json()
    assert answer["choices"][0]["verification"]["total"] == 2
    assert server.engine.bodies()[-1]["messages"] == messages
    plain = server.chat(messages=MESSAGES, io_spec="auto").json()
    assert "verification" not in plain["choices"][0]


def test_wrong_specs_are_a_400_that_names_the_field(server: Running) -> None:
    wrong: list[tuple[Any, str]] = [
        (3, "io_spec"),
        ([], "io_spec"),
        ("always", "io_spec"),
        ({"examples": 3}, "io_spec.examples"),
        ({"examples": [{"output": 3}]}, "io_spec.examples[0].input"),
        ({"examples": [{"input": [1], "surprise": 1}]}, "io_spec.examples[0].surprise"),
        ({"surprise": 1}, "io_spec.surprise"),
        ({"entry_point": "not a name"}, "io_spec.entry_point"),
        (SPEC | {"candidates": 0}, "io_spec.candidates"),
        (SPEC | {"candidates": "4"}, "io_spec.candidates"),
        (SPEC | {"candidates": 2.5}, "io_spec.candidates"),
        (SPEC | {"candidates": True}, "io_spec.candidates"),
        (SPEC | {"candidates": 33}, "io_spec.candidates"),
        (SPEC | {"repair": -1}, "io_spec.repair"),
        (SPEC | {"repair": 99}, "io_spec.repair"),
        (SPEC | {"early_stop": 1}, "io_spec.early_stop"),
        (SPEC | {"max_seconds": 0}, "io_spec.max_seconds"),
    ]
    for spec, param in wrong:
        response = server.chat(messages=MESSAGES, io_spec=spec)
        assert response.status_code == 400, spec
        assert response.json()["error"]["param"] == param
    response = server.chat(messages=MESSAGES, io_spec=SPEC | {"candidates": 2}, n=3)
    assert response.json()["error"]["param"] == "io_spec.candidates"
    response = server.chat(messages=MESSAGES, io_spec=SPEC, n=40)
    assert response.json()["error"]["param"] == "n"
    system = [{"role": "system", "content": "x"}]
    response = server.chat(messages=system, io_spec=SPEC)
    assert response.json()["error"]["param"] == "messages"
    body = {"model": "code", "prompt": "x", "io_spec": SPEC}
    response = server.http.post("/v1/completions", json=body)
    assert response.json()["error"]["param"] == "io_spec"
    assert server.engine.requests == []


def test_a_streamed_answer_is_the_chosen_one_with_the_verdict_last(server: Running) -> None:
    _answers(server, WRONG, RIGHT)
    body = {"model": "code", "messages": MESSAGES, "io_spec": SPEC, "stream": True}
    response = server.http.post("/v1/chat/completions", json=body)
    events = response.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event[6:]) for event in events[:-1]]
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
    assert text == RIGHT
    last = chunks[-1]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["choices"][0]["verification"]["verified"] is True
    assert last["adapter"]["version"] == 0
    interaction_id = response.headers["x-journeyman-interaction-id"]
    assert {c["id"] for c in chunks} == {f"chatcmpl-{interaction_id}"}
    assert server.store.interaction(interaction_id).verified is True
    usage = server.openai.chat.completions.create(
        model="code",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"io_spec": SPEC},
    )
    chunk = list(usage)[-1]
    assert chunk.usage is not None
    assert chunk.model_extra is not None
    assert chunk.model_extra["verification"]["verified"] is True


def test_comments_keep_a_long_judgement_alive(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.generation.QUIET_S", 0.05)
    monkeypatch.setattr("server.generation.KEEP_ALIVE_S", 0.05)
    _answers(server, RIGHT)
    server.engine.token_delay_s = 0.03
    body = {"model": "code", "messages": MESSAGES, "io_spec": SPEC, "stream": True}
    text = server.http.post("/v1/chat/completions", json=body).text
    assert text.startswith(": judging\n\n")
    assert text.endswith("data: [DONE]\n\n")


def test_store_false_is_verified_but_not_recorded(server: Running) -> None:
    _answers(server, RIGHT)
    answer = _verified(server, store=False)
    assert answer["choices"][0]["verification"]["verified"] is True
    assert server.store.interactions() == []
    body = {"inference_id": answer["id"], "metric_name": "accepted", "value": True}
    assert server.http.post("/v1/feedback", json=body).status_code == 404


def test_logprobs_come_back_only_when_asked_for(server: Running) -> None:
    _answers(server, RIGHT)
    assert _verified(server)["choices"][0]["logprobs"] is None
    asked = _verified(server, logprobs=True)["choices"][0]["logprobs"]
    assert len(asked["content"]) == 9


class FailingPool:
    """A sandbox that is broken."""

    tier = Tier.NAMESPACES

    def gauges(self) -> dict[str, float]:
        return {}

    async def check(self, code: str, spec: Spec) -> Verification:
        raise SandboxError("no child was ready")

    async def __aenter__(self) -> FailingPool:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return None


def test_a_broken_sandbox_still_gives_the_answer(engine: FakeEngine, tmp_path: Path) -> None:
    with serving(engine, tmp_path, checker=FailingPool()) as server:
        answer = _verified(server)
        verification = answer["choices"][0]["verification"]
        assert verification["verified"] is False
        assert verification["status"] == "SandboxError"
        assert "no child" not in json.dumps(verification)
        row = server.store.interactions()[0]
        assert row.verified is None
        assert server.store.executions(row.id) == []
        assert "journeyman_sandbox_errors_total" in server.http.get("/metrics").text


def test_a_client_that_goes_away_stops_sampling_and_judging(
    server: Running, pool: SharedPool
) -> None:
    server.engine.script = lambda body, index: "```python\nwhile True: pass\n```"
    body = {"model": "code", "messages": MESSAGES, "io_spec": {"tests": ["assert f() == 1"]}}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=1.0)
    gone_at = time.monotonic()
    server.until(lambda: pool.gauges()["idle"] == pool.gauges()["workers"], timeout_s=3)
    assert time.monotonic() - gone_at < 2
    assert server.store.interactions() == []


def test_many_requests_at_once_each_get_their_own_verdict(server: Running) -> None:
    server.engine.script = lambda body, index: (
        RIGHT if "good" in body["messages"][0]["content"] else WRONG
    )
    verdicts: dict[int, bool] = {}

    def ask(number: int) -> None:
        word = "good" if number % 2 else "bad"
        messages = [{"role": "user", "content": f"{word} {number}"}]
        answer = server.chat(messages=messages, io_spec=SPEC).json()
        verdicts[number] = answer["choices"][0]["verification"]["verified"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {number: bool(number % 2) for number in range(12)}


def test_of_equal_programs_the_one_the_client_got_has_the_run(server: Running) -> None:
    # The fake engine makes the later choice the likelier one, so that the last one is chosen.
    spec = {"entry_point": "add", "examples": [{"input": [1, 2], "output": 4}]}
    answer = server.chat(io_spec=spec).json()
    interaction_id = answer["id"].removeprefix("chatcmpl-")
    chosen = next(a for a in server.store.attempts(interaction_id) if a.choice_index == 0)
    assert chosen.attempt_index == 3
    runs = server.store.executions(interaction_id)
    assert [run.attempt_id for run in runs] == [chosen.id]
