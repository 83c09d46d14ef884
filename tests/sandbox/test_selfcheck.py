"""The conformance suite itself: it must be able to fail, and never harm a host without walls."""

import os

import pytest

from sandbox import selfcheck
from sandbox.attacks import ATTACKS, Attack
from sandbox.errors import SandboxUnavailable
from sandbox.pool import UNSAFE_VARIABLE, UNSAFE_WORD, Pool
from sandbox.probes import PROBES, STOPPED, WORKS
from sandbox.selfcheck import Row, descendants, examine, table
from sandbox.types import Tier
from tests.sandbox.conftest import Lab

pytestmark = pytest.mark.isolation
HARMLESS = ("S04", "N01", "N06", "F30", "F10", "F21", "F23")
"""Programs that only look, when nothing stops them."""


def test_without_walls_the_suite_finds_what_is_open(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(UNSAFE_VARIABLE, UNSAFE_WORD)

    async def work() -> dict[str, Row]:
        async with Pool(1, tiers=[], min_tier=Tier.NONE, allow_unsafe=True, recheck_s=0) as pool:
            with pytest.raises(SandboxUnavailable, match="never run without isolation"):
                await examine(pool)
            rows = {}
            async with selfcheck._host() as facts:
                for attack in ATTACKS:
                    if attack.name in HARMLESS:
                        rows[attack.name] = await selfcheck._examine(pool, attack, facts)
            return rows

    rows = lab.do(work())
    assert not rows["N01"].right
    assert "reached tcp" in rows["N01"].detail
    assert not rows["N06"].right
    assert not rows["S04"].right
    # Frauds are stopped by the protocol, whatever the walls.
    for name in ("F30", "F10", "F21", "F23"):
        assert rows[name].right, rows[name]


def test_a_fraud_that_passes_and_a_control_that_fails_are_wrong(lab: Lab) -> None:
    solved = Attack("X1", "solves it", "def f(x):\n    return x * x\n", ("OK",), "not pass")
    broken = Attack("X2", "does not", "def f(x):\n    return 0\n", ("OK",), "pass")
    odd = Attack("X3", "ends otherwise", "def f(facts):\n    1 / 0\n", ("OK",))
    speaks = Attack(
        "X4", "tells", "def f(facts):\n    print(facts['secret'])\n    return []\n", ("OK",)
    )

    async def work() -> list[Row]:
        return (await examine(lab.pool, [solved, broken, odd, speaks]))[len(PROBES) :]

    rows = lab.do(work())
    assert [row.right for row in rows] == [False] * 4
    assert [row.detail for row in rows] == [
        "counted as solved",
        "not counted as solved",
        "",
        "the secret came out",
    ]
    assert rows[2].seen == "ERROR:ZeroDivisionError"
    text = table(rows)
    assert "4 rows, 4 wrong" in text
    assert text.count("BAD") == 4


def test_there_are_probes_of_both_kinds() -> None:
    assert len(STOPPED) >= 15
    assert len(WORKS) >= 3
    assert len({probe.name for probe in PROBES}) == len(PROBES)


def test_descendants_include_grandchildren(lab: Lab) -> None:
    below = descendants(*lab.pool.process_ids())
    assert below < descendants(os.getpid())
    # In namespaces each zygote is a child of the process that was started.
    assert len(below) > len(lab.pool.process_ids())
