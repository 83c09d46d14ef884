"""Add an adapter to its base model: weights that an engine serves without any LoRA.

    python -m improver.merge ADAPTER BASE FOLDER --dtype float32

Computed in float32 by peft (`merge_and_unload`: W + B·A·alpha/r), then written as `dtype`, sealed
under FOLDER (`ops.merges`). In bfloat16 the sum is rounded to 8 bits, which small adapters feel: so
it is written in what the engine computes in, and a server compares both engines before it asks the
one with merged weights (`server.merged`). `ops.second_engine` runs it, in a process of its own,
with which torch's memory is given back. What is there already is verified and kept.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from improver.errors import ImproverError
from ops import artifacts, merges
from ops.errors import ArtifactError

DTYPES = ("float32", "bfloat16", "float16")
NICE = 10


def merge(adapter: Path, base: Path, folder: Path, what: merges.Merge) -> Path:
    """Return the directory of merged weights, made unless it is there and whole.

    Args:
        adapter: a peft LoRA adapter.
        base: the model that it was trained on, with its tokenizer.
        folder: where merged weights are kept.
        what: the digests of both, and the number format to write.

    Raises:
        ImproverError: base or adapter cannot be read, or do not fit each other.
    """
    there = merges.find(folder, what)
    if there is not None:
        try:
            artifacts.verify(there)
            return there
        except ArtifactError as error:
            _say(f"made again: {error}")
            shutil.rmtree(there)

    def write(draft: Path) -> None:
        _write(adapter, base, draft, what.dtype)
        merges.write(draft, what)

    return artifacts.seal(folder / what.adapter_sha256, write)[1]


def _write(adapter: Path, base: Path, draft: Path, dtype: str) -> None:
    # Set before transformers is imported: local files never need the hub.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, local_files_only=True
        )
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ImproverError(f"{adapter} cannot be merged with {base}: {error}") from error
    merged.to(getattr(torch, dtype)).save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    for file in draft.iterdir():
        file.chmod(0o644)


def _say(message: str) -> None:
    print(f"merge: {message}", file=sys.stderr, flush=True)  # noqa: T201 (this is a command)


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m improver.merge")
    for name in ("adapter", "base", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--adapter-sha256", required=True)
    parser.add_argument("--base-sha256", required=True)
    given = parser.parse_args(arguments)
    what = merges.Merge(
        adapter_sha256=given.adapter_sha256, base_sha256=given.base_sha256, dtype=given.dtype
    )
    os.nice(NICE)
    try:
        _say(f"done: {merge(given.adapter, given.base, given.folder, what)}")
    except (ImproverError, ArtifactError, OSError) as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
