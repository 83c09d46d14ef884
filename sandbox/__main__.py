"""`python -m sandbox check` and `python -m sandbox run FILE`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from sandbox.errors import SandboxError, SpecError
from sandbox.pool import Pool
from sandbox.selfcheck import examine, table
from sandbox.spec import parse_spec
from sandbox.types import Limits, Tier, Verdict
from sandbox.values import encode

_TIERS = {tier.label: tier for tier in Tier if tier is not Tier.NONE}


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when all is well; 1 when a row is wrong or a program did not pass; 2 when the sandbox
        is not available or the input cannot be read.
    """
    parser = argparse.ArgumentParser(prog="python -m sandbox", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="run the conformance suite on this machine")
    run = commands.add_parser("run", help="run one program, or check it against a specification")
    run.add_argument("file", type=Path, help="the program; - for standard input")
    run.add_argument("--entry", help="call this function")
    run.add_argument("--args", help="JSON list of its arguments", default="[]")
    run.add_argument("--stdin", help="text for the program's standard input")
    run.add_argument("--spec", type=Path, help="I/O specification as a JSON file")
    run.add_argument("--describe", action="store_true", help="describe what goes in and comes out")
    run.add_argument("--wall", type=float, default=5.0, help="seconds (default 5)")
    for command in (check, run):
        command.add_argument("--json", action="store_true", help="print JSON")
        command.add_argument("--tier", choices=sorted(_TIERS), help="this tier and no other")
        command.add_argument("--runtime", help="command of a stronger runtime, such as runsc")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return asyncio.run(_check(options) if options.command == "check" else _run(options))
    except (SandboxError, SpecError, OSError, json.JSONDecodeError) as error:
        print(error, file=sys.stderr)
        return 2


def _pool(options: argparse.Namespace, workers: int) -> Pool:
    tiers = [_TIERS[options.tier]] if options.tier else None
    runtime = shlex.split(options.runtime) if options.runtime else ()
    return Pool(workers=workers, tiers=tiers, runtime=runtime, recheck_s=0)


async def _check(options: argparse.Namespace) -> int:
    async with _pool(options, 2) as pool:
        rows = await examine(pool)
        right = all(row.right for row in rows)
        if options.json:
            found = {"tier": pool.tier.label, "right": right, "rows": [asdict(r) for r in rows]}
            print(json.dumps(found, indent=1))
        else:
            print(f"tier: {pool.tier.label}")
            print(table(rows))
    return 0 if right else 1


async def _run(options: argparse.Namespace) -> int:
    code = sys.stdin.read() if str(options.file) == "-" else options.file.read_text("utf-8")
    limits = Limits(wall_s=options.wall, cpu_s=max(1, round(options.wall)))
    async with _pool(options, 1) as pool:
        if options.spec:
            spec = parse_spec(json.loads(options.spec.read_text("utf-8")), location="spec")
            verification = await pool.check(code, spec, limits=limits)
            found = asdict(verification) | {"tier": pool.tier.label}
            print(json.dumps(found, indent=1) if options.json else _summary(found))
            return 0 if verification.verified else 1
        run = await pool.run(
            code,
            entry=options.entry,
            calls=[json.loads(options.args)] if options.entry else [],
            stdin=options.stdin,
            limits=limits,
            describe=options.describe,
        )
    if options.json:
        found = asdict(run) | {"values": encode(list(run.values)), "tier": run.tier.label}
        print(json.dumps(found | {"outputs": encode(run.outputs)}, indent=1))
    else:
        sys.stdout.write(run.stdout)
        sys.stderr.write(run.stderr)
        for value in run.values:
            print(repr(value))
        if run.description is not None:
            print(json.dumps(run.description, indent=1))
        text = f"{run.word} in {run.duration_s * 1000:.1f} ms ({run.tier.label})"
        print(f"{text}: {run.error_message}" if run.error_message else text, file=sys.stderr)
    return 0 if run.verdict is Verdict.OK else 1


def _summary(found: dict[str, object]) -> str:
    return (
        f"{found['verdict']}: {found['passed']} of {found['total']} passed"
        f" ({found['passed_hidden']} of {found['total_hidden']} hidden; {found['tier']})"
    )


if __name__ == "__main__":
    sys.exit(main())
