"""What sets two versions apart: by one examination, by one of each, or by none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ops.differences import MOST_NAMED, difference
from ops.errors import NotFound
from ops.records import Adapter, DatasetRow
from ops.registry import Registry
from ops.store import Store
from tests.ops.records import cycle

Marks = dict[str, bool | None]


def _lines(arm: str, marks: Marks) -> list[str]:
    return [
        json.dumps(
            {
                "suite": "target",
                "arm": arm,
                "task_id": f"builtin/{name}",
                "seed": 7,
                "passed": passed,
                "verdict": {True: "OK", False: "WRONG", None: "REFUSED"}[passed],
            }
        )
        for name, passed in marks.items()
    ]


def _made(
    store: Store,
    registry: Registry,
    directory: Path,
    content: str,
    *,
    champion: str,
    before: Marks,
    after: Marks,
    rows: int = 2,
    **more: Any,
) -> Adapter:
    """A version with the cycle that made and examined it."""
    home = directory / f"cycle-{content}"
    (home / "evaluate").mkdir(parents=True)
    text = "\n".join([*_lines("champion", before), *_lines("candidate", after), ""])
    (home / "evaluate" / "outcomes.jsonl").write_text(text, encoding="utf-8")
    version = len(store.adapters()) + 1
    report = {"evaluate": {"champion": champion, "candidate": f"code@v{version}"}}
    made = cycle(directory=str(home), report=report, adapter_version=version)
    store.add_cycle(made)
    taught = [
        DatasetRow(
            cycle_id=made.id,
            row_id=f"r{n}",
            recipe="ilf",
            kept=True,
            reason=None,
            interaction_ids=[f"i{n}"],
            feedback_ids=[],
            prompt_sha256="",
            program_sha256="",
        )
        for n in range(rows)
    ]
    store.replace_dataset(made.id, taught)
    return registry.add(
        lambda draft: (draft / "x").write_text(content) and None,
        base_model="base",
        base_sha256="ff",
        rank=8,
        recipe="ilf",
        cycle_id=made.id,
        actor="test",
        **{"lineage": {"settings": {"train": {"rank": 8}}}, **more},
    )


@pytest.fixture
def two(store: Store, registry: Registry, tmp_path: Path) -> None:
    _made(
        store,
        registry,
        tmp_path,
        "a",
        champion="Qwen",
        before={"add": False, "sub": True},
        after={"add": True, "sub": True, "mul": False},
    )
    _made(
        store,
        registry,
        tmp_path,
        "b",
        champion="code@v1",
        before={"add": True, "sub": True, "mul": False, "div": None, "pow": False},
        after={"add": True, "sub": False, "mul": True, "div": True, "pow": False},
        rows=3,
        lineage={"settings": {"train": {"rank": 8, "epochs": 3}}},
    )


@pytest.mark.usefixtures("two")
def test_two_that_met_are_told_apart_task_by_task(store: Store, registry: Registry) -> None:
    found = difference(store, registry, 1, 2)
    assert found["met"] is True
    assert [row["task"] for row in found["tasks"]["gained"]] == ["builtin/mul"]
    assert [row["task"] for row in found["tasks"]["lost"]] == ["builtin/sub"]
    assert [row["task"] for row in found["tasks"]["both"]] == ["builtin/add"]
    assert [row["task"] for row in found["tasks"]["neither"]] == ["builtin/pow"]
    assert found["tasks"]["judged"] == 4, "what nobody could judge is left out"
    text = found["text"]
    assert "code@v1 got 2 right and code@v2 2." in text
    assert "Solved by code@v2 alone, 1:\n  builtin/mul (target): WRONG otherwise" in text
    assert "2 interactions taught both, 0 only code@v1, 1 only code@v2." in text
    assert "Settings: train.epochs None → 3." in text


@pytest.mark.usefixtures("two")
def test_the_other_way_round_is_the_mirror(store: Store, registry: Registry) -> None:
    there, back = difference(store, registry, 1, 2), difference(store, registry, 2, 1)
    assert back["met"] is True
    names = [[row["task"] for row in found["tasks"]["gained"]] for found in (there, back)]
    assert names == [["builtin/mul"], ["builtin/sub"]]


@pytest.mark.usefixtures("two")
def test_the_base_model_and_versions_that_never_met(store: Store, registry: Registry) -> None:
    met = difference(store, registry, 0, 1)
    assert met["from"] == "the base model"
    assert [row["task"] for row in met["tasks"]["gained"]] == ["builtin/add"]
    apart = difference(store, registry, 0, 2)
    assert apart["met"] is False
    assert apart["tasks"]["judged"] == 0 or "in an examination of each" in apart["text"]


def test_what_was_never_examined_says_so(store: Store, registry: Registry, tmp_path: Path) -> None:
    for content in "ab":
        registry.add(
            lambda draft, text=content: (draft / "x").write_text(text) and None,
            base_model="base",
            base_sha256="ff" if content == "a" else "ee",
            rank=8,
            recipe="ilf",
            cycle_id=None,
            lineage={},
            actor="test",
        )
    found = difference(store, registry, 1, 2)
    assert "No examination has tasks that both answered." in found["text"]
    assert "Their base models differ" in found["text"]
    with pytest.raises(NotFound):
        difference(store, registry, 1, 9)


def test_many_tasks_are_counted_and_not_all_named(
    store: Store, registry: Registry, tmp_path: Path
) -> None:
    names = [f"task{n:02d}" for n in range(MOST_NAMED + 5)]
    _made(
        store,
        registry,
        tmp_path,
        "a",
        champion="Qwen",
        before=dict.fromkeys(names, False),
        after=dict.fromkeys(names, True),
    )
    found = difference(store, registry, 0, 1)
    assert len(found["tasks"]["gained"]) == len(names)
    assert "  and 5 more" in found["text"]
