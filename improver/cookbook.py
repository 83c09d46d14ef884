"""Which recipes there are, what each starts from, and how settings make them.

ILF starts from failed interactions with feedback, GIFT4Code from tables and calls, Inverse-Instruct
from code that is right, preferences from answers that were kept and refused. All of them read the
record; the operator's tables and corpus come on top.
Here it is looked up what an installation has of that, and whether a recipe can come to enough rows
with it. `all` means every recipe that can.

Not here: making rows (the recipes), merging them (`cycle`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from improver import collect, contexts, corpus
from improver.contexts import Context
from improver.corpus import Corpus, Snippet
from improver.errors import CycleError
from improver.recipes import gift4code, ilf, inverse_instruct
from improver.recipes.base import Recipe
from improver.recipes.gift4code import Gift4Code
from improver.recipes.ilf import Control, Ilf
from improver.recipes.inverse_instruct import InverseInstruct, Order, Selection
from improver.recipes.preferences import Options as PreferenceOptions
from improver.recipes.preferences import Preferences
from improver.signals import Signal, Signals, collect_signals
from improver.specs import SpecKind
from improver.trace import Runner
from improver.types import Case
from ops.records import Interaction, Json
from ops.settings import Gift4CodeSettings, ImproverSettings
from ops.store import Store

RECIPES = (Ilf.name, InverseInstruct.name, Gift4Code.name, Preferences.name)
"""In the order in which they are run. Of a row that two of them make, the earlier one's stays."""
ALL = "all"
PAGE = 500


@dataclass(frozen=True, kw_only=True)
class Material:
    """What the recipes of a cycle start from."""

    cases: Sequence[Case] = ()
    contexts: Sequence[Context] = ()
    snippets: Sequence[Snippet] = ()
    signals: Sequence[Signal] = ()


def names(recipe: str) -> tuple[str, ...]:
    """Return the recipes that a word of the settings means.

    Raises:
        CycleError: there is none of that name.
    """
    if recipe == ALL:
        return RECIPES
    if recipe not in RECIPES:
        raise CycleError(f"no recipe {recipe!r}; known are {', '.join(RECIPES)}, {ALL}")
    return (recipe,)


def chosen(settings: ImproverSettings) -> tuple[str, ...]:
    """Return the recipes that settings mean; `all` has preferences only where a loss is chosen.

    Raises:
        CycleError: there is none of that name.
    """
    recipes = names(settings.recipe)
    if settings.recipe == ALL and settings.train.preferences == "none":
        return tuple(name for name in recipes if name != Preferences.name)
    return recipes


def gather(
    recipes: Sequence[str],
    store: Store,
    settings: ImproverSettings,
    *,
    before: datetime,
    cases: Sequence[Case] | None = None,
    keep: bool = True,
) -> tuple[Material, Json]:
    """Look up what there is for some recipes, and the numbers of it.

    Args:
        recipes: their names; what none of them needs is not looked for.
        store: the record.
        settings: limits, and where tables and corpus are.
        before: requests made later are left aside, so that a resumed cycle finds what it found
            before.
        cases: those of an earlier look; unset: they are collected.
        keep: write machine feedback into the record.

    Raises:
        ImportFileError: tables or corpus cannot be read.
    """
    report: Json = {}
    if Ilf.name in recipes and cases is None:
        failures = collect.collect_cases(
            store,
            limit=settings.ilf.max_interactions,
            machine_feedback=settings.ilf.machine_feedback,
            keep=keep,
        )
        cases, report["failures"] = failures.cases, failures.report()
    found, code = contexts.Found(), Corpus()
    if Gift4Code.name in recipes:
        found = _contexts(store, settings, before)
        report["contexts"] = found.report()
    if Gift4Code.name in recipes or InverseInstruct.name in recipes:
        code = _snippets(store, settings, before)
        report["snippets"] = code.report()
    liked = Signals()
    if Preferences.name in recipes and settings.train.preferences != "none":
        liked = collect_signals(store, limit=settings.preferences.max_interactions, before=before)
        report["preferences"] = liked.report()
    material = Material(
        cases=cases or [],
        contexts=found.contexts,
        snippets=code.snippets,
        signals=liked.signals,
    )
    return material, report


