"""Fuzz target: the frame decoder and the value decoder behind it.

    python -m tests.sandbox.fuzz_frames [SECONDS]

Uses atheris where it is installed (coverage guided), and seeded mutation of real frames otherwise.
Whatever bytes arrive, nothing but `BadFrame` and `ValueError` may come out.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from typing import Any

from sandbox.runner import BadFrame, FrameDecoder, pack
from sandbox.values import decode, encode

SEEDS = [
    pack({"armed": True}),
    pack({"loaded": True}) + pack({"value": encode([1, (2.5, "x"), {3}]), "i": 0}),
    pack({"value": {"$dataframe": {"columns": ["a"], "data": [[1]], "dtypes": ["int64"]}}}),
    pack({"value": {"$array": {"dtype": "<i8", "shape": [2, 2], "data": [1, 2, 3, 4]}}, "i": 1}),
    pack({"raised": ["ValueError", "x"], "i": 2}) + pack({"done": True}),
    pack({"value": {"$int": "0xffff"}, "i": 3}) + pack({"value": {"$bytes": "AAA="}}),
]


def fuzz_one(data: bytes) -> None:
    """Feed one input, whole and in two pieces; raises only for a bug."""
    cut = len(data) // 2
    frames = decoded(data)
    assert repr(decoded(data[:cut], data[cut:])) == repr(frames), "where it is cut must not matter"
    for frame in frames or ():
        for part in frame.values():
            with contextlib.suppress(ValueError):
                decode(part)


def decoded(*pieces: bytes) -> list[dict[str, Any]] | None:
    """The frames of a stream; None where it holds a bad one."""
    decoder = FrameDecoder(max_bytes=1 << 20, max_frames=1000)
    try:
        return [frame for piece in pieces for frame in decoder.feed(piece)]
    except BadFrame:
        return None


def mutate(source: random.Random) -> bytes:
    """A real frame with a few bytes changed, cut, doubled or swapped for another's."""
    data = bytearray(source.choice(SEEDS))
    for _ in range(source.randint(0, 8)):
        at = source.randrange(len(data)) if data else 0
        action = source.randrange(5)
        if action == 0 and data:
            data[at] = source.randrange(256)
        elif action == 1:
            data[at:at] = source.randbytes(source.randint(1, 8))
        elif action == 2:
            del data[at : at + source.randint(1, 8)]
        elif action == 3:
            data[at:at] = source.choice((b"[", b"{", b'"$set":', b"9" * 50, b"null", b"NaN"))
        else:
            data += source.choice(SEEDS)
    return bytes(data)


def run(seconds: float, seed: int = 0) -> int:
    """Mutate for some time; returns how many inputs were tried."""
    source = random.Random(seed)
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:
        fuzz_one(mutate(source))
        tried += 1
    return tried


if __name__ == "__main__":
    try:
        import atheris
    except ImportError:
        seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
        sys.stdout.write(f"{run(seconds, seed=int(time.time()))} inputs, no surprise\n")
    else:
        atheris.Setup(sys.argv, fuzz_one)
        atheris.Fuzz()
