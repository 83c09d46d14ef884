"""`python make_adapter.py MODEL OUT SEED…`: peft adapters with random weights, and their probes.

`OUT/SEED` is made for each seed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).parents[2]))
from ops import probe

TEXTS = (
    "def add(a, b):\n    return a + b\n",
    "Write a function that reverses a list.",
    "for i in range(10):\n    print(i)",
)


def main() -> None:
    base, out = sys.argv[1], Path(sys.argv[2])
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(
        plain,
        LoraConfig(
            r=8,
            lora_alpha=16,
            target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
            task_type="CAUSAL_LM",
        ),
    )
    for seed in sys.argv[3:]:
        _make(model, tokenizer, out / seed, int(seed))


def _make(model: PeftModel, tokenizer: PreTrainedTokenizerBase, directory: Path, seed: int) -> None:
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            std = 0.05 if "lora_B" in name else parameter.shape[1] ** -0.5
            torch.nn.init.normal_(parameter, std=std)

    def logprobs(ids: list[int]) -> list[float]:
        with torch.no_grad():
            rows = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return [rows[i, ids[i + 1]].item() for i in range(len(ids) - 1)]

    texts = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        with model.disable_adapter():
            of_base = logprobs(ids)
        texts.append(
            probe.ProbeText(token_ids=ids, base_logprobs=of_base, adapter_logprobs=logprobs(ids))
        )
    directory.mkdir(parents=True)
    model.save_pretrained(directory)
    probe.write(directory, texts)


if __name__ == "__main__":
    main()
