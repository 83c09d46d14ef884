"""The tables and plots of the reproductions, out of their finished units.

Writes `reproductions.md` and PNG files beside it. A figure stands there only where units are in the
work directory; what was not run is named as such. Intervals are 95 %, by bootstrap over tasks;
where two arms are compared, over the same tasks drawn together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from improver.workspace import Journal
from ops.records import Json

RESAMPLES = 10_000
NAMES = {
    "starter": "Qwen2.5-Coder-0.5B-Instruct",
    "starter-small": "SmolLM2-135M-Instruct",
}
WORDS = {
    "base": "base model, nothing learned",
    "resample": "its own right answers (rejection sampling)",
    "ilf": "its own refinements after feedback (ILF)",
    "human": "people's refinements",
    "gold": "reference programs",
}
Numbers = np.ndarray[Any, Any]
HEAD = """\
# Reproductions in miniature

The papers' claims, tried on the starter models with `ops/bench/reproduce.py`; this page is written
by its `report`. The models have 0.5 and 0.1 billion parameters, are instruction-tuned and come from
4-bit weights; the papers' have 6 to 62 billion. Intervals are 95 %, by bootstrap over tasks, paired
where arms are compared.
"""
FEEDBACK = """\
## ILF, table 2: whose feedback helps

The paper lets a model repair wrong programs and counts what passes: 2.0 % with feedback on this
very program, 0.4 % with feedback on another one (CodeGen 6.1B, arXiv 2303.16749). Here nothing is
sampled: how likely is the *person's correction* under the model, in nats per token, when the prompt
holds its own feedback, another program's, or none? The prompt is the one that the ILF recipe sends.
The wrong programs are CodeGen's, not the model's own. Much of the paper's feedback holds text that
looks like code and could be copied: tasks without such feedback (by a crude search for brackets,
operators, calls and names with underscores) are shown apart.
"""
TUNING = """\
## ILF, table 4 in shape: what to train on

The paper's pass@1 on held-out MBPP tasks: 26 % base, 36 % ILF, 33 % people's refinements, 22 %
MBPP's reference programs. Here: LoRA on at most one row of each task of the paper's train split;
then tasks of a held-out set of 88 without near-duplicates, greedily, judged by MBPP+'s tests.
"""
ORDER = """\
## Inverse-Instruct: order and selection

The paper's HumanEval pass@1 with CodeLlama 7B: 76.2 % when self-made pairs come first, 72.6 %
mixed, 64.0 % when they come last; 72.6 % when they are chosen at random. Here by the loss on
held-out pairs of the corpus, whose near-duplicates were not trained on.
"""
SPECS = """\
## GIFT4Code's main table, in shape

The paper's DS-1000 pass@1: 22.6 % base, 24.6 % tuned without a specification, 29.3 % tuned with an
I/O Summary. Here: nats per token of programs that the base model wrote for held-out tables and that
meet their specification, with it and without it in the prompt. The tasks are our own, not ARCADE's
nor DS-1000's, and the same small model wrote their words.
"""
SAMPLED = """\
By sampling at temperature 0.8 for the same held-out programs' tasks: the share of programs that
run, and the share that are right (pass@1), which is to make the same as the held-out program on its
table and on a resampled one, by whatever name. The specification is an oracle's, as in the paper:
it describes what the held-out program made.
"""
NOT_RUN = """\
## Not run

- GIFT4Code by sampling on PandasEval.
- ILF with a refinement model of its own (`improver.ilf.refiner = own`).
"""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over tasks with its interval."""

    mean: float
    low: float
    high: float

    def text(self, form: str) -> str:
        """As a cell of a table."""
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"


def interval(values: Sequence[float], seed: int = 7) -> Interval:
    """The mean of a value for each task; a paired difference is such a value."""
    array = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    places = rng.integers(0, len(array), (RESAMPLES, len(array)))
    low, high = np.quantile(array[places].mean(axis=1), [0.025, 0.975])
    return Interval(mean=float(array.mean()), low=float(low), high=float(high))


def done(path: Path) -> dict[str, Json]:
    """The finished units of a part; an unfinished last line is left away."""
    if not path.exists():
        return {}
    with Journal(path) as journal:
        return dict(journal.done)


# --- ILF, table 2 ------------------------------------------------------------------------------


def per_token(unit: Json, arm: str, *, changed: bool) -> float | None:
    """Nats per token of a correction: all of it, or what the person changed of the program."""
    values = unit["logprobs"][arm]
    places = unit["changed"] if changed else range(len(values))
    return float(np.mean([values[place] for place in places])) if len(places) else None


