from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from improver import corpus
from improver.errors import ImportFileError
from improver.types import Origin
from ops.records import Attempt, Feedback, FeedbackSource, Metric, Source, new_id, now
from ops.store import Recording, Store
from tests.improver.test_contexts import interaction

GOOD = "def double(x):\n    return x * 2\n"


def test_json_lines_with_the_usual_field_names(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Double it.", "input": "x: 2", "code": GOOD, "licence": "MIT"},
        {"text": "Triple it.", "response": f"Sure:\n```python\n{GOOD.replace('2', '3')}```\nDone."},
        {"code": "print('hello there')\n# nothing else\n"},
        {"code": "def broken(:\n    return 1\n"},
        {"code": GOOD},
        {"question": "no code"},
        {
            "task_id": 11,
            "text": "Halve it.",
            "code": "def halve(x):\r\n    return x / 2\r\n",
            "test_list": ["assert halve(2) == 1"],
        },
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), "not json"]))
    found = corpus.read_corpus(path, licence="CC0")
    assert [s.instruction for s in found.snippets] == [
        "Double it.\n\nInput: x: 2",
        "Triple it.",
        "Halve it.",
    ]
    assert [s.licence for s in found.snippets] == ["MIT", "CC0", "CC0"]
    assert found.snippets[1].code == GOOD.replace("2", "3")
    halve = found.snippets[2]
    assert "\r" not in halve.code
    assert halve.spec.has_checks
    assert halve.metadata == {"task_id": "11"}
    assert halve.source == "rows.jsonl:7"
    assert found.skipped == {
        "only prints or comments": 1,
        "not Python": 1,
        "same code again": 1,
        "row without code": 1,
        "line is no JSON object": 1,
    }


MODULE = '''
import math
from collections import Counter
from . import sibling

LIMIT = 3

def area(radius):
    """Area of a circle.

    >>> area(0)
    0.0
    """
    return math.pi * radius ** 2

def leaning(x):
    return x + LIMIT

def relative(x):
    return sibling.of(x)

def common(items):
    return Counter(items).most_common(1)
'''


def test_functions_of_modules_bring_the_imports_they_need(tmp_path: Path) -> None:
    (tmp_path / "shapes.py").write_text(MODULE)
    found = corpus.read_corpus(tmp_path, licence="MIT")
    area, common = found.snippets
    assert area.code.startswith("import math\n")
    assert area.spec.entry_point == "area"
    assert area.spec.has_checks
    assert common.code.startswith("from collections import Counter\n")
    assert found.skipped == {"function leans on its module": 2}
    for snippet in found.snippets:
        exec(snippet.code, {})


def test_a_missing_corpus_is_the_operators_fault(tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match="no corpus"):
        corpus.read_corpus(tmp_path / "nowhere")


def _put(
    store: Store,
    program: str,
    verified: bool | None,
    endpoint: str = "chat",
    source: Source = Source.SERVED,
    **feedback: bool | str,
) -> str:
    kept = replace(
        interaction("Double x."),
        verified=verified,
        adapter_name="code@v2",
        endpoint=endpoint,
        source=source,
    )
    attempt = Attempt(
        id=new_id(),
        interaction_id=kept.id,
        attempt_index=0,
        choice_index=0,
        text=program,
        program=program,
        program_sha256="0",
        mean_logprob=None,
    )
    store.add([Recording(interaction=kept, attempts=[attempt], executions=[])])
    for metric, value in feedback.items():
        given = Feedback(
            id=new_id(),
            created_at=now(),
            updated_at=now(),
            interaction_id=kept.id,
            episode_id=None,
            metric=metric,
            value=value,
            source=FeedbackSource.HUMAN,
        )
        store.put_feedback([given])
    return kept.id


def test_the_record_gives_what_it_knows_to_be_right(store: Store) -> None:
    code = "def f{0}(x):\n    return x * {0}\n"
    verified = _put(store, code.format(1), True)
    kept = _put(store, code.format(2), None, **{Metric.ACCEPTED: True})
    _put(store, code.format(3), True, **{Metric.ACCEPTED: False})
    _put(store, code.format(4), False, **{Metric.ACCEPTED: True})
    _put(store, code.format(5), None)
    shown = _put(store, code.format(6), False, **{Metric.DEMONSTRATION: code.format(7)})
    found = corpus.of_record(store)
    by_id = {s.interaction_ids[0]: s for s in found.snippets}
    assert by_id.keys() == {verified, kept, shown}
    assert by_id[shown].origin is Origin.DEMONSTRATION
    assert by_id[shown].code == code.format(7)
    assert by_id[shown].feedback_ids
    assert by_id[kept].origin is Origin.ACCEPTED
    assert by_id[kept].user == "ada"
    assert found.skipped == {"answer was refused": 1, "answer failed its checks": 1}


def test_a_text_to_be_completed_is_no_request(store: Store) -> None:
    code = "def f{0}(x):\n    return x * {0}\n"
    accepted = {Metric.ACCEPTED: True}
    asked = _put(store, code.format(1), None, **accepted)
    _put(store, code.format(2), None, endpoint="/v1/completions", **accepted)
    _put(store, code.format(3), None, source=Source.CLIENT, **accepted)
    found = {s.interaction_ids[0]: s.instruction for s in corpus.of_record(store).snippets}
    assert len(found) == 3
    assert [one for one, words in found.items() if words] == [asked]


def test_drawing_takes_what_has_a_request_the_same_way_each_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [{"code": f"def f(x):\n    return x * {i}\n", "text": f"Times {i}"} for i in range(9)]
    path.write_text("\n".join(json.dumps(line) for line in [*lines, {"code": GOOD}]))
    snippets = corpus.read_corpus(path).snippets
    drawn = corpus.draw(snippets, 4, seed=3)
    assert len(drawn) == 4
    assert drawn == corpus.draw(reversed(snippets), 4, seed=3)
    assert len(corpus.draw(snippets, 99, seed=3)) == 9
