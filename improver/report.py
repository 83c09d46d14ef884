"""A cycle's report as text: what was built and dropped, learned, examined, released."""

from __future__ import annotations

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
    return "\n".join(lines)


def _counts(counts: Json) -> str:
    ordered = sorted(counts.items(), key=lambda item: -int(item[1]))
    return ", ".join(f"{count} {what}" for what, count in ordered) or "none"


def _collect(section: Json) -> list[str]:
    return [
        f"{section['cases']} failed interactions with feedback "
        f"({_counts(section['by_feedback'])}; {_counts(section['by_source'])})",
        *([f"left out: {_counts(section['skipped'])}"] if section["skipped"] else []),
    ]


def _build(section: Json) -> list[str]:
    control = section.get("control", "feedback")
    return [
        *([f"a control, not the recipe: {control}"] if control != "feedback" else []),
        f"{section['rows']} rows ({_counts(section['rows_by_origin'])}) out of "
        f"{section['samples']} samples; {section['refinements_passed']} refinements passed, "
        f"{section['cases_refined']} of {section['cases']} cases refined "
        f"({_counts(section['cases_refined_by_feedback'])})",
        f"passed the visible but not the hidden checks: {section['passed_visible_but_not_hidden']}",
        f"dropped: {_counts(section['dropped'])}",
    ]


def _screen(section: Json) -> list[str]:
    flagged = section["flagged_holding_expected_values"]
    return [
        f"{section['rows']} rows kept against {section['examination_tasks']} examination tasks; "
        f"dropped: {_counts(section['dropped'])}; {flagged} flagged"
    ]


def _dataset(section: Json) -> list[str]:
    return [f"{section['train']} rows to learn from, {section['held_out']} held out"]


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
    return lines


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