def feedback_values(units: Sequence[Json], *, changed: bool) -> dict[str, list[float]]:
    """By arm, the figure of each task that has one; the same tasks in each arm."""
    arms: dict[str, list[float]] = {"own": [], "shuffled": [], "none": []}
    for unit in units:
        found = {arm: per_token(unit, arm, changed=changed) for arm in arms}
        if all(value is not None for value in found.values()):
            for arm, value in found.items():
                arms[arm].append(float(value or 0.0))
    return arms


def feedback_section(units: Sequence[Json], images: Path) -> list[str]:
    """Table 2 in words, figures and a plot."""
    lines = [FEEDBACK]
    bars: list[tuple[str, Interval]] = []
    for model in NAMES:
        some = [unit for unit in units if unit["model"] == model]
        if not some:
            lines += [f"{NAMES[model]}: not run.", ""]
            continue
        lines += _feedback_table(model, some, bars)
    if bars:
        name = "reproduction-feedback.png"
        title = "What feedback adds to the log-probability of the changed tokens (nats per token)"
        draw(images / name, title, bars)
        lines += [f"![{title}](images/{name})", ""]
    return lines


def _feedback_table(
    model: str, units: Sequence[Json], bars: list[tuple[str, Interval]]
) -> list[str]:
    every = feedback_values(units, changed=False)
    edits = feedback_values(units, changed=True)
    lines = [
        f"**{NAMES[model]}**, {len(units)} of the paper's 191 usable triples in a seeded order "
        f"(seed {units[0]['seed']}), weights in {units[0]['dtype']}:",
        "",
        f"| feedback in the prompt | whole correction (n = {len(every['own'])}) | "
        f"only the tokens that the person changed (n = {len(edits['own'])}) |",
        "|---|---|---|",
    ]
    for arm, words in (("own", "its own"), ("shuffled", "another program's"), ("none", "none")):
        cells = [interval(values[arm]).text(".3f") for values in (every, edits)]
        lines.append(f"| {words} | {cells[0]} | {cells[1]} |")
    for other, words in (("shuffled", "another's"), ("none", "none")):
        gains = [
            interval(np.subtract(values["own"], values[other]).tolist())
            for values in (every, edits)
        ]
        lines.append(
            f"| **own minus {words}** | {gains[0].text('+.3f')} | {gains[1].text('+.3f')} |"
        )
        bars.append((f"{model}: own - {other}", gains[1]))
    for alike, words in ((False, "without"), (True, "with")):
        part = [unit for unit in units if unit.get("code_like") is alike]
        if part:
            some = feedback_values(part, changed=True)
            gain = interval(np.subtract(some["own"], some["shuffled"]).tolist())
            lines.append(
                f"| own minus another's, feedback {words} code-like text | | "
                f"{gain.text('+.3f')}, n = {len(some['own'])} |"
            )
    spare = interval(np.subtract(edits["shuffled"], edits["none"]).tolist())
    won = np.mean(np.greater(edits["own"], edits["shuffled"]))
    return [
        *lines,
        "",
        f"The correction is likelier with its own feedback than with another's in {won:.0%} of the "
        f"tasks.\nAnother program's feedback against none: {spare.text('+.3f')} on the changed "
        "tokens.",
        "",
    ]


