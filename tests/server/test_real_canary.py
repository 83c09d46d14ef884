"""A canary on a real vLLM: a share of the requests, opinions of it, and its end by itself.

The adapter is random and writes nonsense; people reject what it writes and accept the base model's.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from improver.benchmarks.builtin import Builtin
from improver.divergence import POINTS, measure
from improver.policy import Policy
from improver.workspace import Journal
from ops.records import AdapterState, Alias
from tests.real_system import RealEngine
from tests.server.conftest import SharedPool, serving

pytestmark = [pytest.mark.slow, pytest.mark.engine]
USERS = [f"user{n}" for n in range(24)]


async def test_a_canary_that_people_reject_leaves_by_itself(
    real_engine: RealEngine, pool: SharedPool, tmp_path: Path
) -> None:
    real_engine.unload_adapters()
    model, made = real_engine.model, real_engine.adapters[3]
    with serving(real_engine, tmp_path, checker=pool) as server:  # type: ignore[arg-type]

        def write(draft: Path) -> None:
            for path in made.iterdir():
                (draft / path.name).write_bytes(path.read_bytes())

        adapter = server.registry.add(
            write,
            base_model=model.name,
            base_sha256=model.sha256,
            rank=8,
            recipe="test",
            cycle_id=None,
            lineage={},
            actor="test",
        )
        server.registry.examined(1, actor="test", reason="r", evidence={})
        server.registry.canary(1, actor="test", reason="r", evidence={"share": 0.5})

        def ask(user: str, **body: Any) -> tuple[str, int]:
            answer = server.http.post(
                "/v1/chat/completions",
                json={
                    "model": "code",
                    "messages": [{"role": "user", "content": "Say hi."}],
                    "user": user,
                    "max_tokens": 2,
                    **body,
                },
                timeout=120,
            )
            assert answer.status_code == 200, answer.text
            said = answer.json()
            assert said["model"] == ("code@v1" if said["adapter"]["version"] else model.name)
            return said["id"], int(said["adapter"]["version"])

        server.until(lambda: {ask(user, store=False)[1] for user in USERS} == {0, 1}, timeout_s=120)
        arm = {user: ask(user, store=False)[1] for user in USERS}
        assert set(arm.values()) == {0, 1}
        (receipt,) = server.store.receipts(version=1)
        assert receipt.probe["alias"] == "canary"
        assert receipt.probe["max_loras"] == 3

        async with Policy(server.url) as policy:
            with Journal(tmp_path / "journal") as journal:
                tasks = Builtin().tasks()[:2]
                moved = await measure(tasks, policy, journal, base=model.name, candidate="code@v1")
                still = await measure(tasks, policy, journal, base=model.name, candidate=model.name)
        assert moved.points == still.points == 2 * POINTS
        assert moved.nats is not None
        # A small random adapter moves the next token a little; the base model never from itself.
        assert moved.nats > 0.005 > 0.001 > (still.nats or 0.0)

        asked = 0
        while server.registry.get(1).state is AdapterState.CANARY:
            user = USERS[asked % len(USERS)]
            id_, version = ask(user)
            assert version in (arm[user], 0)
            said = {"inference_id": id_, "metric_name": "accepted", "value": version == 0}
            assert server.http.post("/v1/feedback", json=said).status_code == 200
            asked += 1
            assert asked < 400
        left_at = time.monotonic()
        server.until(lambda: {ask(u, store=False)[1] for u in USERS[:8]} == {0}, timeout_s=30)
        seconds = time.monotonic() - left_at
        last = server.store.transitions(1)[-1]
        assert last.to_state is AdapterState.REJECTED
        assert "accepted instead of" in last.reason
        assert Alias.CANARY not in server.store.aliases()
        assert len(server.store.receipts(version=1)) == 1, "nothing was loaded for it"
        logging.getLogger(__name__).warning(
            "%s after %d requests; eight users were on the base model again %.2f s later; %s",
            last.reason,
            asked,
            seconds,
            {"divergence": moved.nats, "adapter": adapter.name},
        )
