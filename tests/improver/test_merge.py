"""Merging: the merged model is base and adapter, to the last digit that matters; refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from improver import merge
from ops import artifacts, merges
from ops.records import LORA_TARGETS

WHAT = merges.Merge(adapter_sha256="a" * 64, base_sha256="b" * 64, dtype="float32")
FLAGS = ["--adapter-sha256", WHAT.adapter_sha256, "--base-sha256", WHAT.base_sha256]


@pytest.fixture(autouse=True)
def as_polite_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("os.nice", lambda increment: increment)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """A LoRA adapter that moves every layer by much."""
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=list(LORA_TARGETS), task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(3, 40)[None]).logits
    return found


def test_merged_weights_say_what_base_and_adapter_say(
    tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "merged"
    assert merge.main([str(adapter), str(tiny_model), str(folder), *FLAGS]) == 0
    merged = merges.find(folder, WHAT)
    assert merged is not None
    artifacts.verify(merged)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    bare = logits(base)
    beside = logits(PeftModel.from_pretrained(base, str(adapter)))
    found = logits(AutoModelForCausalLM.from_pretrained(merged))
    assert (beside - bare).abs().mean() > 0.1
    assert torch.allclose(found, beside, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template


def test_what_is_there_is_kept_and_what_was_altered_is_made_again(
    tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "merged"
    first = merge.merge(adapter, tiny_model, folder, WHAT)
    weights = first / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert merge.merge(adapter, tiny_model, folder, WHAT) == first
    assert weights.stat().st_mtime_ns == before
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    again = merge.merge(adapter, tiny_model, folder, WHAT)
    assert (again / "model.safetensors").read_bytes() == whole


def test_an_adapter_of_another_model_is_refused(
    tiny_model: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 8'))
    folder = tmp_path / "merged"
    assert merge.main([str(adapter), str(tiny_model), str(folder), *FLAGS]) == 1
    assert "cannot be merged" in capsys.readouterr().err
    assert merges.find(folder, WHAT) is None
    assert list((folder / WHAT.adapter_sha256).iterdir()) == []
