"""The frame decoder against arbitrary bytes, and one run's verdicts through a real zygote."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.runner import BadFrame, Config, FrameDecoder, Zygote, pack
from sandbox.types import Limits, Tier, Verdict
from tests.sandbox import fuzz_frames
from tests.sandbox.conftest import Lab

frames = st.lists(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
    max_size=5,
)


@given(frames, st.data())
def test_frames_survive_any_cutting_of_the_stream(sent: list[dict[str, Any]], data: Any) -> None:
    stream = b"".join(map(pack, sent))
    decoder = FrameDecoder()
    got = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += decoder.feed(stream[:size])
        stream = stream[size:]
    assert got == sent


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_bad_frame(data: bytes) -> None:
    fuzz_frames.fuzz_one(data)
    fuzz_frames.fuzz_one(struct.pack(">I", len(data)) + data)


def test_a_second_of_mutated_frames_brings_no_surprise() -> None:
    assert fuzz_frames.run(1.0) > 100


def test_the_fuzzer_finds_what_is_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fuzz_frames.decoded

    def careless(form: Any) -> Any:
        return form["$dataframe"] if isinstance(form, dict) else form

    def forgetful(*pieces: bytes) -> list[dict[str, Any]] | None:
        return whole(pieces[-1])

    with monkeypatch.context() as patch:
        patch.setattr(fuzz_frames, "decode", careless)
        with pytest.raises(KeyError):
            fuzz_frames.run(60)
    monkeypatch.setattr(fuzz_frames, "decoded", forgetful)
    with pytest.raises(AssertionError, match="cut"):
        fuzz_frames.run(60)


@pytest.mark.parametrize(
    "stream",
    [
        b"\xff\xff\xff\xff{}",
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", 3) + b"NaN",
        struct.pack(">I", 3) + b"\xff\xfe\x00",
        struct.pack(">I", 100_000) + b"[" * 100_000,
        struct.pack(">I", 9_005) + b'{"a":' + b"9" * 8_999 + b"}",
    ],
    ids=["4 GB", "a list", "NaN", "not UTF-8", "nesting", "digits"],
)
def test_malformed_frames(stream: bytes) -> None:
    with pytest.raises(BadFrame):
        FrameDecoder().feed(stream)


def test_floods_are_cut_off() -> None:
    with pytest.raises(BadFrame, match="frames"):
        FrameDecoder(max_frames=10).feed(pack({}) * 11)
    with pytest.raises(BadFrame, match="bytes"):
        FrameDecoder(max_bytes=10).feed(bytes(11))


def test_a_large_frame_in_small_pieces_takes_linear_time() -> None:
    decoder = FrameDecoder()
    data = pack({"x": "y" * 1_000_000})
    got = [
        frame for at in range(0, len(data), 4096) for frame in decoder.feed(data[at : at + 4096])
    ]
    assert len(got) == 1


@pytest.mark.isolation
@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("def f(): return 1", "OK"),
        ("def f(): 1 / 0", "ERROR:ZeroDivisionError"),
        ("def f(): raise MemoryError", "MEMORY"),
        ("def f(): import os; os._exit(0)", "EARLY_EXIT"),
        ("def f(): import os; os.kill(os.getpid(), 15)", "SIGNAL_15"),
        ("def f(): import os; os.write(4, b'garbage!')", "BAD_RESULT"),
        ("def f(): print('x' * (20 << 20))", "OUTPUT_LIMIT"),
        ("import nothing_there", "ERROR:ModuleNotFoundError"),
        ("def g(", "ERROR:SyntaxError"),
    ],
)
def test_each_verdict(lab: Lab, code: str, word: str) -> None:
    assert lab.run(code, entry="f", calls=[[]]).word == word


@pytest.mark.isolation
def test_a_timeout_overshoots_little(lab: Lab) -> None:
    run = lab.run("while True: pass", limits=Limits(wall_s=0.5))
    assert run.verdict is Verdict.TIMEOUT
    # The promise is 40 ms; a loaded test machine gets five times that.
    assert 0.5 <= run.duration_s < 0.7


@pytest.mark.isolation
def test_cpu_time_is_told_from_wall_time(lab: Lab) -> None:
    busy = lab.run("while True: pass", limits=Limits(wall_s=20, cpu_s=1))
    assert busy.verdict is Verdict.CPU_LIMIT
    assert busy.cpu_s == pytest.approx(1, abs=0.3)
    idle = lab.run("import time; time.sleep(9)", limits=Limits(wall_s=0.3, cpu_s=1))
    assert idle.verdict is Verdict.TIMEOUT
    assert idle.cpu_s < 0.3


@pytest.mark.isolation
def test_output_is_captured_and_cut_at_the_cap(lab: Lab) -> None:
    run = lab.run(
        "import sys; print('out'); print('err', file=sys.stderr); print('x' * 200_000)",
        limits=Limits(stdout_bytes=1000),
    )
    assert run.verdict is Verdict.OK
    assert run.stdout.startswith("out\nxxx")
    assert len(run.stdout) == 1000
    assert run.stdout_truncated
    assert run.stderr == "err\n"


@pytest.mark.isolation
def test_invalid_utf8_is_replaced(lab: Lab) -> None:
    assert lab.run("import os; os.write(1, b'a\\xff\\x00b')").stdout == "a\ufffd\x00b"


def test_a_zygote_that_cannot_start_says_why(lab: Lab) -> None:
    async def start() -> str:
        zygote = Zygote(Config(Tier.PROCESS, imports=("no_such_module",), scratch="/nonexistent"))
        try:
            await zygote.start()
        except Exception as error:
            return str(error)
        await zygote.close()
        return "started"

    assert "no_such_module" in lab.do(start())
