"""Uploaded files: demonstrations in the shape of OpenAI's fine-tuning files, as rows of the record.

A line is a conversation whose last message is an answer with a program: what should have been said.
It becomes an imported interaction with that program as its demonstration, and the lines of a file
become an episode, whose id is the file's. No copy of the file is kept: what is listed and returned
is what the record still holds of it, scrubbed as everything there. Nothing is run here; a program
is taken as its sender's word, like any demonstration.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from ops.records import (
    UPLOADED,
    FeedbackSource,
    Interaction,
    Json,
    Metric,
    imported_attempt,
    imported_interaction,
    new_feedback,
    now,
)
from ops.store import Recording
from sandbox.extract import extract_program, program_sha256
from server.errors import BadRequest

MAX_ROWS = 10_000
PREFIX = "file-"
_ROLES = ("system", "developer", "user", "assistant")
_LINE_BITS, _LOW_BITS = 24, 62


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What the form of an upload held."""

    filename: str
    content: bytes


def read_form(content_type: str, body: bytes) -> Upload:
    """Read a form with a file and its purpose.

    Raises:
        BadRequest: it is no such form, or for a purpose that nothing here serves.
    """
    head = b"Content-Type: " + content_type.encode("latin-1", "replace") + b"\r\n\r\n"
    form = BytesParser(policy=HTTP).parsebytes(head + body)
    if form.get_content_type() != "multipart/form-data" or not form.is_multipart():
        raise BadRequest("a form (multipart/form-data) with purpose and file is wanted")
    fields = {part.get_param("name", header="content-disposition"): part for part in form.walk()}
    for name in fields.keys() - {None, "purpose", "file"}:
        raise BadRequest("no such field", param=str(name)[:100], code="unknown_parameter")
    for name in ("purpose", "file"):
        if name not in fields:
            raise BadRequest("the field is missing", param=name, code="missing_required_parameter")
    if _bytes(fields["purpose"]).strip() != b"fine-tune":
        raise BadRequest("files are taken for the purpose fine-tune only", param="purpose")
    file = fields["file"]
    return Upload(filename=(file.get_filename() or "upload.jsonl")[:200], content=_bytes(file))


def _bytes(part: Any) -> bytes:
    found = part.get_payload(decode=True)
    return found if isinstance(found, bytes) else b""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line: what was asked, the answer, and the program in it."""

    messages: list[Json]
    answer: str
    program: str


def read_rows(content: bytes) -> list[Row]:
    """Read the lines of a file.

    Raises:
        BadRequest: one of them is no demonstration; `param` names its line and field.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise BadRequest("the file is not UTF-8 text", param="file") from error
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            rows.append(_row(line, f"file.{number}"))
        if len(rows) > MAX_ROWS:
            raise BadRequest(f"a file holds at most {MAX_ROWS} rows", param="file")
    if not rows:
        raise BadRequest("the file holds no row", param="file")
    return rows


def _row(line: str, place: str) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"not JSON: {error}", param=place, code="invalid_json") from error
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or len(messages) < 2:
        message = "a list of at least two messages is wanted"
        raise BadRequest(message, param=f"{place}.messages")
    for index, one in enumerate(messages):
        where = f"{place}.messages[{index}]"
        if not isinstance(one, dict) or one.get("role") not in _ROLES:
            raise BadRequest(f"role: one of {', '.join(_ROLES)}", param=f"{where}.role")
        if not isinstance(one.get("content"), str) or not one["content"].strip():
            raise BadRequest("content: text is wanted", param=f"{where}.content")
    last = f"{place}.messages[{len(messages) - 1}]"
    if messages[-1]["role"] != "assistant":
        raise BadRequest("the last message is the assistant's", param=f"{last}.role")
    program = extract_program(messages[-1]["content"])
    if program is None:
        raise BadRequest("the answer holds no Python program", param=f"{last}.content")
    asked = [{"role": one["role"], "content": one["content"]} for one in messages[:-1]]
    return Row(messages=asked, answer=messages[-1]["content"], program=program)


def episode_of(upload: Upload, tenant: str) -> str:
    """The id of a file: the same content by the same tenant is the same file."""
    return _id(_digest(upload, tenant), 0)


def _digest(upload: Upload, tenant: str) -> int:
    whole = hashlib.sha256(tenant.encode() + b"\0" + upload.content).digest()
    return int.from_bytes(whole[:7]) >> 6  # 50 bits


def _id(digest: int, line: int) -> str:
    """A UUIDv8 (RFC 9562, section 5.8): of one file in the order of its lines.

    Its first 48 bits are zero, as of all that is imported: it comes before what was served.
    """
    shift = _LOW_BITS - _LINE_BITS
    high, low = digest >> shift, (digest & (1 << shift) - 1) << _LINE_BITS | line
    return str(uuid.UUID(int=0x8 << 76 | high << 64 | 0b10 << _LOW_BITS | low))


def recordings(upload: Upload, rows: Sequence[Row], *, tenant: str) -> list[Recording]:
    """The rows of a file as they are written into the record."""
    at, digest = now(), _digest(upload, tenant)
    about = {"file": upload.filename, "bytes": str(len(upload.content)), "rows": str(len(rows))}
    found = []
    for number, row in enumerate(rows, 1):
        id_ = _id(digest, number)
        interaction = replace(
            imported_interaction(
                id_, endpoint=UPLOADED, messages=row.messages, answer=row.answer, at=at
            ),
            episode_id=_id(digest, 0),
            tenant=tenant,
            metadata=about,
        )
        attempt = imported_attempt(interaction, row.program, program_sha256(row.program))
        shown = new_feedback(
            Metric.DEMONSTRATION, row.program, FeedbackSource.HUMAN, interaction_id=id_, at=at
        )
        found.append(Recording(interaction=interaction, attempts=[attempt], feedback=[shown]))
    return found


def described(first: Interaction) -> Json:
    """A file as OpenAI describes it, by one of its rows."""
    return {
        "id": f"{PREFIX}{first.episode_id}",
        "object": "file",
        "bytes": int(first.metadata["bytes"]),
        "created_at": int(first.created_at.timestamp()),
        "filename": first.metadata["file"],
        "purpose": "fine-tune",
        "status": "processed",
    }


def rendered(rows: Sequence[Interaction]) -> bytes:
    """The file as the record holds it."""
    lines = ({"messages": [*row.messages, row.choices[0]["message"]]} for row in rows)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