def repair_section(units: Sequence[Json]) -> list[str]:
    """Table 2 by sampling."""
    if not units:
        return ["By sampling, as in the paper: not run.", ""]
    lines = [
        "By sampling, as in the paper, at temperature 0.8: the share of refinements that pass all "
        "tests, the\nvisible one among them.",
        "",
        "| model | tasks, samples | own | another program's | none | own minus another's | "
        "own minus none |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, samples in sorted({(unit["model"], unit["samples"]) for unit in units}):
        some = [u["passed"] for u in units if (u["model"], u["samples"]) == (model, samples)]
        arms = {
            arm: np.asarray([one[arm] for one in some]) / samples
            for arm in ("own", "shuffled", "none")
        }
        cells = [interval(values.tolist()).text(".1%") for values in arms.values()]
        cells += [
            interval((arms["own"] - arms[other]).tolist()).text("+.1%")
            for other in ("shuffled", "none")
        ]
        lines.append(
            f"| {NAMES[model]} | {len(some)}, {samples} each and arm | {' | '.join(cells)} |"
        )
    return [*lines, ""]


# --- ILF, table 4 ------------------------------------------------------------------------------


def tuning_section(units: dict[str, Json], images: Path) -> list[str]:
    """Table 4 in shape."""
    lines = [TUNING]
    asked = [
        unit
        for unit in units.values()
        if "passed" in unit and "arm" in unit and "prompts_sha256" in unit
    ]
    bars: list[tuple[str, Interval]] = []
    for model in NAMES:
        some = [unit for unit in asked if unit["model"] == model]
        bases = [unit for unit in some if unit["arm"] == "base"]
        if not bases:
            lines += [f"{NAMES[model]}: not run.", ""]
            continue
        base = max(bases, key=lambda unit: len(unit["passed"]))
        some = [unit for unit in some if unit["passed"].keys() == base["passed"].keys()]
        lines += _sampled(model, units) + _tuning_table(model, base, some, units, bars)
    if bars:
        name = "reproduction-tuning.png"
        title = "pass@1 against the base model, difference on the same tasks"
        draw(images / name, title, bars)
        lines += [f"![{title}](images/{name})", ""]
    return lines


def _sampled(model: str, units: dict[str, Json]) -> list[str]:
    lines = []
    for arm in ("resample", "ilf"):
        found = [u for key, u in units.items() if key.startswith(f"{model}|sample|{arm}|")]
        if found:
            solved = sum(u["passed"] > 0 for u in found)
            drawn, right = (sum(u[name] for u in found) for name in ("samples", "passed"))
            lines.append(
                f"- {WORDS[arm]}: {right} of {drawn} samples at temperature 0.8 passed, "
                f"{solved} of {len(found)} tasks have one."
            )
    return [f"**{NAMES[model]}**", "", *lines, ""]


def _tuning_table(
    model: str,
    base: Json,
    units: Sequence[Json],
    every: dict[str, Json],
    bars: list[tuple[str, Interval]],
) -> list[str]:
    tasks = sorted(base["passed"])
    lines = [
        f"{len(tasks)} held-out tasks:",
        "",
        "| learned | rows | seeds | learning rate, epochs | pass@1 | difference to the base |",
        "|---|---|---|---|---|---|",
        f"| {WORDS['base']} | | | | "
        f"{interval([base['passed'][task] for task in tasks]).text('.1%')} | |",
    ]
    settings = sorted({(u["arm"], u["learning_rate"], u["epochs"]) for u in units if u is not base})
    for arm, rate, epochs in settings:
        runs = [
            u for u in units if (u["arm"], u["learning_rate"], u["epochs"]) == (arm, rate, epochs)
        ]
        means = [float(np.mean([run["passed"][task] for run in runs])) for task in tasks]
        gain = interval([mean - base["passed"][t] for mean, t in zip(means, tasks, strict=True)])
        trained = every.get(f"{model}|trained|{runs[0]['name']}", {})
        lines.append(
            f"| {WORDS[arm]} | {trained.get('rows', '')} | {len(runs)} | {rate:g}, {epochs} | "
            f"{interval(means).text('.1%')} | {gain.text('+.1%')} |"
        )
        bars.append((f"{model}: {arm} {rate:g}", gain))
    return [*lines, ""]


# --- Inverse-Instruct ---------------------------------------------------------------------------


def judged(work: Path, model: str) -> list[Json]:
    """How well a model's judgement told right from wrong, each time it was tried."""
    name = f"order-asked-{model}-[0-9]*.jsonl"
    return [
        ranking
        for path in sorted(work.glob(name))
        for key, unit in done(path).items()
        if ":judge:" in key
        for ranking in unit["rankings"]
    ]


def order_section(units: Sequence[Json], asked: Mapping[str, Sequence[Json]]) -> list[str]:
    """Order and selection; `asked` holds what the judge was worth."""
    if not units:
        return [ORDER, "Not run.", ""]
    lines = [
        ORDER,
        "| model | trained | rows | seeds | nats per token before | after: mean (least to most) |",
        "|---|---|---|---|---|---|",
    ]
    for model, arm in sorted({(unit["model"], unit["arm"]) for unit in units}):
        runs = [unit for unit in units if (unit["model"], unit["arm"]) == (model, arm)]
        losses = [unit["loss"] for unit in runs]
        lines.append(
            f"| {NAMES[model]} | {arm.replace('_', ' ')} | {runs[0]['rows']} | {len(runs)} | "
            f"{runs[0]['loss_base']:.4f} | {np.mean(losses):.4f} ({min(losses):.4f} to "
            f"{max(losses):.4f}) |"
        )
    words = [
        f"{NAMES[model]}'s own judgement chooses, except where it says at random. It tells right "
        f"programs\nfrom mutated ones with an AUC of {one['auc']:.2f} ({one['low']:.2f} to "
        f"{one['high']:.2f}; {one['programs']} programs, {one['pairs']} pairs).\n"
        for model, rankings in asked.items()
        for one in rankings
        if one["auc"] is not None and one["low"] is not None
    ]
    return [*lines, "", *words]


# --- GIFT4Code -----------------------------------------------------------------------------------


def sampled_section(units: Sequence[Json]) -> list[str]:
    """What runs and what is right of sampled programs, with a specification and without."""
    if not units:
        return ["By sampling: not run.", ""]
    lines = [
        SAMPLED,
        "| model | specification | shown | tasks, samples | runs: base | tuned | right: base | "
        "tuned | tuned minus base |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    found = {(u["model"], u["kind"], u["shown"], u["arm"], u["row"]): u for u in units}
    for model, kind, shown in sorted({key[:3] for key in found}):
        rows = sorted(key[4] for key in found if key[:4] == (model, kind, shown, "base"))
        both = [
            [found[model, kind, shown, arm, row]["verdicts"] for arm in ("base", "tuned")]
            for row in rows
            if (model, kind, shown, "tuned", row) in found
        ]
        if not both:
            continue
        ran = [_share([pair[arm] for pair in both], _ran) for arm in (0, 1)]
        right = [_share([pair[arm] for pair in both], _right) for arm in (0, 1)]
        gain = interval(np.subtract(right[1], right[0]).tolist())
        cells = " | ".join(f"{np.mean(one):.1%}" for one in (*ran, *right))
        lines.append(
            f"| {NAMES[model]} | {kind} | {'yes' if shown == 'with' else 'no'} | "
            f"{len(both)}, {len(both[0][0])} each | {cells} | {gain.text('+.1%')} |"
        )
    return [*lines, ""]


def _share(tasks: Sequence[Sequence[str]], good: Callable[[str], bool]) -> list[float]:
    return [float(np.mean([good(verdict) for verdict in verdicts])) for verdicts in tasks]


def _ran(verdict: str) -> bool:
    return verdict not in ("no program", "does not execute", "sandbox error")


def _right(verdict: str) -> bool:
    return verdict == "right"


def specs_section(units: Sequence[Json]) -> list[str]:
    """What a specification is worth, before and after tuning."""
    if not units:
        return [SPECS, "Not run.", ""]
    lines = [
        SPECS,
        "| model | specification | n | base, without it | base | tuned, without it | tuned | "
        "tuned minus base, both with it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = {(unit["model"], unit["arm"], unit["row"]): unit for unit in units}
    for model, kind in sorted({(unit["model"], unit["kind"]) for unit in units}):
        rows = sorted({u["row"] for u in units if (u["model"], u["kind"]) == (model, kind)})
        both = [
            (found[model, "base", row], found[model, "tuned", row])
            for row in rows
            if (model, "base", row) in found and (model, "tuned", row) in found
        ]
        if not both:
            continue
        cells = [
            f"{np.mean([pair[arm][name] for pair in both]):.3f}"
            for arm in (0, 1)
            for name in ("without", "with")
        ]
        gain = interval([tuned["with"] - base["with"] for base, tuned in both])
        lines.append(
            f"| {NAMES[model]} | {kind} | {len(both)} | {' | '.join(cells)} | {gain.text('+.3f')} |"
        )
    return [*lines, ""]


# --- the page ----------------------------------------------------------------------------------


def write(work: Path, out: Path) -> None:
    """Write the page and its plots."""
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    lines = [
        HEAD,
        *feedback_section(list(done(work / "feedback.jsonl").values()), images),
        *repair_section(list(done(work / "repair.jsonl").values())),
        *tuning_section(done(work / "tuning.jsonl"), images),
        *order_section(
            list(done(work / "order.jsonl").values()),
            {name: judged(work, name) for name in NAMES},
        ),
        *specs_section(list(done(work / "specs.jsonl").values())),
        *sampled_section(list(done(work / "specs-sampled.jsonl").values())),
        NOT_RUN,
    ]
    (out / "reproductions.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def draw(path: Path, title: str, bars: Sequence[tuple[str, Interval]]) -> None:
    """Draw means with their intervals as a PNG; zero is the line that counts."""
    from PIL import Image, ImageDraw, ImageFont

    left, right, row, top = 330, 60, 40, 60
    width, height = 1000, top + row * len(bars) + 50
    low = min(0.0, *(bar.low for _, bar in bars))
    high = max(0.0, *(bar.high for _, bar in bars))
    margin = 0.05 * (high - low or 1.0)
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return left + (width - left - right) * (value - low) / (high - low)

    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(16)
    pen.text((12, 16), title, fill="black", font=font)
    pen.line((x(0), top, x(0), height - 40), fill="#999999", width=2)
    for place, (name, bar) in enumerate(bars):
        y = top + row * place + row / 2
        pen.text((12, y - 9), name, fill="black", font=font)
        pen.line((x(bar.low), y, x(bar.high), y), fill="#2b6cb0", width=4)
        pen.ellipse((x(bar.mean) - 6, y - 6, x(bar.mean) + 6, y + 6), fill="#2b6cb0")
    for value in np.linspace(low + margin, high - margin, 5):
        pen.text((x(value) - 20, height - 34), f"{value:+.2f}", fill="#555555", font=font)
    pen.text((x(0) - 5, height - 56), "0", fill="#555555", font=font)
    image.save(path, optimize=True)
