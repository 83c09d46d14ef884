"""The reproductions: arms hold what they say, figures are those of the units."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from improver.benchmarks.mbpp import read_task
from improver.firewall import Firewall
from improver.policy import Policy
from improver.recipes.ilf import Control
from improver.types import TrainJob, to_json
from improver.workspace import Journal
from ops.models import Model
from sandbox.pool import Pool
from tests.improver.conftest import ExecJudge, StubServer
from tests.improver.scripted import firewall
from tests.improver.test_gift4code import TABLES
from tests.improver.test_screen import row

BENCH = Path(__file__).parents[2] / "ops" / "bench"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("reproduce")


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    return script("reproduction_report")


def annotation(number: int, split: str) -> dict[str, Any]:
    prompt = (
        f'"""\nWrite a function to add {number} to a number.\n\n'
        f'>>> Example: add_{number}(1) = {number + 1}\n"""\n\ndef add_{number}(x):\n'
    )
    return {
        "task_id": number,
        "paper_split": split,
        "prompt": prompt,
        "original": f"{prompt}    return x - {number}\n",
        "feedback": f"It subtracts {number}, and should add it.",
        "refinement": f"{prompt}    return x + {number}\n",
        "test": "def check(candidate):\n"
        f"    assert candidate(1) == {number + 1}\n    assert candidate(5) == {number + 5}\n",
    }


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    splits = ("MBPP_Train", "MBPP_Train", "MBPP_Refine", "MBPP_Test")
    path = tmp_path / "rows.jsonl"
    rows = [annotation(number + 2, split) for number, split in enumerate(splits)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_only_the_split_that_is_asked_for_is_trained_on(bench: ModuleType, annotated: Path) -> None:
    assert [case.interaction_id for case in bench.feedback_cases(annotated, "Train")] == ["2", "3"]
    assert len(bench.feedback_cases(annotated)) == 4


def test_the_changed_tokens_are_those_the_wrong_program_lacks(bench: ModuleType) -> None:
    assert bench.changed([1, 2, 3, 4], [1, 2, 9, 9, 3, 4]) == [2, 3]
    assert bench.changed([1, 2, 3], [1, 3]) == []
    assert bench.changed([], [5, 6]) == [0, 1]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("The bound is left out; it should be included.", False),
        ("Use range(1, n) instead.", True),
        ("It should return a + b.", True),
        ("The name max_value is never set.", True),
        ("Well-meant, but wrong: it forgets the last one.", False),
    ],
)
def test_feedback_that_could_be_copied_is_told_apart(
    bench: ModuleType, words: str, found: bool
) -> None:
    assert bench.code_like(words) is found


def test_each_arm_learns_its_own_kind_of_answer(bench: ModuleType, annotated: Path) -> None:
    cases = bench.feedback_cases(annotated, "Train")
    own = {"program": "def add_2(x):\n    return 2 + x\n", "text": "Sure:\n```python\ndef add_2…"}
    refined = {"program": "def add_3(x):\n    return 3 + x\n", "text": "…"}
    sampled = {("resample", "2"): [own], ("ilf", "3"): [refined]}
    rows = bench.training_rows(cases, sampled, {"2": "def add_2(x):\n  return x+2"}, firewall())
    answers = {arm: [(row["id"], row["answer"]) for row in some] for arm, some in rows.items()}
    assert answers["resample"] == [("resample-2", "Sure:\n```python\ndef add_2…\n```")]
    assert answers["ilf"] == [("ilf-3", f"```python\n{refined['program']}```")]
    assert [name for name, _ in answers["human"]] == ["human-2", "human-3"]
    assert [name for name, _ in answers["gold"]] == ["gold-2"]
    for one in rows["human"]:
        assert "subtracts" not in one["messages"][-1]["content"], "the feedback is not in it"
        assert "(5)" not in one["messages"][-1]["content"], "nor is a hidden example"


def test_nothing_near_the_examination_is_learned(bench: ModuleType, annotated: Path) -> None:
    near, twin = cases = bench.feedback_cases(annotated, "Train")
    asked = {
        "task_id": "e",
        "text": near.messages[-1]["content"],
        "entry_point": "add_2",
        "visible_test": "assert add_2(1) == 3",
        "base_tests": ["assert add_2(1) == 3"],
    }
    exam = Firewall([read_task(asked, "row").exam()])
    rows = bench.training_rows(cases, {}, {}, exam)
    assert rows["human"] == []
    assert not bench._clean(twin, exam)
    assert bench._clean(twin, firewall())


