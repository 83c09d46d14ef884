"""Prompts for the middle, by family."""

from __future__ import annotations

import pytest

from server.errors import BadRequest
from server.fim import fim_prompt

CASES = {
    "Qwen2.5-Coder-0.5B-Instruct": "<|fim_prefix|>A<|fim_suffix|>B<|fim_middle|>",
    "bigcode/starcoder2-3b": "<fim_prefix>A<fim_suffix>B<fim_middle>",
    "codellama/CodeLlama-7b-hf": "<PRE> A <SUF>B <MID>",
    "deepseek-ai/deepseek-coder-1.3b-base": "<\uff5cfim\u2581begin\uff5c>A"
    "<\uff5cfim\u2581hole\uff5c>B<\uff5cfim\u2581end\uff5c>",
    "mistralai/Codestral-22B": "[SUFFIX]B[PREFIX]A",
}


@pytest.mark.parametrize("model", CASES)
def test_each_family_has_its_own_tokens(model: str) -> None:
    assert fim_prompt(model, "A", "B") == CASES[model]


@pytest.mark.parametrize("model", ["SmolLM2-135M-Instruct", "Llama-3.1-8B", "Qwen2.5-7B-Instruct"])
def test_other_models_are_refused(model: str) -> None:
    with pytest.raises(BadRequest) as caught:
        fim_prompt(model, "A", "B")
    assert caught.value.param == "suffix"


def test_the_prompt_must_be_one_text() -> None:
    with pytest.raises(BadRequest) as caught:
        fim_prompt("Qwen2.5-Coder-7B", [1, 2], "B")
    assert caught.value.param == "prompt"
