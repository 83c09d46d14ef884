"""Fill in the middle: the prompt that makes a code model write what stands between two texts.

vLLM takes `suffix` only for models it has a renderer for; for the families here the server writes
the prompt itself. Each family has control tokens of its own, and a model that was never trained on
them would answer with nonsense, so every other family is refused.
"""

from __future__ import annotations

import re

from server.errors import BadRequest

_FAMILIES = (
    (
        re.compile(r"qwen[\d.]*-?coder|codeqwen|codegemma", re.I),
        "<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>",
    ),
    (
        re.compile(r"starcoder|granite.*code", re.I),
        "<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>",
    ),
    (re.compile(r"code-?llama", re.I), "<PRE> {prefix} <SUF>{suffix} <MID>"),
    (
        re.compile(r"deepseek-coder", re.I),
        "<\uff5cfim\u2581begin\uff5c>{prefix}<\uff5cfim\u2581hole\uff5c>{suffix}<\uff5cfim\u2581end\uff5c>",
    ),
    (re.compile(r"codestral", re.I), "[SUFFIX]{suffix}[PREFIX]{prefix}"),
)


def fim_prompt(model: str, prefix: object, suffix: str) -> str:
    """Return the prompt for what stands between `prefix` and `suffix`.

    Args:
        model: name of the base model, and where it lies.
        prefix: the `prompt` of the request.
        suffix: the `suffix` of the request.

    Raises:
        BadRequest: the model has no fill-in-the-middle mode that we know, or the prompt is no
            text.
    """
    if not isinstance(prefix, str):
        raise BadRequest("with suffix the prompt must be one text", param="prompt")
    for family, template in _FAMILIES:
        if family.search(model):
            # One pass, so that a prompt that holds "{suffix}" stays as it is.
            parts = re.split(r"(\{prefix\}|\{suffix\})", template)
            texts = {"{prefix}": prefix, "{suffix}": suffix}
            return "".join(texts.get(part, part) for part in parts)
    raise BadRequest(
        f"{model.split(' ')[0]} cannot fill in the middle: suffix works with Qwen-Coder, "
        "StarCoder, CodeGemma, CodeLlama, DeepSeek-Coder and Codestral",
        param="suffix",
        code="unsupported_parameter",
    )
