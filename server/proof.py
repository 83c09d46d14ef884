"""What is proved of an adapter before a request may reach it.

`preflight` reads the adapter's files and refuses, with a readable reason, what the engine would
misread, load in part or not at all. `probe` asks the engine itself for log-probabilities under the
base and under the adapter and compares them with the trainer's (`ops.probe`). Neither changes
anything. That the bytes are the registered ones is the registry's matter (`Registry.verify`).
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

from ops import probe
from ops.errors import ArtifactError
from ops.records import Adapter, Json
from server.engine import Engine

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MAX_HEADER_BYTES = 16 << 20
RANKS = frozenset((1, 8, 16, 32, 64, 128, 256, 320, 512))
"""What the engine takes as its largest rank; an adapter may have any rank up to that."""
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_LORA = re.compile(r"\.lora_(A|B)\.(?:[^.]+\.)?weight$")
_EXECUTABLE = frozenset((".bin", ".pt", ".pth", ".pkl", ".pickle", ".py", ".so"))


def preflight(
    directory: Path, adapter: Adapter, *, max_rank: int, base_sha256: str | None = None
) -> Json:
    """Refuse an adapter that the engine would not serve as it was trained.

    Args:
        directory: its files.
        adapter: its row.
        max_rank: the largest rank the engine was started with.
        base_sha256: digest of the weights the engine serves; None where they lie elsewhere, so
            that only the probe can tell another base.

    Returns:
        What was found, for the receipt.

    Raises:
        ArtifactError: the reason, in one sentence.
    """
    if base_sha256 is not None and adapter.base_sha256 != base_sha256:
        raise ArtifactError(
            f"it was trained on {adapter.base_model} ({adapter.base_sha256[:12]}); the engine "
            f"serves other weights ({base_sha256[:12]})"
        )
    for path in directory.rglob("*"):
        if path.is_symlink():
            raise ArtifactError(f"{path.name} is a link")
        if path.suffix in _EXECUTABLE:
            raise ArtifactError(f"{path.name} can carry code; only safetensors are loaded")
    config = _config(directory)
    _check_config(config, adapter, max_rank)
    tensors = _check_weights(directory / WEIGHTS, int(config["r"]))
    return {
        "rank": config["r"],
        "tensors": tensors,
        "bytes": (directory / WEIGHTS).stat().st_size,
        "base": "the weights it was trained on" if base_sha256 else "not readable here",
    }


def _config(directory: Path) -> dict[str, Any]:
    try:
        size = (directory / CONFIG).stat().st_size
        if size > MAX_HEADER_BYTES:
            raise ArtifactError(f"{CONFIG} has {size} bytes")
        config = json.loads((directory / CONFIG).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{CONFIG} is not a JSON object")
    return config


def _check_config(config: dict[str, Any], adapter: Adapter, max_rank: int) -> None:
    if config.get("peft_type") != "LORA":
        raise ArtifactError(f"peft_type is {config.get('peft_type')!r}, not LORA")
    rank = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ArtifactError(f"the rank is {rank!r}")
    if rank != adapter.rank:
        raise ArtifactError(f"the rank is {rank}, registered as {adapter.rank}")
    if rank > max_rank:
        raise ArtifactError(f"the rank is {rank}; the engine takes at most {max_rank}")
    if config.get("use_dora"):
        raise ArtifactError("DoRA adapters are not served by the engine")
    if config.get("modules_to_save"):
        raise ArtifactError("modules_to_save is set: the engine would leave those weights out")
    if config.get("bias", "none") != "none":
        raise ArtifactError(f"bias is {config['bias']!r}: the engine would leave it out")
    modules = config.get("target_modules")
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise ArtifactError("target_modules is not a list of names; patterns are not taken")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ArtifactError("ranks or alphas that differ by module are not served by the engine")


def _check_weights(path: Path, rank: int) -> int:
    """Read the header of a safetensors file: sane, complete, only LoRA matrices of that rank.

    Returns how many there are.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise ArtifactError(f"{path.name}: the header is {length} bytes long")
            header = json.loads(file.read(length))
    except (OSError, struct.error, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise ArtifactError(f"{path.name}: the header is not an object")
    header.pop("__metadata__", None)
    if not header:
        raise ArtifactError(f"{path.name} holds no tensor")
    end = 0
    try:
        for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, after = tensor["data_offsets"]
            rows, columns = tensor["shape"]
            match = _LORA.search(name)
            if match is None:
                raise ArtifactError(f"{path.name}: {name} is no LoRA matrix")
            if (rows if match[1] == "A" else columns) != rank:
                raise ArtifactError(f"{path.name}: {name} has shape {[rows, columns]}")
            if begin != end or after - begin != rows * columns * _BYTES[tensor["dtype"]]:
                raise ArtifactError(f"{path.name}: {name} lies at the wrong place")
            end = after
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path.name}: the header is malformed: {error!r}") from error
    if end != size - 8 - length:
        raise ArtifactError(f"{path.name} is cut off or has something appended")
    return len(header)


async def run_probe(
    engine: Engine, directory: Path, *, base: str, name: str, salt: str
) -> probe.ProbeResult:
    """Compare the engine's log-probabilities with the trainer's.

    Args:
        engine: where the adapter is loaded.
        directory: the adapter's, with its `probe.json`.
        base: the engine's name of the base model.
        name: the engine's name of the adapter.
        salt: keeps the probe's prefix-cache blocks apart from those of every other adapter.

    Raises:
        ArtifactError: the probe is missing or malformed.
        EngineUnavailable: the engine did not answer.
        EngineRefusal: it would not take the probe.
    """
    texts = probe.read(directory)
    tokens = [text.token_ids for text in texts]
    engine_base = await engine.token_logprobs(base, tokens, cache_salt=salt)
    engine_adapter = await engine.token_logprobs(name, tokens, cache_salt=salt)
    return probe.compare(texts, engine_base, engine_adapter)