def _contexts(store: Store, settings: ImproverSettings, before: datetime) -> contexts.Found:
    sources = settings.sources
    found = contexts.of_requests(_recent(store, before, sources.max_requests))
    if sources.tables is not None:
        brought = contexts.read_tables(sources.tables, licence=sources.tables_licence)
        found.contexts += brought.contexts
        found.skipped += brought.skipped
    return found


def _recent(store: Store, before: datetime, limit: int) -> Iterator[Interaction]:
    """The latest requests, newest first; in pages, so that memory stays flat."""
    last, taken = None, 0
    while True:
        page = store.interactions(limit=PAGE, before=last)
        for interaction in page:
            if taken >= limit:
                return
            if interaction.created_at <= before:
                taken += 1
                yield interaction
        if len(page) < PAGE:
            return
        last = page[-1].id


def _snippets(store: Store, settings: ImproverSettings, before: datetime) -> Corpus:
    """Code that is right: the operator's corpus, then what the record knows."""
    sources = settings.sources
    found = corpus.of_record(store, limit=sources.max_requests, before=before)
    if sources.corpus is not None:
        brought = corpus.read_corpus(sources.corpus, licence=sources.corpus_licence)
        found.skipped += brought.skipped
        for snippet in brought.snippets:
            found.add(snippet)
    return found


def rows_at_most(recipe: str, settings: ImproverSettings, material: Material) -> int:
    """How many rows a recipe can come to when everything goes well; replayed ones not counted."""
    if recipe == Ilf.name:
        return len(material.cases)
    if recipe == Gift4Code.name:
        gift = settings.gift4code
        used = min(len(material.contexts), gift.max_contexts)
        return used * gift.intents * min(gift.programs, gift.kept_per_intent)
    if recipe == Preferences.name:
        every = settings.train.preferences == "kto"
        return sum(every or signal.is_pair for signal in material.signals)
    inverse = settings.inverse_instruct
    snippets = material.snippets[: inverse.max_snippets]
    made = len(snippets) * min(inverse.top_k, inverse.summaries)
    return made + sum(bool(snippet.messages) for snippet in snippets)


def items(recipe: str, settings: ImproverSettings, material: Material) -> int:
    """How many things a recipe will work off, for a progress bar."""
    return {
        Ilf.name: len(material.cases),
        Gift4Code.name: min(len(material.contexts), settings.gift4code.max_contexts),
        InverseInstruct.name: min(len(material.snippets), settings.inverse_instruct.max_snippets),
        Preferences.name: len(material.signals),
    }[recipe]


def least_rows(recipe: str, settings: ImproverSettings) -> int:
    """How many rows are wanted of a recipe."""
    return {
        Ilf.name: settings.ilf.min_rows,
        Gift4Code.name: settings.gift4code.min_rows,
        InverseInstruct.name: settings.inverse_instruct.min_rows,
        Preferences.name: settings.preferences.min_rows,
    }[recipe]


def missing(
    recipe: str, settings: ImproverSettings, material: Material, report: Json
) -> str | None:
    """Say what a recipe lacks to come to enough rows; None where it may.

    Args:
        recipe: its name.
        settings: how many rows are wanted.
        material: what `gather` found.
        report: the numbers of it.
    """
    wanted = least_rows(recipe, settings)
    if recipe == Preferences.name and settings.train.preferences == "none":
        return "no loss is chosen for them (improver.train.preferences = dpo or kto)"
    if rows_at_most(recipe, settings, material) >= wanted:
        return None
    if recipe == Ilf.name:
        looked = report["failures"]
        return (
            f"{len(material.cases)} failed interactions with feedback, {wanted} are wanted "
            f"(improver.ilf.min_rows); {looked['looked_at']} failures looked at, "
            f"left out: {looked['skipped'] or 'none'}"
        )
    if recipe == Gift4Code.name:
        return (
            f"{len(material.contexts)} tables and logged calls to set tasks on, too few for "
            f"{wanted} rows (improver.gift4code.min_rows); left out: "
            f"{report['contexts']['skipped'] or 'none'}. CSV files would help: --tables"
        )
    if recipe == Preferences.name:
        looked = report["preferences"]
        return (
            f"{looked['pairs']} pairs and {looked['signals'] - looked['pairs']} answers judged "
            f"alone, too few for {wanted} rows of {settings.train.preferences} "
            f"(improver.preferences.min_rows); {looked['looked_at']} requests looked at, left out: "
            f"{looked['skipped'] or 'none'}"
        )
    return (
        f"{len(material.snippets)} programs known to be right, too few for {wanted} rows "
        f"(improver.inverse_instruct.min_rows); left out: "
        f"{report['snippets']['skipped'] or 'none'}. Code would help: --corpus"
    )


