"""Which rows are of tasks that are alike: groups that a split must not tear apart.

Two rows are of one group when they are of one task, when their requests are near-duplicates (word
bigrams) or when their programs are (5-grams of code tokens, variables renamed), at the firewall's
Jaccard similarity. A held-out row whose twin was trained on would measure memory: a fifth of
MBPP's test tasks have such a twin among its training tasks.

Exact, and quick for what a cycle has: rows are compared only where they share one of their rarest
shingles (prefix filtering, Bayardo et al., WWW 2007). Whether a row touches the examination is the
firewall's business.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from improver.firewall import (
    LEAST_CODE_SHINGLES,
    LEAST_TEXT_SHINGLES,
    SIMILAR,
    code_shingles,
    code_tokens,
    jaccard,
    text_shingles,
)
from improver.types import Row

Shingles = frozenset[str]


def groups(rows: Sequence[Row]) -> dict[str, str]:
    """Return for each row's id the name of its group: the first of its tasks, in order."""
    parent = {row.task: row.task for row in rows}

    def root(task: str) -> str:
        while parent[task] != task:
            parent[task] = parent[parent[task]]
            task = parent[task]
        return task

    texts = ((row.task, text_shingles(_request(row))) for row in rows)
    programs = ((row.task, _code(row.program)) for row in rows)
    for least, shingled in ((LEAST_TEXT_SHINGLES, texts), (LEAST_CODE_SHINGLES, programs)):
        for one, other in _alike([(t, s) for t, s in shingled if len(s) >= least]):
            first, last = sorted((root(one), root(other)))
            parent[last] = first
    return {row.id: root(row.task) for row in rows}


def _request(row: Row) -> str:
    """What was asked, without the rendered specification, which many tasks have in common."""
    asked = next((m["content"] for m in reversed(row.messages) if m["role"] == "user"), "")
    return asked.rsplit("\n\nSpecification:\n", 1)[0] if isinstance(asked, str) else ""


def _code(program: str) -> Shingles:
    tokens = code_tokens(program)
    return code_shingles(tokens) if tokens is not None else frozenset()


def _alike(shingled: Sequence[tuple[str, Shingles]]) -> Iterable[tuple[str, str]]:
    """Yield pairs of tasks with similar shingles; of a chain of twins not every pair."""
    often = Counter(shingle for _, shingles in shingled for shingle in shingles)
    places: dict[str, list[int]] = {}
    for place, (task, shingles) in enumerate(shingled):
        rarest = sorted(shingles, key=lambda shingle: (often[shingle], shingle))
        prefix = rarest[: len(shingles) - math.ceil(SIMILAR * len(shingles)) + 1]
        seen = {other for shingle in prefix for other in places.get(shingle, ())}
        for other in seen:
            known, theirs = shingled[other]
            if known != task and jaccard(shingles, theirs) >= SIMILAR:
                yield task, known
        for shingle in prefix:
            places.setdefault(shingle, []).append(place)
