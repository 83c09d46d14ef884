"""Turn a GGUF file into a directory of safetensors that vLLM and the trainer can read.

    python -m improver.convert MODEL.gguf OUT

`ops.models` runs it once for a starter model, in a process of its own. Quantised tensors are
brought back to bfloat16, so nothing is gained over the quantised file but readers: what the
quantisation lost stays lost. Fetching and checking the file is `ops.models`' work, and so is
sealing the result.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from improver.errors import ImproverError

_QUANTISATION_LEFTOVERS = ("hf_quantizer", "quantization_method")


def convert(gguf: Path, out: Path) -> None:
    """Write config, weights (safetensors, bfloat16) and tokenizer of a GGUF file into `out`.

    Args:
        gguf: the file; its architecture must be one that transformers can read.
        out: a directory, made where it does not exist; files in it may be overwritten.

    Raises:
        ImproverError: the file is not a GGUF file that can be read, or it holds no chat template.
    """
    # Set before transformers is imported: a local file never needs the hub.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = str(gguf.resolve().parent), gguf.name
    _say(f"reading the tokenizer of {name}")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        if not tokenizer.chat_template:
            raise ImproverError(f"{gguf} holds no chat template: it is not a chat model")
        _say("reading the weights and bringing them back to bfloat16")
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=name,
            quantization_config=GgufConfig(dequantize=True, gguf_file=name),
            dtype=torch.bfloat16,
        )
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ImproverError(f"{gguf} cannot be read as a GGUF model: {error}") from error
    # Otherwise save_pretrained takes the plain bfloat16 weights for quantised ones, and refuses.
    for attribute in _QUANTISATION_LEFTOVERS:
        if hasattr(model, attribute):
            delattr(model, attribute)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    _say("writing safetensors")
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for file in out.iterdir():
        file.chmod(0o644)


def _say(message: str) -> None:
    print(f"convert: {message}", file=sys.stderr, flush=True)  # noqa: T201 (this is a command)


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    if len(arguments) != 2:
        _say("usage: python -m improver.convert MODEL.gguf OUT")
        return 2
    gguf, out = (Path(argument) for argument in arguments)
    if not gguf.is_file():
        _say(f"{gguf} does not exist")
        return 2
    try:
        convert(gguf, out)
    except ImproverError as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
