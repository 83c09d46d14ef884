"""What is refused before the engine sees it, whatever the files hold."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops.errors import ArtifactError
from ops.records import Adapter, AdapterState, now
from server.proof import CONFIG, MAX_HEADER_BYTES, WEIGHTS, preflight
from tests.fake_engine import BASE, RANK, safetensors, write_adapter

NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
ADAPTER = Adapter(
    version=1,
    sha256="ab" * 32,
    created_at=now(),
    state=AdapterState.BUILT,
    directory="",
    base_model=BASE,
    base_sha256="0" * 64,
    rank=RANK,
    cycle_id=None,
    recipe="test",
)
Harm = Callable[[Path], object]


def _header(header: Any, data: bytes = b"", length: int | None = None) -> Harm:
    """Weights with this header, as text or as data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return lambda d: (d / WEIGHTS).write_bytes(struct.pack("<Q", size) + text + data)


def _tensor(**change: Any) -> Harm:
    tensor = {"dtype": "F32", "shape": [RANK, 16], "data_offsets": [0, RANK * 64], **change}
    return _header({NAME: tensor}, b"\0" * RANK * 64)


def _config(text: str) -> Harm:
    return lambda d: (d / CONFIG).write_text(text)


def _changed(**change: Any) -> Harm:
    def write(directory: Path) -> None:
        config = json.loads((directory / CONFIG).read_text())
        (directory / CONFIG).write_text(json.dumps(config | change))

    return write


def _cut(directory: Path, by: int) -> None:
    path = directory / WEIGHTS
    path.write_bytes(path.read_bytes()[:-by])


HOSTILE: list[tuple[Harm, str]] = [
    (_changed(use_dora=True), "DoRA"),
    (_changed(modules_to_save=["embed_tokens"]), "modules_to_save"),
    (_changed(bias="lora_only"), "bias"),
    (_changed(r=True), "the rank is True"),
    (_changed(r=-8), "the rank is -8"),
    (_changed(r=16), "registered as 8"),
    (_changed(alpha_pattern={"q_proj": 4}), "differ by module"),
    (_changed(target_modules="(a+)+$"), "patterns are not taken"),
    (_changed(target_modules=[1]), "patterns are not taken"),
    (_changed(peft_type="PROMPT_TUNING"), "PROMPT_TUNING"),
    (_config("[]"), "not a JSON object"),
    (_config("{"), "cannot be read"),
    (_config("[" * 200_000), "cannot be read"),
    (_config(" " * (MAX_HEADER_BYTES + 1)), "bytes"),
    (lambda d: (d / CONFIG).unlink(), "cannot be read"),
    (lambda d: (d / WEIGHTS).unlink(), "cannot be read"),
    (lambda d: (d / WEIGHTS).write_bytes(b""), "cannot be read"),
    (lambda d: _cut(d, 1), "cut off"),
    (lambda d: _cut(d, 10_000), "cannot be read|header is"),
    (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes() + b"x"), "appended"),
    (_header(b"{}", length=2**63), "the header is"),
    (_header(b"{}", length=0), "the header is 0"),
    (_header(b"{}", length=200), "the header is 200"),
    (_header(b"[" * 500_000), "cannot be read"),
    (_header(b"\xff\xfe{}"), "cannot be read"),
    (_header([]), "not an object"),
    (_header({}), "holds no tensor"),
    (_header({"__metadata__": {"format": "pt"}}), "holds no tensor"),
    (_header({NAME: []}), "malformed"),
    (_header({NAME: {"data_offsets": "x"}}), "malformed"),
    (_tensor(dtype="F64"), "malformed"),
    (_tensor(dtype="F16"), "wrong place"),
    (_tensor(shape=[RANK, 16, 1]), "malformed"),
    (_tensor(shape=[-RANK, -16]), "has shape"),
    (_tensor(shape=[4, 32]), "has shape"),
    (_tensor(data_offsets=[64, RANK * 64 + 64]), "wrong place"),
    (_tensor(data_offsets=[-64, RANK * 64 - 64]), "wrong place"),
    (_tensor(data_offsets=[0, 2**62]), "wrong place"),
    (_header({"model.embed_tokens.weight": {"dtype": "F32"}}), "malformed"),
    (
        lambda d: (d / WEIGHTS).write_bytes(safetensors({"lm_head.weight": ("F32", [16, 8])})),
        "no LoRA matrix",
    ),
    (lambda d: (d / "adapter_model.bin").write_bytes(b"\x80"), "carry code"),
    (lambda d: (d / "sub").mkdir() or (d / "sub" / "x.py").write_text("1"), "carry code"),
    (lambda d: (d / "data").symlink_to("/etc"), "is a link"),
    (lambda d: (d / WEIGHTS).unlink() or (d / WEIGHTS).symlink_to("/dev/zero"), "is a link"),
]


@pytest.mark.parametrize(("harm", "reason"), HOSTILE)
def test_what_the_engine_must_not_see_is_refused(tmp_path: Path, harm: Harm, reason: str) -> None:
    write_adapter(tmp_path)
    preflight(tmp_path, ADAPTER, max_rank=16)
    harm(tmp_path)
    with pytest.raises(ArtifactError, match=reason):
        preflight(tmp_path, ADAPTER, max_rank=16)


def test_another_base_or_too_large_a_rank_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    found = preflight(tmp_path, ADAPTER, max_rank=8, base_sha256="0" * 64)
    assert found == {
        "rank": 8,
        "tensors": 2,
        "bytes": (tmp_path / WEIGHTS).stat().st_size,
        "base": "the weights it was trained on",
    }
    with pytest.raises(ArtifactError, match="the engine serves other weights"):
        preflight(tmp_path, ADAPTER, max_rank=8, base_sha256="1" * 64)
    with pytest.raises(ArtifactError, match="takes at most 4"):
        preflight(tmp_path, ADAPTER, max_rank=4)
    with pytest.raises(ArtifactError, match="registered as 32"):
        preflight(tmp_path, replace(ADAPTER, rank=32), max_rank=64)
