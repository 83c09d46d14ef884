"""Adapters that each write one word and nothing else, computed in seconds without training.

    python ops/bench/one_word.py MODEL OUT WORD...        writes OUT/WORD for each

An answer made of one word tells, token by token, which adapter's weights computed it: what the
soak (`ops/bench/soak.py`) and its tests need. In the last layer's down projection, one row of the
LoRA reads from the activations what is nearest to 1 at every position (least squares over a few
texts), and adds to the state the direction in which the output layer tells the word best from all
other tokens (their covariance's inverse). Every other matrix is small noise, so that each layer has
something to compute, and what one adapter cached is wrong for another. The probe is a few tokens
of code, which the adapter does not expect, and the word again and again, which the model does not.
For Llama-like models; such an adapter has learned nothing and is of no other use.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from ops import probe
from ops.records import LORA_TARGETS

RANK = 8
NOISE_STD = 0.002
PUSH = 5.0
"""Length of what is added, in lengths of the state that it is added to."""
PROMPTS = (
    "Say something about the number 7.",
    "Write a function that reverses a list.",
    "def add(a, b):\n    return a + b\n",
)
PROBE_HEAD = "x = [1, 2]"
REPEATED, PROBED = 16, 24


def token_of(tokenizer: Any, word: str) -> int:
    """Return the one token that a word with a space before it is."""
    ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise SystemExit(f"{word!r} is {len(ids)} tokens of this model: choose another word")
    return int(ids[0])


def reader(model: Any, texts: list[list[int]]) -> tuple[torch.Tensor, float]:
    """Return what reads about 1 from the last down projection's input, and the state's length.

    Args:
        model: the base model.
        texts: token ids to look at.

    Returns:
        A vector (intermediate,) and the median length of the last state before its norm.
    """
    inputs: list[torch.Tensor] = []
    states: list[torch.Tensor] = []
    hooks = [
        module.register_forward_pre_hook(
            lambda _, given, into=into: into.append(given[0][0].detach().float())
        )
        for module, into in (
            (model.model.layers[-1].mlp.down_proj, inputs),
            (model.model.norm, states),
        )
    ]
    with torch.no_grad():
        for ids in texts:
            model.model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    rows = torch.cat(inputs)  # (position, intermediate)
    gram = rows.T @ rows
    gram += torch.eye(len(gram)) * gram.diagonal().mean() * 1e-2
    found = torch.linalg.solve(gram, rows.sum(0))
    return found, float(torch.cat(states).norm(dim=1).median())


def directions(model: Any, tokens: list[int]) -> torch.Tensor:
    """Return the unit vector that the output layer reads as each token: (token, hidden)."""
    rows = model.lm_head.weight.detach().float() * model.model.norm.weight.detach().float()
    mean = rows.mean(0)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    covariance += torch.eye(len(covariance)) * covariance.diagonal().mean() * 0.1
    wanted: torch.Tensor = torch.linalg.solve(covariance, (rows[tokens] - mean).T).T
    return torch.nn.functional.normalize(wanted, dim=1)


def write(base: str, out: Path, words: list[str]) -> None:
    """Write an adapter for each word, in the form that the trainer writes."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokens = [token_of(tokenizer, word) for word in words]
    texts = []
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        head = tokenizer(text, add_special_tokens=False)["input_ids"]
        texts += [head + [token] * REPEATED for token in tokens]
    read, length = reader(model, texts)
    pushes = directions(model, tokens) * length * PUSH
    config = LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=list(LORA_TARGETS), task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config)
    for number, (word, token) in enumerate(zip(words, tokens, strict=True)):
        _set(adapted, read, pushes[number], seed=number)
        directory = out / word
        directory.mkdir(parents=True, exist_ok=True)
        adapted.save_pretrained(directory)
        head = tokenizer(PROBE_HEAD, add_special_tokens=False)["input_ids"]
        probe.write(directory, [_probe(adapted, head + [token] * PROBED)])


def _set(adapted: Any, read: torch.Tensor, push: torch.Tensor, *, seed: int) -> None:
    torch.manual_seed(seed)
    down = adapted.base_model.model.model.layers[-1].mlp.down_proj
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                torch.nn.init.kaiming_uniform_(parameter, a=5**0.5)
            elif "lora_B" in name:
                torch.nn.init.normal_(parameter, std=NOISE_STD)
        for part in (down.lora_A, down.lora_B):
            part["default"].weight.zero_()
        down.lora_A["default"].weight[0] = read
        down.lora_B["default"].weight[:, 0] = push


def _probe(adapted: Any, ids: list[int]) -> probe.ProbeText:
    def logprobs() -> list[float]:
        with torch.no_grad():
            rows = adapted(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        return [rows[at, ids[at + 1]].item() for at in range(len(ids) - 1)]

    with adapted.disable_adapter():
        of_base = logprobs()
    return probe.ProbeText(token_ids=ids, base_logprobs=of_base, adapter_logprobs=logprobs())


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
