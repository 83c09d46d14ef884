"""`/v1/files`: what cycles were trained on and what came out, in the words of OpenAI's files API.

Each cycle has up to five files: the training rows, the held-out rows, the same two of preferences,
and its report. Rows are read from the cycle's directory as they are asked for, and rendered in the
shapes that OpenAI's fine-tuning takes, chats and preferences (its `dpo` method); what a row was
made of is in its `metadata`. Of an answer judged alone, one side is empty. A file that is uploaded
becomes rows of the record (`uploads`), and is listed as long as the record holds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from ops.errors import NotFound, StoreError
from ops.records import Cycle, Json
from ops.store import Recording
from server.errors import ConflictError, NotFoundError, RecordUnavailable
from server.limits import read_body
from server.listing import After, Limit, page
from server.openapi import errors
from server.state import current
from server.uploads import (
    PREFIX,
    described,
    episode_of,
    read_form,
    read_rows,
    recordings,
    rendered,
)

router = APIRouter(prefix="/v1/files", tags=["files"])

T = TypeVar("T")
MAX_CYCLES = 1000
_ROWS = {
    "train": "train.jsonl",
    "held_out": "held_out.jsonl",
    "preferences": "preferences.jsonl",
    "preferences_held_out": "preferences_held_out.jsonl",
}
_KINDS = (*_ROWS, "report")
Purpose = Annotated[Literal["fine-tune", "fine-tune-results"] | None, Query()]


@router.get("", responses=errors(400, 503))
async def list_files(
    request: Request, limit: Limit = 20, after: After = None, purpose: Purpose = None
) -> dict[str, Any]:
    """List the files of all cycles, and what was uploaded, newest first."""
    store = current(request).store

    def read() -> list[Json]:
        found = [_file(cycle, kind) for cycle in store.cycles(limit=MAX_CYCLES) for kind in _KINDS]
        files = [file for file in found if file] + [described(one) for one in store.uploads()]
        files.sort(key=lambda file: -int(file["created_at"]))
        return [file for file in files if purpose in (None, file["purpose"])]

    return page(await _read(read), limit, after)


@router.get("/{file_id}", responses=errors(404, 503))
async def get_file(request: Request, file_id: str) -> dict[str, Any]:
    """Return what is known of one file."""
    store = current(request).store

    def read() -> Json:
        if uploaded := _uploaded(file_id):
            return described(store.upload(uploaded)[0])
        cycle_id, kind = _parts(file_id)
        file = _file(store.cycle(cycle_id), kind)
        if file is None:
            raise NotFound(f"no file {file_id[:200]}")
        return file

    return await _read(read)


@router.get(
    "/{file_id}/content",
    response_class=Response,
    responses={
        200: {
            "description": "JSON lines of rows, or the report as JSON.",
            "content": {"application/octet-stream": {"schema": {"type": "string"}}},
        },
        **errors(404, 503),
    },
)
async def get_content(request: Request, file_id: str) -> Response:
    """Return the content of a file."""
    store = current(request).store

    def read() -> bytes:
        if uploaded := _uploaded(file_id):
            return rendered(store.upload(uploaded))
        cycle_id, kind = _parts(file_id)
        cycle = store.cycle(cycle_id)
        if _file(cycle, kind) is None:
            raise NotFound(f"no file {file_id[:200]}")
        return _content(cycle, kind)

    return Response(await _read(read), media_type="application/octet-stream")


_FORM = {
    "type": "object",
    "required": ["purpose", "file"],
    "properties": {
        "purpose": {"const": "fine-tune"},
        "file": {
            "type": "string",
            "format": "binary",
            "description": "JSON lines: `messages`, the last of which is an answer with a program",
        },
    },
}


@router.post(
    "",
    openapi_extra={
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
    },
    responses=errors(400, 413, 503),
)
async def upload_file(request: Request) -> dict[str, Any]:
    """Take a file of demonstrations into the record, whole or not at all; twice is once."""
    state, tenant = current(request), request.state.identity.tenant
    state.recorder.require()
    body = await read_body(request, state.settings.max_body_bytes)
    form = read_form(request.headers.get("content-type", ""), body)
    scrub = state.recorder.scrubber.recording
    episode = episode_of(form, tenant)

    def prepare() -> list[Recording]:
        found = recordings(form, read_rows(form.content), tenant=tenant)
        return [scrub(one) for one in found]

    rows = await asyncio.to_thread(prepare)

    def write() -> Json:
        with contextlib.suppress(NotFound):
            return described(state.store.upload(episode)[0])
        state.store.add(rows)
        return described(rows[0].interaction)

    return await state.recorder.write(write)


@router.delete("/{file_id}", responses=errors(404, 409, 503))
async def delete_file(request: Request, file_id: str) -> dict[str, Any]:
    """Delete the rows of an uploaded file; those of a cycle go with the cycle."""
    state = current(request)
    episode = _uploaded(file_id)
    if episode is None:
        await get_file(request, file_id)
        raise ConflictError("the files of a cycle stay as long as the cycle", param="file_id")

    def delete() -> None:
        state.store.delete([row.id for row in state.store.upload(episode)])

    try:
        await state.recorder.write(delete)
    except NotFound as error:
        raise NotFoundError(str(error), param="file_id") from error
    return {"id": file_id, "object": "file", "deleted": True}


async def _read(call: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(call)
    except NotFound as error:
        raise NotFoundError(str(error), param="file_id") from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error


def _uploaded(file_id: str) -> str | None:
    """The episode of an uploaded file's id; None for the id of a cycle's file."""
    bare = file_id.removeprefix(PREFIX)
    return None if bare == file_id or bare.endswith(tuple(f"-{k}" for k in _KINDS)) else bare


def _parts(file_id: str) -> tuple[str, str]:
    """Cycle and kind of a file's id. The id never becomes part of a path."""
    for kind in _KINDS:
        if file_id.startswith("file-") and file_id.endswith(f"-{kind}"):
            return file_id[len("file-") : -len(kind) - 1], kind
    raise NotFound(f"no file {file_id[:200]}")


