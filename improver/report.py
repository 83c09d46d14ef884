"""A cycle's report as text: what was built and dropped, learned, examined, released."""

from __future__ import annotations

from dataclasses import dataclass

from ops.records import Cycle, CycleState, Json


def render(cycle: Cycle) -> str:
    """Write the report of a cycle for people, some twenty lines."""
    report = cycle.report
    lines = [f"Cycle {cycle.id} ({cycle.recipe}): {cycle.state}"]
    if cycle.error:
        lines.append(f"  {cycle.error}")
    if cycle.state in (CycleState.FAILED, CycleState.RUNNING):
        lines.append(f"  it can be resumed at stage {cycle.stage!r}: --resume {cycle.id}")
    parts = (
        ("collected", _collect, "collect"),
        ("built", _build, "build"),
        ("screened", _screen, "screen"),
        ("dataset", _dataset, "dataset"),
        ("trained", _train, "train"),
        ("examined", _evaluate, "evaluate"),
        ("decided", _decide, "decide"),
        ("released", _release, "release"),
    )
    for word, write, stage in parts:
        section = report.get(stage)
        if section:
            seconds = f"{section.get('seconds', 0):.0f} s"
            if "sampled_tokens" in section:
                seconds += f", {section['sampled_tokens_per_s']:.0f} sampled tokens/s"
            text = write(section)
            lines += [f"  {word:<10} {text[0]}  [{seconds}]", *(f"{'':<13}{t}" for t in text[1:])]
    if (spent := time_spent(report)) is not None:
        share = 1 - spent.model_s / spent.total_s
        lines.append(f"  {'time':<10} {spent.total_s:.0f} s, {share:.0%} of it outside the model")
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Seconds of a cycle, and those of them in which the model answered, learned or was judged."""

    total_s: float
    model_s: float


def time_spent(report: Json) -> Spent | None:
    """Add up what a cycle's stages say of their time; None where none of them does."""
    stages = [part for part in report.values() if isinstance(part, dict) and "model_s" in part]
    total = sum(float(part["seconds"]) for part in stages)
    if not total:
        return None
    return Spent(total_s=total, model_s=sum(float(part["model_s"]) for part in stages))


def _counts(counts: Json) -> str:
    ordered = sorted(counts.items(), key=lambda item: -int(item[1]))
    return ", ".join(f"{count} {what}" for what, count in ordered) or "none"


def _collect(section: Json) -> list[str]:
    lines = []
    if failures := section.get("failures"):
        lines.append(
            f"{failures['cases']} failed interactions with feedback "
            f"({_counts(failures['by_feedback'])}; {_counts(failures['by_source'])})"
            + _left_out(failures)
        )
    if contexts := section.get("contexts"):
        lines.append(f"{contexts['contexts']} tables and logged calls" + _left_out(contexts))
    if snippets := section.get("snippets"):
        lines.append(
            f"{snippets['snippets']} programs known to be right ({snippets['with_instruction']} "
            f"with a request, {snippets['with_checks']} with checks)" + _left_out(snippets)
        )
    if liked := section.get("preferences"):
        lines.append(
            f"{liked['pairs']} preferred pairs, {liked['signals'] - liked['pairs']} answers judged "
            f"alone ({_counts(liked['by_kind'])})" + _left_out(liked)
        )
    lines += [f"{name} is left out: {why}" for name, why in section["left_out"].items()]
    return lines


def _left_out(section: Json) -> str:
    return f"; left out: {_counts(section['skipped'])}" if section["skipped"] else ""


def _build(section: Json) -> list[str]:
    writers = {
        "ilf": _ilf,
        "gift4code": _gift4code,
        "inverse_instruct": _inverse_instruct,
        "preferences": _preferences,
    }
    lines = []
    for name, part in section["by_recipe"].items():
        first, *others = writers[name](part)
        lines.append(f"{name}: {part['rows']} rows {first}")
        lines += [f"  {line}" for line in others]
        lines.append(f"  dropped: {_counts(part['dropped'])}")
    return lines


def _ilf(part: Json) -> list[str]:
    control = part["control"]
    return [
        f"({_counts(part['rows_by_origin'])}) out of "
        f"{part['samples']} samples; {part['refinements_passed']} refinements passed, "
        f"{part['cases_refined']} of {part['cases']} cases refined "
        f"({_counts(part['cases_refined_by_feedback'])})",
        *([f"a control, not the recipe: {control}"] if control != "feedback" else []),
        *([_refiner(part)] if "corrections" in part else []),
        f"passed the visible but not the hidden checks: {part['passed_visible_but_not_hidden']}",
    ]


def _refiner(part: Json) -> str:
    if part["corrections"] < part["corrections_wanted"]:
        had = f"{part['corrections']} corrections, {part['corrections_wanted']} are wanted"
        return f"refined by the served model: {had} for a refiner of its own"
    if part.get("refiner_refused"):
        return (
            f"refined by the served model: its own refiner was refused: {part['refiner_refused']}"
        )
    return f"refined by {part['refiner']}, trained on {part['corrections']} corrections"