def make_recipe(
    name: str,
    settings: ImproverSettings,
    material: Material,
    runner: Runner,
    *,
    refiner: str | None = None,
) -> Recipe:
    """Return a recipe, ready to be run.

    Args:
        name: which.
        settings: how much is sampled and kept.
        material: what it starts from.
        runner: the sandbox.
        refiner: the model that ILF asks for refinements; unset: the served one.

    Raises:
        CycleError: there is none of that name.
    """
    if name == Ilf.name:
        return _ilf(settings, refiner)
    if name == Preferences.name:
        return _preferences(settings, material)
    make = {Gift4Code.name: _gift4code, InverseInstruct.name: _inverse_instruct}.get(name)
    if make is None:
        raise CycleError(f"no recipe {name!r}")
    return make(settings, material, runner)


def _ilf(settings: ImproverSettings, refiner: str | None) -> Recipe:
    chosen = settings.ilf
    control = Control(chosen.control)
    return Ilf(
        ilf.Options(
            samples=chosen.samples,
            temperature=chosen.temperature,
            max_answer_tokens=chosen.max_answer_tokens,
            demonstrations=chosen.demonstrations != "none" and control is Control.FEEDBACK,
            demonstrations_per_refinement=(
                chosen.demonstrations_per_refinement if chosen.demonstrations == "capped" else None
            ),
            control=control,
            refiner=refiner,
        )
    )


def _preferences(settings: ImproverSettings, material: Material) -> Recipe:
    loss = settings.train.preferences
    options = PreferenceOptions(loss="kto" if loss == "kto" else "dpo")
    return Preferences(options, signals=material.signals)


def _gift4code(settings: ImproverSettings, material: Material, runner: Runner) -> Recipe:
    chosen = settings.gift4code
    options = gift4code.Options(
        max_contexts=chosen.max_contexts,
        intents=chosen.intents,
        programs=chosen.programs,
        temperature=chosen.temperature,
        max_answer_tokens=chosen.max_answer_tokens,
        kept_per_intent=chosen.kept_per_intent,
        per_signature=chosen.per_signature,
        summaries=chosen.summaries,
        replay_share=chosen.replay_share,
        shares=spec_shares(chosen),
    )
    return Gift4Code(options, contexts=material.contexts, runner=runner, replay=material.snippets)


def spec_shares(settings: Gift4CodeSettings) -> dict[SpecKind, float]:
    """The weights of the kinds of specification: none for some, the others alike."""
    each = (1 - settings.spec_dropout) / (len(SpecKind) - 1)
    return {kind: settings.spec_dropout if kind is SpecKind.NONE else each for kind in SpecKind}


def _inverse_instruct(settings: ImproverSettings, material: Material, runner: Runner) -> Recipe:
    chosen = settings.inverse_instruct
    options = inverse_instruct.Options(
        summaries=chosen.summaries,
        temperature=chosen.temperature,
        max_summary_tokens=chosen.max_summary_tokens,
        top_k=chosen.top_k,
        selection=Selection(chosen.selection),
        prompt_logprobs=chosen.prompt_logprobs,
        order=Order(chosen.order),
        max_snippets=chosen.max_snippets,
        run_snippets=chosen.run_snippets,
        bare_share=chosen.bare_share,
        calibration=chosen.calibration,
        round_trips=chosen.round_trips,
        max_answer_tokens=chosen.max_answer_tokens,
    )
    return InverseInstruct(options, snippets=material.snippets, runner=runner)
