"""Ask the served model what one might want to do with a context: GIFT4Code's intents.

One answer is a numbered list of tasks for one table. An exemplar shows the three diversities that
the paper asks for (another task, another topic, another wording each time); near-duplicates are
taken out, and whatever is no task (too short, code, a copy of the exemplar, or about the
exemplar's data: small models go on about its boxes, whatever table they are shown).

Source: step 2 of GIFT4Code (arXiv 2402.08073). Deviation: the paper's intents come from another,
general model (PaLM 2); here the served model writes them too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from improver.contexts import Context
from improver.firewall import jaccard, text_shingles
from improver.policy import Policy
from ops.records import Json

TOO_LIKE = 0.5
"""Word bigrams this alike are one task in other words."""
LEAST_WORDS = 5
MOST_WORDS = 60

TABLE_TASKS = (
    "Which three suppliers shipped the most boxes in total?",
    "Fill the gaps in `weight_kg` with the median weight of boxes of the same size.",
    "Add a column that tells for every delivery whether it came later than promised.",
    "Make a table with one row per month and one column per supplier, holding the number of boxes.",
    "How strongly do weight and price go together, for each size separately?",
    "Throw out deliveries that are listed twice and sort what is left from newest to oldest.",
    "For each supplier, what share of its boxes arrived damaged, in percent?",
    "Split `destination` into two new columns, city and country.",
    "I need the longest row of days without any delivery.",
    "Rank the deliveries by price within each supplier, and keep the cheapest of each.",
)
TABLE_EXEMPLAR = (
    '```python\nimport pandas as pd\n\ndf = pd.read_csv("deliveries.csv")\n```\n'
    "`df` starts like this:\n```\n"
    "day,supplier,size,boxes,weight_kg,price,promised,damaged,destination\n"
    "2021-03-01,Norton,L,12,8.5,140.0,2021-03-01,0,Lyon (France)\n"
    "2021-03-01,Hale,S,3,,31.5,2021-02-27,1,Turin (Italy)\n```"
)
CALL_TASKS = (
    "Count how many numbers of the list are larger than the one before them.",
    "Leave out every second element and return what is left, in reverse.",
    "Find the longest stretch of equal neighbours and return its length.",
    "Is the sum of the even positions the same as that of the odd ones?",
    "Pair each element with how often it occurs, rarest first.",
    "Return the list rotated to the right by the given number of places.",
    "Group the numbers by their remainder and return a dictionary.",
    "What is the largest difference between two elements?",
    "Replace each number by the total of everything before it.",
    "Return the elements that occur exactly once, in their order.",
)
CALL_EXEMPLAR = (
    "The function is called like this:\n```python\nsolution([3, 1, 2], 2)\n"
    "solution([5, 5, 0, 7], 1)\n```"
)
ASK = (
    "Write {count} different tasks that somebody could set a programmer on {thing}. Vary the kind "
    "of task, what it is about, and the wording: questions, orders, wishes. Each must have one "
    "clear result that a short program can compute. One line each, numbered Task 1, Task 2, and "
    "so on."
)
ASK_COLUMNS = " Every task is about these columns and nothing else: {columns}."
EXEMPLAR_COLUMNS = TABLE_EXEMPLAR.split("```")[3].splitlines()[1].split(",")
TRIES = 3
_OF_THE_EXEMPLAR = re.compile(
    r"\b(suppl|box|deliver|ship|damage|promise|destination|weigh|price)\w*", re.I
)
"""Stems of what the exemplar's table is about."""

_TASK = re.compile(r"^\s*(?:[-*]\s*)?(?:\**task\s*)?(\d{1,2})\s*[.:)\]]+\**\s*(.+)$", re.I)


@dataclass(frozen=True, kw_only=True)
class Intents:
    """Tasks for one context, what was left out, and who wrote them."""

    texts: list[str]
    left_out: list[str] = field(default_factory=list)
    model: str = ""
    adapter_version: int = 0


def intent_messages(context: Context, count: int) -> list[Json]:
    """The request for tasks, with one exemplar answered before."""
    calls = bool(context.calls)
    exemplar, tasks = (CALL_EXEMPLAR, CALL_TASKS) if calls else (TABLE_EXEMPLAR, TABLE_TASKS)
    shown = "\n".join(f"Task {i}: {text}" for i, text in enumerate(tasks, 1))
    first = _ask(len(tasks), [] if calls else EXEMPLAR_COLUMNS)
    columns = [str(name) for frame in context.tables.values() for name in frame.columns]
    return [
        {"role": "user", "content": f"{exemplar}\n\n{first}"},
        {"role": "assistant", "content": shown},
        {"role": "user", "content": f"{context.shown()}\n\n{_ask(count, columns)}"},
    ]


def _ask(count: int, columns: Sequence[str]) -> str:
    thing = "this data" if columns else "a function with these arguments"
    ask = ASK.format(count=count, thing=thing)
    named = ", ".join(f"`{name}`" for name in columns)
    return ask + (ASK_COLUMNS.format(columns=named) if columns else "")


async def write_intents(
    policy: Policy, context: Context, *, count: int, temperature: float, seed: int
) -> Intents:
    """Ask for tasks until `count` different ones are there, at most three times.

    Raises:
        PolicyError: the model could not be asked.
    """
    texts: list[str] = []
    left_out: list[str] = []
    model, version = "", 0
    for attempt in range(TRIES):
        (sample,) = await policy.sample(
            intent_messages(context, count + 2),
            temperature=temperature,
            max_tokens=60 * (count + 2),
            seed=seed + attempt,
        )
        model, version = sample.model, sample.adapter_version
        # A list that was cut off ends in half a task.
        found = read_tasks(sample.text)
        found = found[:-1] if sample.finish_reason == "length" else found
        for text in found:
            why = unfit(text, context)
            if why is None and is_like(text, texts):
                why = "near-duplicate intent"
            if why is not None:
                left_out.append(why)
            elif len(texts) < count:
                texts.append(text)
        if len(texts) >= count:
            break
    return Intents(texts=texts, left_out=left_out, model=model, adapter_version=version)


def read_tasks(answer: str) -> list[str]:
    """The numbered lines of an answer."""
    matches = (_TASK.match(line) for line in answer.splitlines())
    return [match[2].strip().strip("*").strip() for match in matches if match]


def unfit(text: str, context: Context) -> str | None:
    """Why a line is no task for a context; None where it is one."""
    if not LEAST_WORDS <= len(text.split()) <= MOST_WORDS:
        return "intent too short or too long"
    if "```" in text or text.count("`") % 2 or re.search(r"\w\(.*\)\s*$|=\s*df\b", text):
        return "intent is code"
    if is_like(text, (*TABLE_TASKS, *CALL_TASKS)):
        return "intent copies the exemplar"
    shown = context.shown().lower()
    strange = (m[1].lower() not in shown for m in _OF_THE_EXEMPLAR.finditer(text))
    if context.tables and any(strange):
        return "intent is about the exemplar's data"
    return None


def is_like(text: str, others: Iterable[str]) -> bool:
    """Whether a task is one of the others in nearly the same words."""
    shingles = text_shingles(text)
    return any(jaccard(shingles, text_shingles(other)) >= TOO_LIKE for other in others)


def diversity(texts: Sequence[str]) -> float | None:
    """One minus the mean likeness of pairs: 1 where no two tasks share a word pair."""
    shingles = [text_shingles(text) for text in texts[:200]]
    pairs = [jaccard(a, b) for i, a in enumerate(shingles) for b in shingles[:i]]
    return round(1 - sum(pairs) / len(pairs), 4) if pairs else None