def _path(cycle: Cycle, kind: str) -> Path:
    return Path(cycle.directory) / "dataset" / _ROWS[kind]


def _file(cycle: Cycle, kind: str) -> Json | None:
    """A file as OpenAI describes it; None where the cycle has none of that kind."""
    if kind == "report":
        if not cycle.report:
            return None
        size, name = len(_content(cycle, kind)), "report.json"
    else:
        try:
            size, name = _path(cycle, kind).stat().st_size, _ROWS[kind]
        except OSError:
            return None
        if size == 0:
            return None
    return {
        "id": f"file-{cycle.id}-{kind}",
        "object": "file",
        "bytes": size,
        "created_at": int(cycle.created_at.timestamp()),
        "filename": f"{cycle.recipe}-{cycle.id}-{name}",
        "purpose": "fine-tune-results" if kind == "report" else "fine-tune",
        "status": "processed",
    }


def _content(cycle: Cycle, kind: str) -> bytes:
    if kind == "report":
        return json.dumps(cycle.report, ensure_ascii=False, indent=1).encode()
    return "".join(_rows(_path(cycle, kind))).encode()


def _rows(path: Path) -> Iterator[str]:
    """The rows of a file in the shape of a fine-tuning file."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise NotFound("the file is not on this machine any more") from error
    for line in filter(None, lines):
        row = json.loads(line)
        metadata = {
            name: row.get(name)
            for name in ("id", "recipe", "origin", "interaction_ids", "feedback_ids")
        }
        yield json.dumps({**_rendered(row), "metadata": metadata}, ensure_ascii=False) + "\n"


def _rendered(row: Json) -> Json:
    """A row as a chat to imitate, or, of preferences, as a better and a worse answer."""
    if row.get("recipe") != "preferences":
        return {"messages": [*row["messages"], *_said(row["answer"])]}
    return {
        "input": {"messages": row["messages"]},
        "preferred_output": _said(row["answer"]),
        "non_preferred_output": _said(row.get("rejected")),
    }


def _said(answer: str | None) -> list[Json]:
    return [{"role": "assistant", "content": answer}] if answer else []