async def test_what_was_sampled_is_never_sampled_again(
    bench: ModuleType, annotated: Path, server: StubServer, judge: ExecJudge, tmp_path: Path
) -> None:
    cases = bench.feedback_cases(annotated, "Train")
    server.script = lambda body, index: (
        "```python\n" + cases[0].demonstration if "add_2" in body["messages"][-1]["content"] else ""
    )
    work = bench.Work(
        data=tmp_path, directory=tmp_path, model="m", limit=None, until=1e12, samples=2
    )
    async with Policy(server.url) as policy:
        for _ in range(2):
            with work.journal("tuning") as journal:
                found = await bench._sample(work, cases, "base", policy, judge, journal)
    assert len(server.bodies) == 2 * len(cases)
    assert {key: len(passing) for key, passing in found.items()} == {
        ("resample", "2"): 2,
        ("ilf", "2"): 2,
        ("resample", "3"): 0,
        ("ilf", "3"): 0,
    }
    told = [body["messages"][-1]["content"] for body in server.bodies]
    assert sum("### Feedback" in text for text in told) == len(cases)


async def test_refinements_are_counted_with_each_feedback(
    bench: ModuleType,
    pages: ModuleType,
    annotated: Path,
    server: StubServer,
    judge: ExecJudge,
    tmp_path: Path,
) -> None:
    first, second = bench.feedback_cases(annotated, "Train")

    def answer(body: dict[str, Any], index: int) -> str:
        helped = first.feedback in body["messages"][-1]["content"]
        return f"```python\n{first.demonstration if helped and index == 0 else first.program}"

    server.script = answer
    work = bench.Work(
        data=tmp_path, directory=tmp_path, model="starter", limit=None, until=1e12, samples=2
    )
    async with Policy(server.url, "base") as policy:
        for _ in range(2):
            with work.journal("repair") as journal:
                await bench.repaired(work, first, second.feedback, policy, judge, journal)
    assert len(server.bodies) == 3
    [told] = pages.done(tmp_path / "repair.jsonl").values()
    assert told["passed"] == {"own": 1, "shuffled": 0, "none": 0}
    text = "\n".join(pages.repair_section([told]))
    assert "| 1, 2 each and arm | 50.0% (50.0% to 50.0%) | 0.0%" in text
    assert "| +50.0% (+50.0% to +50.0%) |" in text


def made_rows(bench: ModuleType, selection: str) -> list[Any]:
    rows = []
    for number in range(40):
        for phase, epochs in ((1, 1), (2, 2)):
            told = {"phase": phase, "epochs": epochs}
            made = row(number, f"def f(x):\n    return x * {number}\n")
            program = f"{selection}-{phase}"
            rows.append(
                replace(made, id=f"{made.id}{program}", provenance=told, program_sha256=program)
            )
    return rows


def test_arms_of_order_hold_out_the_same_pairs_of_the_corpus(bench: ModuleType) -> None:
    built = {name: made_rows(bench, name) for name in ("judge", "random")}
    arms = bench.order_arms(built)
    held = {tuple(one["id"] for one in held_out) for _, held_out in arms.values()}
    assert len(held) == 1
    [ids] = held
    assert ids
    assert all(name.endswith("judge-2") for name in ids), "none that was self-made"
    phases = {arm: [one["provenance"]["phase"] for one in rows] for arm, (rows, _) in arms.items()}
    assert phases["self_made_first"] == sorted(phases["self_made_first"])
    first = arms["trusted_first"][0][0]
    assert (first["provenance"]["phase"], first["provenance"]["epochs"]) == (1, 2)
    assert set(phases["mixed"]) == {1}
    assert set(phases["trusted_only"]) == {2}
    assert len(phases["self_made_first"]) == 2 * len(phases["trusted_only"])
    asked = {one["messages"][-1]["content"] for one in arms["trusted_only"][1]}
    for rows, _ in arms.values():
        assert asked.isdisjoint(one["messages"][-1]["content"] for one in rows)