def _gift4code(part: Json) -> list[str]:
    kinds = _counts({f"with {kind}": n for kind, n in part["rows_by_spec_kind"].items()})
    return [
        f"({part['rows_synthetic']} made, {part['rows_replayed']} of "
        f"{part['rows_replay_wanted']} wanted replayed; {kinds}) out of "
        f"{part['contexts']} of {part['contexts_offered']} contexts",
        f"{part.get('intents', 0)} intents, {part.get('programs', 0)} programs, "
        f"{_percent(part['executable_share'])} of the distinct ones ran; "
        f"{part['rows_before_choice']} rows before the choice, {part['api_signatures']} different "
        "sets of APIs after it",
    ]


def _inverse_instruct(part: Json) -> list[str]:
    judged = [
        f"{judge['judge']} tells right from mutated with AUC {judge['auc']} "
        f"{judge['interval_95']} over {judge['programs']} programs"
        for judge in part["judges"]
        if judge["auc"] is not None
    ]
    return [
        f"({part['rows_self_made']} self-made, {part['rows_trusted']} trusted) out of "
        f"{part['snippets_usable']} usable of {part['snippets']} programs",
        f"{part['summaries_usable']} of {part['summaries_asked']} summaries usable; chosen by "
        f"{part['selection']} ({_counts(part['selected_by'])}); trained {part['order']}",
        *judged,
    ]


def _preferences(part: Json) -> list[str]:
    return [
        f"for {part['loss']} ({part['pairs']} pairs, {part['kept_alone']} kept and "
        f"{part['refused_alone']} refused alone; {_counts(part['by_kind'])}) out of "
        f"{part['signals']} signals"
    ]


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.0%}"


def _screen(section: Json) -> list[str]:
    flagged = section["flagged_holding_expected_values"]
    return [
        f"{section['rows']} rows kept against {section['examination_tasks']} examination tasks; "
        f"dropped: {_counts(section['dropped'])}; {flagged} flagged",
        *(
            [f"in quarantine (screen/quarantine.jsonl): {_counts(section['quarantined'])}"]
            if section["quarantined"]
            else []
        ),
    ]


def _dataset(section: Json) -> list[str]:
    return [
        f"{section['train']} rows to learn from, {section['held_out']} held out "
        f"({_counts(section['by_recipe'])})" + _liked(section)
    ]


def _liked(section: Json) -> str:
    if not section.get("preferences"):
        return ""
    held_out = section["preferences_held_out"]
    return f"; {section['preferences']} preferences, {held_out} of them more held out"


def _train(section: Json) -> list[str]:
    early = " (early stop)" if section["stopped_early"] else ""
    lines = [
        f"{section['adapter']}: {section['steps']} steps{early}, loss "
        f"{section['loss_first']:.3f} → {section['loss_last']:.3f}, "
        f"{section['tokens_per_s']:.0f} tokens/s in {section['dtype']} on {section['device']}, "
        f"{section['peak_memory_bytes'] / 2**30:.1f} GiB"
    ]
    if section.get("rows_too_long"):
        lines.append(f"{len(section['rows_too_long'])} rows too long, left out")
    if section["held_out_loss"] is not None:
        lines.append(
            f"held-out loss {section['held_out_loss_base']:.3f} (base) → "
            f"{section['held_out_loss']:.3f} at step {section['best_step']}"
        )
    if swept := section.get("sweep"):
        lines.append(_sweep(swept))
    if few := section.get("preferences_left_out"):
        lines.append(f"{few} preferences, too few to learn from beside the rows: left out")
    if preferred := section.get("preferred"):
        lines.append(_preferred(preferred))
    return lines


def _sweep(swept: Json) -> str:
    chosen = f"learning rate {swept['learning_rate']:g}"
    if "why" in swept:
        return f"{chosen}: the first, {swept['why']}"
    tried = ", ".join(
        f"{one['learning_rate']:g} " + _loss(one["held_out_loss"]) for one in swept["tried"]
    )
    return (
        f"{chosen} by held-out loss after short runs on {swept['rows']} rows: {tried} "
        f"({swept['held_out']} held out)"
    )


def _loss(value: float | None) -> str:
    return "failed" if value is None else f"{value:.3f}"


def _preferred(told: Json) -> str:
    line = (
        f"{told['loss']} on {told['rows']} rows: margin {told['margin_first']:.3f} → "
        f"{told['margin_last']:.3f} in {told['steps']} steps"
    )
    if told["held_out_margin"] is None:
        return line
    return (
        f"{line}; held out {told['held_out_margin_base']:.3f} → {told['held_out_margin']:.3f} at "
        f"step {told['best_step']}"
    )


def _evaluate(section: Json) -> list[str]:
    if section.get("refused"):
        return [f"refused by the server: {section['refused']}"]
    return [
        f"{section['champion']} and {section['candidate']}: {section['answers']} answers to "
        f"{section['target_asked']} of {section['target_tasks']} target and "
        f"{section['guard_tasks']} guard tasks",
        *(
            [f"left out, their own reference fails here: {', '.join(section['target_left_out'])}"]
            if section["target_left_out"]
            else []
        ),
    ]


def _decide(section: Json) -> list[str]:
    return [str(line) for line in section["text"].splitlines()]


def _release(section: Json) -> list[str]:
    swap = section.get("swap")
    lines = [f"{section['state']}: {section['reason']}"]
    if swap:
        lines.append(
            f"loaded and proved in {swap['load_and_prove_s']:.2f} s, answering "
            f"{swap['answering_after_s']:.2f} s after the decision"
        )
    return lines
