"""Run untrusted Python: hostile programs contained, verdicts that cannot be faked.

    run = sandbox.run("def f(x): return x * x", entry="f", calls=[[3]])
    async with sandbox.Pool(workers=2) as pool:
        verification = await pool.check(code, sandbox.parse_spec({"examples": [...]}))

The package's own processes import it too, so that nothing is loaded before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.errors import SandboxError, SandboxReset, SandboxUnavailable, SpecError
    from sandbox.extract import extract_program
    from sandbox.pool import Pool, run
    from sandbox.spec import Spec, derive_spec, parse_spec, render
    from sandbox.types import ExampleResult, Limits, Run, Tier, Verdict, Verification

__all__ = [
    "ExampleResult",
    "Limits",
    "Pool",
    "Run",
    "SandboxError",
    "SandboxReset",
    "SandboxUnavailable",
    "Spec",
    "SpecError",
    "Tier",
    "Verdict",
    "Verification",
    "derive_spec",
    "extract_program",
    "parse_spec",
    "render",
    "run",
]

_HOMES = {
    "errors": ("SandboxError", "SandboxReset", "SandboxUnavailable", "SpecError"),
    "extract": ("extract_program",),
    "pool": ("Pool", "run"),
    "spec": ("Spec", "derive_spec", "parse_spec", "render"),
    "types": ("ExampleResult", "Limits", "Run", "Tier", "Verdict", "Verification"),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"sandbox.{module}"), name)
    raise AttributeError(f"module 'sandbox' has no attribute {name!r}")
