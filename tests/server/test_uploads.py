"""Files of demonstrations, uploaded and learned from through OpenAI's client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from improver import corpus
from ops.records import Source
from server import uploads
from server.errors import BadRequest
from server.uploads import Upload, episode_of, read_form, recordings
from tests.server.conftest import Running

ASKED = {"role": "user", "content": "Write a function that doubles a number."}
PROGRAM = "def double(n):\n    return 2 * n\n"
SHOWN = {"role": "assistant", "content": f"```python\n{PROGRAM}```"}


def _lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _file(server: Running, content: bytes, **more: Any) -> Any:
    given: Any = {"purpose": "fine-tune", **more}
    return server.openai.files.create(file=("mine.jsonl", content), **given)


def test_a_file_of_demonstrations_is_learned_from(server: Running) -> None:
    other = {"role": "user", "content": "Write to jo@gmail.com, then double.\u2028"}
    content = _lines({"messages": [ASKED, SHOWN]}, {"messages": [other, SHOWN]}) + b"\n"
    file = _file(server, content)
    assert (file.filename, file.bytes, file.purpose) == ("mine.jsonl", len(content), "fine-tune")
    assert _file(server, content) == file
    assert list(server.openai.files.list(purpose="fine-tune")) == [file]
    assert server.openai.files.retrieve(file.id) == file
    kept = server.openai.files.content(file.id).text.removesuffix("\n").split("\n")
    first, second = map(json.loads, kept)
    assert first["messages"] == [ASKED, SHOWN]
    assert "jo@gmail.com" not in second["messages"][0]["content"]
    rows = server.store.interactions()
    assert {row.source for row in rows} == {Source.IMPORTED}
    found = corpus.of_record(server.store)
    assert [(one.code, one.messages[0]["role"]) for one in found.snippets] == [(PROGRAM, "user")]
    job = server.openai.fine_tuning.jobs.create(model="code", training_file=file.id)
    assert job.metadata is not None
    assert job.metadata["recipe"] == "inverse_instruct"


def test_what_no_database_keeps_is_replaced(server: Running) -> None:
    odd = SHOWN | {"content": "```python\nx = '\ud800\0'\n```"}
    form = {
        "purpose": (None, b"fine-tune"),
        "file": ("\xe9.jsonl", _lines({"messages": [odd, odd]})),
    }
    answer = server.http.post("/v1/files", files=form)
    assert answer.status_code == 200, answer.text
    [row] = server.store.interactions()
    assert "\ufffd" in row.messages[0]["content"]
    assert server.http.get(f"/v1/files/{answer.json()['id']}/content").status_code == 200


def test_only_what_learns_from_it_takes_it(server: Running) -> None:
    file = _file(server, _lines({"messages": [ASKED, SHOWN]}))
    jobs = server.openai.fine_tuning.jobs
    with pytest.raises(openai.BadRequestError, match="inverse_instruct and all"):
        jobs.create(model="code", training_file=file.id, metadata={"recipe": "ilf"})
    with pytest.raises(openai.BadRequestError, match="no file x"):
        jobs.create(model="code", training_file="file-x")
    assert server.store.cycles() == []


def test_a_file_that_was_deleted_is_gone(server: Running) -> None:
    file = _file(server, _lines({"messages": [ASKED, SHOWN]}))
    assert server.openai.files.delete(file.id).deleted
    assert server.store.interactions() == []
    assert list(server.openai.files.list()) == []
    for gone in (server.openai.files.delete, server.openai.files.retrieve):
        with pytest.raises(openai.NotFoundError):
            gone(file.id)


BAD: list[tuple[bytes, str]] = [
    (b"", "file"),
    (b"\n\n", "file"),
    (b"\xff", "file"),
    (b"{", "file.1"),
    (b"[" * 100_000, "file.1"),
    (b"3", "file.1.messages"),
    (_lines({"messages": [SHOWN]}), "file.1.messages"),
    (_lines({"messages": [ASKED, SHOWN]}, {"messages": [ASKED, ASKED]}), "file.2.messages[1].role"),
    (_lines({"messages": [ASKED | {"role": "tool"}, SHOWN]}), "file.1.messages[0].role"),
    (_lines({"messages": [ASKED | {"content": 3}, SHOWN]}), "file.1.messages[0].content"),
    (_lines({"messages": [ASKED, SHOWN | {"content": "no"}]}), "file.1.messages[1].content"),
]


def test_a_bad_line_is_named_and_nothing_is_kept(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content, param in BAD:
        with pytest.raises(openai.BadRequestError) as caught:
            _file(server, content)
        assert caught.value.param == param, content[:40]
    with pytest.raises(openai.BadRequestError, match="fine-tune only"):
        _file(server, _lines({"messages": [ASKED, SHOWN]}), purpose="batch")
    with pytest.raises(openai.APIStatusError) as too_large:
        _file(server, b"x" * (server.settings.server.max_body_bytes + 1))
    assert too_large.value.status_code == 413
    monkeypatch.setattr(uploads, "MAX_ROWS", 1)
    with pytest.raises(openai.BadRequestError, match="at most 1 rows"):
        _file(server, _lines(*[{"messages": [ASKED, SHOWN]}] * 2))
    assert server.store.interactions() == []


@pytest.mark.parametrize(
    ("content_type", "body", "param"),
    [
        ("application/json", b"{}", None),
        ("multipart/form-data", b"", None),
        ("multipart/form-data; boundary=b", b"nothing", None),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n--b--\r\n", "purpose"),
    ],
)
def test_what_is_no_form_is_refused(content_type: str, body: bytes, param: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        read_form(content_type, body)
    assert caught.value.param == param


def test_the_ids_of_a_file_are_its_own_and_in_the_order_of_its_lines() -> None:
    rows = uploads.read_rows(_lines(*[{"messages": [ASKED, SHOWN]}] * 300))
    one, other = (Upload(filename="x", content=content) for content in (b"1", b"2"))
    ids = [r.interaction.id for r in recordings(one, rows, tenant="a")]
    assert ids == sorted(set(ids))
    assert all(id_.startswith("00000000-0000-8") for id_ in ids)
    assert len({episode_of(one, "a"), episode_of(one, "b"), episode_of(other, "a")}) == 3