async def test_every_arm_is_trained_once_with_every_seed(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    async def train(directory: Path, job: Any, **more: Any) -> dict[str, Any]:
        ran.append(directory.name)
        assert (directory / "train.jsonl").read_text().count("\n") > 0
        return {"curve": [{"held_out_loss": 2.0}, {"loss": 1.0}, {"held_out_loss": 1.5}]}

    monkeypatch.setattr(bench, "run_training", train)
    model = Model(name="m", directory=tmp_path, sha256="00", origin="test")
    built = {name: made_rows(bench, name) for name in ("judge", "random")}
    work = bench.Work(
        data=tmp_path, directory=tmp_path, model="starter", limit=None, until=1e12, seeds=2
    )
    for _ in range(2):
        await bench.ablations(work, model, built)
    assert len(ran) == len(set(ran)) == 2 * 5
    told = list(script("reproduction_report").done(tmp_path / "order.jsonl").values())
    ranking = {"auc": 0.61, "low": 0.5, "high": 0.72, "programs": 30, "pairs": 60}
    unit = {"selection": "judge", "rankings": [ranking]}
    with Journal(tmp_path / "order-asked-starter-4.jsonl") as journal:
        journal.add("inverse_instruct:judge:judge", unit)
    pages = script("reproduction_report")
    assert pages.judged(tmp_path, "starter-small") == []
    text = "\n".join(pages.order_section(told, {"starter": pages.judged(tmp_path, "starter")}))
    assert "AUC of 0.61 (0.50 to 0.72; 30 programs, 60 pairs)" in text
    assert "| trusted only | " in text
    assert "| 2 | 2.0000 | 1.5000 (1.5000 to 1.5000) |" in text


def gift_row(number: int, table: int, kind: str) -> Any:
    told = {"spec_kind": kind, "context": f"t{table}.csv", "context_id": f"t{table}"}
    return replace(row(number), id=f"g{number}", provenance=told)


def test_rows_of_one_table_stay_on_one_side(bench: ModuleType) -> None:
    rows = [gift_row(number, number % 8, "types") for number in range(40)]
    learned, held_out = bench.by_table(rows)
    assert len(learned) + len(held_out) == 40
    assert len({one.provenance["context"] for one in held_out}) == 2
    assert {one.provenance["context"] for one in held_out}.isdisjoint(
        one.provenance["context"] for one in learned
    )


def test_a_specification_is_taken_out_of_a_prompt(bench: ModuleType) -> None:
    asked = [{"role": "user", "content": "Sum it.\n\nSpecification:\nSignature: f(x)"}]
    assert bench.without_spec(asked) == [{"role": "user", "content": "Sum it."}]
    assert bench.without_spec([{"role": "user", "content": "Sum it."}]) == [
        {"role": "user", "content": "Sum it."}
    ]


@pytest.mark.slow
def test_programs_are_scored_with_their_specification_and_without(
    bench: ModuleType, pages: ModuleType, train_job: TrainJob, tmp_path: Path
) -> None:
    from improver import train

    rows = [gift_row(number, 0, "types") for number in range(2)]
    learned = tmp_path / "learned"
    learned.mkdir()
    (learned / "job.json").write_text(json.dumps(to_json(replace(train_job, epochs=6))))
    lines = "".join(json.dumps(to_json(row)) + "\n" for row in rows)
    (learned / "train.jsonl").write_text(lines)
    (learned / "held_out.jsonl").write_text("")
    train.train(learned)
    work = bench.Work(data=tmp_path, directory=tmp_path, model="starter", limit=None, until=1e12)
    base = Path(train_job.base_directory)
    for arm, adapter in (("base", None), ("tuned", learned / "adapter"), ("tuned", None)):
        bench.score_specs(work, rows, arm, bench.Scorer(base, adapter))
    told = list(pages.done(tmp_path / "specs.jsonl").values())
    assert len(told) == 4
    assert all(one["with"] != one["without"] < 0 for one in told)
    by = {(one["arm"], one["row"]): one["with"] for one in told}
    assert all(by["tuned", row.id] > by["base", row.id] for row in rows), "it was learned"
    text = "\n".join(pages.specs_section(told))
    assert "| types | 2 | " in text


WROTE = {
    # By another name, and counted another way.
    "right": "n = df['points'].groupby(df['team']).sum()",
    "wrong": "per_team = df.groupby('team')['points'].max()",
    "echo": "per_team = pd.Series({'blue': 12, 'green': 3, 'red': 16})",
    "broken": "per_team = df.nosuch.sum()",
}


@pytest.mark.isolation
async def test_what_is_sampled_for_held_out_tables_is_run(
    bench: ModuleType, pages: ModuleType, server: StubServer, tmp_path: Path
) -> None:
    made = gift_row(1, 0, "types")
    held = replace(
        made,
        program="per_team = df.groupby('team')['points'].sum()\n",
        messages=[{"role": "user", "content": "Sum.\n\nSpecification:\nOutput: per_team"}],
        provenance=made.provenance | {"output": "per_team"},
    )

    def answer(body: dict[str, Any], index: int) -> str:
        shown = "Specification" in body["messages"][-1]["content"]
        first = "right" if body["model"] == "tuned" and shown else "wrong"
        # Cut at the end of its program, as a stop leaves it.
        return "```python\n" + WROTE[(first, "echo", "broken")[index]]

    server.script = answer
    work = bench.Work(
        data=tmp_path, directory=tmp_path, model="starter", limit=None, until=1e12, samples=3
    )
    async with Pool(workers=2, recheck_s=0) as pool, Policy(server.url) as policy:
        with work.journal("specs-sampled") as journal:
            for _ in range(2):
                await bench.sample_row(work, held, TABLES, "base", policy, pool, journal)
    assert len(server.bodies) == 4
    told = list(pages.done(tmp_path / "specs-sampled.jsonl").values())
    verdicts = {(one["arm"], one["shown"]): one["verdicts"] for one in told}
    no_good = ["output ignores the input", "does not execute"]
    assert verdicts["tuned", "with"] == ["right", *no_good]
    assert verdicts["tuned", "without"] == ["another output", *no_good]
    text = "\n".join(pages.sampled_section(told))
    name = "Qwen2.5-Coder-0.5B-Instruct"
    cells = "| 1, 3 each | 66.7% | 66.7% | 0.0% | 33.3% | +33.3% (+33.3% to +33.3%) |"
    assert f"| {name} | types | yes {cells}" in text
    assert f"| {name} | types | no | 1, 3 each | 66.7% | 66.7% | 0.0% | 0.0% |" in text


def test_out_of_time_nothing_more_is_begun(bench: ModuleType, tmp_path: Path) -> None:
    work = bench.Work(data=tmp_path, directory=tmp_path, model="m", limit=None, until=0.0)
    assert list(bench.units([1, 2, 3], work)) == []


# --- the page ----------------------------------------------------------------------------------


def unit(task: str, own: float, shuffled: float, none: float) -> dict[str, Any]:
    arms = {"own": own, "shuffled": shuffled, "none": none}
    return {
        "model": "starter-small",
        "task": task,
        "seed": 7,
        "code_like": own < -0.5,
        "dtype": "float32",
        "changed": [1],
        "logprobs": {arm: [-0.1, value, -0.1] for arm, value in arms.items()},
    }


def test_intervals_are_of_paired_differences(pages: ModuleType) -> None:
    found = pages.interval([0.5] * 20)
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)
    wide = pages.interval([0.0, 1.0] * 20)
    assert wide.low < 0.5 < wide.high
    values = pages.feedback_values([unit("a", -1, -2, -4)], changed=True)
    assert values == {"own": [-1.0], "shuffled": [-2.0], "none": [-4.0]}
    assert pages.feedback_values([unit("a", -1, -2, -4) | {"changed": []}], changed=True) == {
        "own": [],
        "shuffled": [],
        "none": [],
    }


