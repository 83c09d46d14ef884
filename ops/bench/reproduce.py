"""The papers' tables in miniature, on the starter models: what holds at this size, what does not.

    python ops/bench/reproduce.py PART --data DIR --work DIR [--model starter] [--limit N]
    python ops/bench/reproduce.py report --work DIR [--out ops/docs]

The parts:

    feedback   ILF's table 2 (arXiv 2303.16749): is a person's correction likelier under the model
               when it reads the feedback on this very program, on another one, or none? By the
               log-probability of the correction, which takes no sampling. No server is needed.

Each finished unit of work is a line of `PART.jsonl` in the work directory, so a run that was
killed, or was given only so many `--minutes`, goes on where it was. `report` makes tables with
intervals (bootstrap over tasks, paired where arms are compared) and plots of whatever is there.
`--data` holds the rows as the papers publish them: `train/ilf_human_feedback.jsonl`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from improver import importer
from improver.recipes import ilf
from improver.recipes.base import fenced
from improver.recipes.ilf import Control
from improver.types import Case
from improver.workspace import Journal
from ops import models
from ops.records import Json, Metric
from sandbox.spec import parse_spec

RESAMPLES = 10_000
SEED = 7
ARMS = {
    "own": Control.FEEDBACK,
    "shuffled": Control.SHUFFLED,
    "none": Control.NONE,
}
Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every part is given."""

    data: Path
    directory: Path
    model: str
    limit: int | None
    until: float
    """When to stop, by `time.monotonic`; what is done is kept."""

    def journal(self, part: str) -> Journal:
        """The finished units of a part."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return Journal(self.directory / f"{part}.jsonl")

    def left(self) -> bool:
        """Whether there is time for another unit."""
        return time.monotonic() < self.until


# --- ILF, table 2: whose feedback helps --------------------------------------------------------


def feedback_cases(path: Path) -> list[Case]:
    """The paper's triples: a wrong program, a person's words, and the person's correction.

    Rows of all splits, since nothing is trained here.
    """
    cases = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if not line.strip():
            continue
        row = json.loads(line)
        entry = importer.read_ilf(row | {"paper_split": "Train"})
        said = dict(entry.feedback)
        if entry.spec is None or Metric.DEMONSTRATION not in said:
            continue
        cases.append(
            Case(
                interaction_id=f"{row['task_id']}",
                messages=entry.messages,
                spec=entry.spec.to_json(),
                program=entry.program,
                feedback=str(said[Metric.COMMENT]),
                feedback_ids=[],
                feedback_source="HUMAN",
                source="imported",
                demonstration=str(said[Metric.DEMONSTRATION]),
            )
        )
    return cases


def derange(cases: Sequence[Case], seed: int) -> dict[str, str]:
    """For each case the feedback of another one, by id: a turn of a seeded shuffle."""
    return {case.interaction_id: case.feedback for case in ilf.shuffled(cases, seed)}


def feedback(work: Work) -> None:
    """Score each correction under each arm, one task after the other."""
    from improver import train  # torch is slow to import

    cases = feedback_cases(work.data / "train" / "ilf_human_feedback.jsonl")
    others = derange(cases, SEED)
    random.Random(SEED).shuffle(cases)
    scorer = Scorer(models.resolve(work.model).directory)
    with work.journal("feedback") as journal:
        for case in _units(cases[: work.limit], work):
            key = f"{work.model}|{case.interaction_id}"
            if key in journal.done:
                continue
            spec = parse_spec(case.spec)
            arms: Json = {}
            for arm, control in ARMS.items():
                words = others[case.interaction_id] if arm == "shuffled" else case.feedback
                prompt = ilf.refinement_prompt(_saying(case, words), spec, control)
                row = train.encode(scorer.tokenizer, prompt, fenced(case.demonstration or ""))
                arms[arm] = scorer.answer(row)
            wrong = scorer.ids(fenced(case.program))
            ids = row.ids[row.prompt :]
            journal.add(
                key,
                {
                    "model": work.model,
                    "task": case.interaction_id,
                    "seed": SEED,
                    "dtype": str(scorer.dtype).removeprefix("torch."),
                    "changed": changed(wrong, ids),
                    "logprobs": {
                        arm: [round(v, 4) for v in values] for arm, values in arms.items()
                    },
                },
            )


def _saying(case: Case, words: str) -> Case:
    from dataclasses import replace

    return replace(case, feedback=words)


def changed(wrong: Sequence[int], right: Sequence[int]) -> list[int]:
    """The places of the correction's tokens that the wrong program does not have."""
    matcher = difflib.SequenceMatcher(a=list(wrong), b=list(right), autojunk=False)
    return [
        place
        for tag, _, _, begin, end in matcher.get_opcodes()
        if tag in ("replace", "insert")
        for place in range(begin, end)
    ]


class Scorer:
    """A model's log-probabilities of answers, in the number format that it is trained in here."""

    def __init__(self, directory: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from improver import train

        self._torch, self._train = torch, train
        self.device = train.pick_device()
        self.tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        self.dtype = train.pick_dtype("auto", self.device)
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=self.dtype, local_files_only=True
        )
        self._model = _Bare(model.to(self.device).eval())

    def ids(self, text: str) -> list[int]:
        """The tokens of a text."""
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def answer(self, row: Any) -> list[float]:
        """The log-probability of each token of a row's answer, in nats."""
        with self._torch.no_grad():
            values: list[float] = self._train.answer_logprobs(
                self._model, [row], self.device
            ).tolist()
        return values


class _Bare:
    """A model without an adapter, in the shape that the training step's functions know."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def get_base_model(self) -> Any:
        return self._model


def _units(items: Sequence[Any], work: Work) -> Iterator[Any]:
    """Yield items while there is time, and say how far it got."""
    for number, item in enumerate(items, 1):
        if not work.left():
            print(f"out of time after {number - 1} of {len(items)}", file=sys.stderr)
            return
        yield item
        if number % 20 == 0:
            print(f"{number} of {len(items)}", file=sys.stderr)


PARTS: dict[str, Callable[[Work], None]] = {"feedback": feedback}


def main() -> int:
    """Run a part, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=[*PARTS, "report"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--minutes", type=float, default=1e6)
    given = parser.parse_args()
    work = Work(
        data=given.data,
        directory=given.work,
        model=given.model,
        limit=given.limit,
        until=time.monotonic() + 60 * given.minutes,
    )
    PARTS[given.part](work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
