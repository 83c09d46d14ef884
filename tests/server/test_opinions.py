"""Feedback from the command line, through a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops import keys, opinions
from ops.errors import FeedbackError
from tests.fake_engine import FakeEngine
from tests.server.conftest import Running


def test_what_is_said_is_kept_under_the_ids_that_are_told(
    server: Running,
    tmp_path: Path,
) -> None:
    answer = server.chat().json()["id"]
    better = tmp_path / "better.py"
    better.write_text("def add(a, b):\n    return a + b\n")
    said = opinions.read(accepted=False, rating=2.0, comment="too long", demonstration=better)
    key = keys.own(server.settings.data_dir)
    rows = opinions.send(server.url, answer, said, key=key, user="ann")
    kept = server.store.feedback(answer.removeprefix("chatcmpl-"))
    assert [(row.id, row.metric, row.value) for row in kept] == [
        (row["id"], row["metric"], row["value"]) for row in rows
    ]
    assert {row.user for row in kept} == {"ann"}
    with pytest.raises(FeedbackError, match="the server refuses: no interaction none"):
        opinions.send(server.url, "none", said, key=None, user=None)


def test_a_key_that_is_none_is_refused_with_the_server_s_words(
    server: Running,
) -> None:
    server.store.add_key(keys.make("ide", created_by="t").key)
    server.until(lambda: server.http.get("/v1/models").status_code == 401)
    with pytest.raises(FeedbackError, match="refuses: this API key is not known"):
        opinions.send(server.url, "x", opinions.read(accepted=True), key="jm-wrong", user=None)


def test_what_is_no_journeyman_is_said_so(engine: FakeEngine) -> None:
    with pytest.raises(FeedbackError, match="is no Journeyman"):
        opinions.send(engine.url, "x", opinions.read(accepted=True), key=None, user=None)
