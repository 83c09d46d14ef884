"""GIFT4Code on a scripted model, with programs run in the real sandbox."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pandas as pd
import pytest
import pytest_asyncio

from improver.contexts import Context
from improver.corpus import Snippet
from improver.recipes.base import fenced
from improver.recipes.gift4code import Gift4Code, Options, choose, draw_kind, request
from improver.specs import SpecKind
from improver.trace import Rejected, Traced, main_name, settle, trace
from improver.types import Origin, Row, from_json, to_json
from sandbox.pool import Pool
from sandbox.spec import extend_prompt, parse_spec
from tests.improver.scripted import Json, Model, said_last, tools

pytestmark = pytest.mark.asyncio(loop_scope="module")

FRAME = pd.DataFrame(
    {
        "team": ["red", "blue", "red", "green", "blue", "red", "green", "blue"],
        "points": [3, 1, 4, 1, 5, 9, 2, 6],
        "pace": [1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5],
    }
)
TABLES = Context(
    id="tables",
    title="games.csv",
    load='import pandas as pd\n\ndf = pd.read_csv("games.csv")',
    tables={"df": FRAME},
    source="tables",
    licence="CC0",
)
CALLS = Context(
    id="calls",
    title="calls",
    load="",
    calls=(([3, 1, 2], 2), ([5, 5, 0], 1), ([9], 0)),
    parameters=("items", "places"),
    source="request",
    interaction_ids=("i-1",),
    user="ada",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[Pool]:
    async with Pool(workers=2, recheck_s=0) as opened:
        yield opened


async def traced(pool: Pool, program: str, context: Context = TABLES) -> Traced | Rejected:
    settled = settle(program, context)
    assert settled is not None
    return await trace(pool, settled, context, seed=5)


async def test_a_program_is_described_by_what_it_made(pool: Pool) -> None:
    found = await traced(pool, 'per_team = df.groupby("team")["points"].sum().reset_index()')
    assert isinstance(found, Traced)
    assert found.output == "per_team"
    assert found.described["type"] == "pandas.DataFrame"
    assert [item["name"] for item in found.inputs] == ["df"]
    assert "value" not in found.described
    assert found.example_output is not None


LITERAL = 'per_team = pd.DataFrame({"team": ["blue", "green", "red"], "points": [12, 3, 16]})\n'


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (LITERAL, "output ignores the input"),
        (f"{LITERAL}print(len(df))\n", "output ignores the input"),
        ("columns = list(df.columns)", "output ignores the input"),
        ("best = df.nosuch.max()", "does not execute"),
        ("copy = df.copy()", "trivial output"),
        ("none = df[df.points > 100]", "trivial output"),
        ("nothing = None if len(df) else 1", "trivial output"),
        ("df.plot", "trivial output"),
        ("groups = df.groupby('team')", "trivial output"),
        (
            "import random\nany_row = df.iloc[random.randrange(8)]['pace'] + random.random()",
            "not repeatable",
        ),
        (
            "if df.points.tolist()[:3] != [3, 1, 4]:\n    raise ValueError\nbest = df.points.max()",
            "fails on other input",
        ),
    ],
)
async def test_programs_that_teach_nothing_are_rejected(
    pool: Pool, program: str, reason: str
) -> None:
    found = await traced(pool, program)
    assert isinstance(found, Rejected)
    assert found.reason == reason


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def solution(items, places):\n    return sum(items) * places", None),
        ("def solution(items, places):\n    return 7", "output ignores the input"),
        ("def solution(items, places):\n    return items", "trivial output"),
        ("def solution(items, places):\n    return items[places + 1]", "does not execute"),
        ("def other(items, places):\n    return items[0]", "does not execute"),
        (
            "import random\ndef solution(items, places):\n    return random.random()",
            "not repeatable",
        ),
    ],
)
async def test_functions_are_each_others_perturbation(
    pool: Pool, program: str, reason: str | None
) -> None:
    found = await traced(pool, program, CALLS)
    if reason is None:
        assert isinstance(found, Traced)
        assert found.returned == (12, 10, 0)
    else:
        assert isinstance(found, Rejected)
        assert found.reason == reason


async def test_answers_are_made_to_stand_by_themselves() -> None:
    notebook = 'df = pd.read_csv("games.csv")\n# by team\ndf.groupby("team").size()'
    assert settle(notebook, TABLES) == '# by team\nresult = df.groupby("team").size()\n'
    assert settle("print(df.points.mean())", TABLES) == (
        "result = df.points.mean()\nprint(result)\n"
    )
    assert settle("top = pd.concat([df, df])\nprint(top)", TABLES) == (
        "import pandas as pd\ntop = pd.concat([df, df])\nprint(top)\n"
    )
    assert settle("x = (", TABLES) is None
    assert settle("def solution(a, b):\n    return np.add(a, b)", CALLS) == (
        "import numpy as np\ndef solution(a, b):\n    return np.add(a, b)\n"
    )


async def test_a_program_is_about_what_it_assigns_outside_loops() -> None:
    loop = "found = []\nfor row in [1, 2]:\n    twice = row * 2\n    found.append(twice)\n"
    assert main_name(loop, ["found", "row", "twice"]) == "found"
    assert main_name('share = 1\ndf["new"] = share', ["share", "df"]) == "df"
    assert main_name("a, b = 1, 2", ["a", "b"]) == "b"
    assert main_name("for i in x:\n    y = i", ["i", "y"]) == "y"


TASKS = (
    "Task 1: How many points did each team collect over all games?\n"
    "Task 2: Give the average pace for every single team."
)
ANSWERS = {
    "How many points": (
        'per_team = df.groupby("team")["points"].sum().reset_index()',
        LITERAL.strip(),
        "per_team = df.team.nosuch()",
        "per_team = df.groupby('team')['points'].sum()  .reset_index()",
        'ranking = df.pivot_table(index="team", values="points", aggfunc="sum")',
    ),
    "average pace": (
        'pace = df.groupby("team")["pace"].mean()',
        "I cannot help with that.",
        "pace = df.pace.tolist()",
        "pace = df.pace.describe()",
        "pace = df.copy()",
    ),
}
SUMMARIES = (
    "The result uses groupby to bring the numbers of each team together.",
    "One line for each of the teams, with what belongs to it in the other column.",
)


def gift(body: Json, index: int) -> str:
    asked = said_last(body)
    if "different tasks" in asked:
        return TASKS
    if "A program was written for this task" in asked:
        return SUMMARIES[min(index, 1)]
    for words, answers in ANSWERS.items():
        if words in asked:
            return answers[index] if "cannot" in answers[index] else fenced(answers[index])
    raise AssertionError(asked)


def snippet(number: int, **more: object) -> Snippet:
    code = f"def times_{number}(x):\n    return x * {number}\n"
    given: Json = {
        "id": f"s{number}",
        "code": code,
        "messages": [{"role": "user", "content": f"Write a function that multiplies by {number}."}],
        "origin": Origin.CORPUS,
        "source": f"rows:{number}",
        "licence": "MIT",
    }
    return Snippet(**{**given, **more})


async def build(
    pool: Pool, model: Model, directory: Path, **options: object
) -> tuple[list[Row], Json, Counter[str]]:
    made, journal = tools(model, pool, directory)
    replay = [snippet(n) for n in range(2, 40)]
    recipe = Gift4Code(
        Options(intents=2, **options),  # type: ignore[arg-type]
        contexts=[TABLES],
        runner=pool,
        replay=replay,
    )
    with journal:
        async with made.policy:
            built = await recipe.build([], made)
    return built.rows, built.report, Counter(drop.reason for drop in built.drops)


async def test_rows_are_true_counted_and_traceable(pool: Pool, tmp_path: Path) -> None:
    model = Model(gift)
    rows, report, drops = await build(pool, model, tmp_path)
    made = [row for row in rows if row.origin is Origin.SYNTHESIS]
    replayed = [row for row in rows if row.provenance.get("replay")]
    # Of ten programs: two echo or crash, one is a twin, one no program, one the input again.
    assert drops["output ignores the input"] == 1
    assert drops["does not execute"] == 1
    assert drops["program twice"] == 1
    assert drops["no program"] == 1
    assert drops["trivial output"] == 1
    assert len(made) + drops["another of the same intent"] == 5
    assert len(made) == 4
    # One part of synthetic rows to two of replayed code.
    assert len(replayed) == 8
    assert report["replay_share"] == pytest.approx(2 / 3, abs=1e-3)
    assert report["programs"] == 10
    assert report["executable_share"] == pytest.approx(7 / 8, abs=1e-3)
    assert len({row.id for row in rows}) == len(rows)
    for row in made:
        spec = parse_spec(row.provenance["spec"])
        told = extend_prompt(request(TABLES, row.provenance["intent"]), spec)
        assert row.messages[-1]["content"] == told, "the live renderer writes the prompt"
        assert row.answer == fenced(row.program)
        assert row.provenance["model"] == "code"
        assert row.provenance["adapter_version"] == 3
        assert row.provenance["licence"] == "CC0"
        assert from_json(Row, to_json(row)) == row
        if spec.has_checks:
            assert (await pool.check(row.program, spec)).verified
    # Rows of one intent share a side of the split; those of another may not.
    assert len({row.task for row in made}) == 2
    asked = next(b for b in model.bodies if "Task: Give the average" in said_last(b))
    assert asked["n"] == 5
    assert asked["temperature"] == 0.8


@pytest.mark.parametrize("kind", list(SpecKind))
async def test_each_kind_of_specification(pool: Pool, tmp_path: Path, kind: SpecKind) -> None:
    rows, report, _ = await build(pool, Model(gift), tmp_path, shares={kind: 1.0}, programs=1)
    made = [row for row in rows if row.origin is Origin.SYNTHESIS]
    assert {row.provenance["spec_kind"] for row in made} == {kind}
    shown = "\n".join(row.messages[-1]["content"] for row in made)
    assert ("Specification:" in shown) == (kind is not SpecKind.NONE)
    if kind is SpecKind.SUMMARY:
        assert SUMMARIES[1] in shown
        named = [row for row in made if "groupby" in row.program]
        assert named
        for row in named:
            assert SUMMARIES[0] not in row.messages[-1]["content"], "it names an API"
        assert report["summary names an API"] >= 1
    if kind is SpecKind.EXAMPLES:
        assert "Input variable `df` = pd.DataFrame" in shown


async def test_a_killed_build_asks_nothing_twice(pool: Pool, tmp_path: Path) -> None:
    first = await build(pool, Model(gift), tmp_path, programs=1)
    silent = Model(gift)
    again = await build(pool, silent, tmp_path, programs=1)
    assert again == first
    assert silent.bodies == []


async def test_a_refused_request_costs_one_intent(pool: Pool, tmp_path: Path) -> None:
    def script(body: Json, index: int) -> str | Json:
        if "Task: How many points" in said_last(body):
            return {"status": 400}
        return gift(body, index)

    rows, report, drops = await build(pool, Model(script), tmp_path, programs=1)
    assert drops["request refused"] == 1
    assert report["intents"] == 2
    assert {r.provenance["intent"] for r in rows if r.origin is Origin.SYNTHESIS} == {
        "Give the average pace for every single team."
    }


async def test_the_firewall_sees_intents_and_replay(pool: Pool, tmp_path: Path) -> None:
    leak = "Write a function that counts the vowels of a text, case aside."

    def script(body: Json, index: int) -> str:
        asked = said_last(body)
        if "different tasks" in asked:
            return f"Task 1: {leak}"
        return fenced("vowels = df.team.str.count('[aeiou]').sum()")

    made, journal = tools(Model(script), pool, tmp_path)
    leaked = snippet(2, messages=[{"role": "user", "content": leak}])
    options = Options(intents=1, programs=1, replay_share=1.0, shares={SpecKind.NONE: 1})
    recipe = Gift4Code(options, contexts=[TABLES], runner=pool, replay=[leaked, snippet(3)])
    with journal:
        async with made.policy:
            built = await recipe.build([], made)
    assert [row.program for row in built.rows] == [snippet(3).code]
    assert Counter(d.reason for d in built.drops) == {"examination: same text": 2}
    assert all(drop.row is not None for drop in built.drops)


def row(number: int, task: str, *apis: str) -> Row:
    return Row(
        id=f"r{number}",
        recipe="gift4code",
        origin=Origin.SYNTHESIS,
        task=task,
        messages=[],
        answer="",
        program="",
        interaction_ids=[],
        feedback_ids=[],
        prompt_sha256="",
        program_sha256="",
        provenance={"apis": list(apis)},
    )


async def test_rare_calls_are_preferred_and_common_ones_capped() -> None:
    rows = [row(i, f"t{i}", "mean") for i in range(5)]
    rows += [row(10, "u", "mean"), row(11, "u", "merge", "rank"), row(12, "u", "cut")]
    kept, drops = choose(rows, per_intent=2, per_signature=3)
    assert {r.id for r in kept} >= {"r11", "r12"}
    assert sum(r.provenance["apis"] == ["mean"] for r in kept) == 3
    assert Counter(d.reason for d in drops) == {
        "API signature over its cap": 2,
        "another of the same intent": 1,
    }


async def test_specifications_are_dropped_at_their_share() -> None:
    shares = {SpecKind.NONE: 0.5, SpecKind.TYPES: 0.5, SpecKind.SUMMARY: 0.0}
    drawn = Counter(draw_kind(shares, seed) for seed in range(400))
    assert 150 < drawn[SpecKind.NONE] < 250
    assert drawn.keys() == {SpecKind.NONE, SpecKind.TYPES}