def test_the_page_holds_what_was_run_and_says_what_was_not(
    pages: ModuleType, tmp_path: Path
) -> None:
    with Journal(tmp_path / "feedback.jsonl") as journal:
        for number in range(9):
            journal.add(str(number), unit(str(number), -1.0, -2.0 - number / 10, -4.0))
    with Journal(tmp_path / "tuning.jsonl") as journal:
        asked = {"model": "starter", "seed": 0, "learning_rate": 1e-4, "epochs": 2}
        asked |= {"prompts_sha256": "00", "name": "ilf-0-0.0001-2-31"}
        journal.add(
            "starter|asked|base", {**asked, "arm": "base", "passed": {"a": 1, "b": 0, "c": 0}}
        )
        journal.add(
            "starter|asked|ilf-0", {**asked, "arm": "ilf", "passed": {"a": 1, "b": 1, "c": 0}}
        )
        journal.add("starter|trained|ilf-0-0.0001-2-31", {"rows": 31})
        journal.add("starter|sample|ilf|3|1", {"samples": 3, "passed": 2, "passing": []})
    pages.write(tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "reproductions.md").read_text()
    assert "| **own minus another's** | +0.467" in text
    assert "feedback with code-like text | | +1.400" in text
    assert "feedback without" not in text
    assert "Qwen2.5-Coder-0.5B-Instruct: not run." in text
    assert "SmolLM2-135M-Instruct: not run." in text
    assert "2 of 3 samples at temperature 0.8 passed, 1 of 1 tasks have one" in text
    assert "| its own refinements after feedback (ILF) | 31 | 1 | 0.0001, 2 | 66.7%" in text
    assert "+33.3%" in text
    assert (tmp_path / "out" / "images" / "reproduction-feedback.png").stat().st_size > 1000


def test_without_units_there_is_no_figure(pages: ModuleType, tmp_path: Path) -> None:
    pages.write(tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "reproductions.md").read_text()
    assert text.lower().count("not run.") == 8
    assert ".png" not in text


def test_shuffled_is_a_control_of_the_recipe(bench: ModuleType) -> None:
    assert bench.FEEDBACK_ARMS["shuffled"] is Control.SHUFFLED
