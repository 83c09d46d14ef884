"""Where each setting comes from (flag, environment, file or default), as far as it may be shown.

Passwords, tokens and digests are left out; `ops.settings` reads and checks, nothing is read here
that it has not accepted.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ops.reports import plain
from ops.settings import Settings

Json = dict[str, Any]

_SECRET = r"[\w-]*(?:password|passwd|secret|token|api[_-]?key|credential)[\w-]*"
HIDDEN = "***"


def setting_rows(settings: Settings, file: Path, flags: Mapping[str, Any]) -> list[Json]:
    """Return each setting with its value in force, without secrets, and where that comes from."""
    in_file = set(_leaves(tomllib.loads(file.read_text()))) if file.is_file() else set()
    rows = []
    for name, value in _leaves(_tree(settings)).items():
        if flags.get(name) is not None:
            origin = "flag"
        elif (variable := _variable(name)) is not None:
            origin = f"environment ({variable})"
        else:
            origin = str(file) if name in in_file else "default"
        rows.append({"name": name, "value": _without_secrets(plain(value)), "origin": origin})
    return rows


def _variable(name: str) -> str | None:
    """The variable that sets this, or the section that it is in (as JSON)."""
    parts = name.upper().split(".")
    there = {variable.upper() for variable in os.environ}
    for length in range(len(parts), 0, -1):
        variable = f"JOURNEYMAN_{'__'.join(parts[:length])}"
        if variable in there and (length == len(parts) or _holds(variable, parts[length:])):
            return variable
    return None


def _holds(variable: str, path: Sequence[str]) -> bool:
    """Whether the JSON of a section's variable has something at a path."""
    found: Any = next(value for name, value in os.environ.items() if name.upper() == variable)
    try:
        found = json.loads(found)
    except ValueError:
        return False
    for part in path:
        if not isinstance(found, dict) or part.lower() not in found:
            return False
        found = found[part.lower()]
    return True


def _tree(section: BaseModel) -> Json:
    return {
        name: _tree(value) if isinstance(value, BaseModel) else value
        for name in type(section).model_fields
        for value in [getattr(section, name)]
    }


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Json:
    leaves: Json = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def _without_secrets(value: Any) -> Any:
    """A setting's value as it may be shown: no passwords in URLs, no digests, no tokens."""
    if isinstance(value, dict):
        return {k: HIDDEN if k == "sha256" else _without_secrets(v) for k, v in value.items()}
    if isinstance(value, list):
        before = ["", *map(str, value)]
        return [
            HIDDEN if re.fullmatch(f"--?{_SECRET}", option, re.I) else _without_secrets(item)
            for option, item in zip(before, value, strict=False)
        ]
    if not isinstance(value, str):
        return value
    value = re.sub(r"(://[^:/@]*):.*@", rf"\1:{HIDDEN}@", value)
    return re.sub(rf"((?:[?&]|^--?){_SECRET}=)[^&]*", rf"\1{HIDDEN}", value, flags=re.I)
