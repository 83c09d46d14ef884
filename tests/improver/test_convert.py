"""Conversion of a GGUF file made on the spot: weights, tokenizer and template arrive whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from improver.convert import main

ROOT = Path(__file__).parents[2]
WIDTH, HIDDEN, HEADS, KV_HEADS, LAYERS = 16, 32, 4, 2, 1
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"


def write_gguf(path: Path, *, template: str | None = TEMPLATE) -> dict[str, np.ndarray]:
    """Write a Qwen2 of a few hundred numbers, and return them under the names they should get."""
    # A byte-level vocabulary, as GPT-2's: every byte is a token of its own.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    tokens = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(rest))]
    tokens += ["he", "<|im_start|>", "<|im_end|>"]
    kinds = [1] * (len(tokens) - 2) + [3, 3]
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_pad_token_id(len(tokens) - 1)
    if template is not None:
        writer.add_chat_template(template)

    rng = np.random.default_rng(7)
    kv = WIDTH // HEADS * KV_HEADS
    layer, block = "model.layers.0", "blk.0"
    shapes = {
        "model.embed_tokens.weight": ("token_embd.weight", (len(tokens), WIDTH)),
        "lm_head.weight": ("output.weight", (len(tokens), WIDTH)),
        "model.norm.weight": ("output_norm.weight", (WIDTH,)),
        f"{layer}.input_layernorm.weight": (f"{block}.attn_norm.weight", (WIDTH,)),
        f"{layer}.post_attention_layernorm.weight": (f"{block}.ffn_norm.weight", (WIDTH,)),
        f"{layer}.self_attn.q_proj.weight": (f"{block}.attn_q.weight", (WIDTH, WIDTH)),
        f"{layer}.self_attn.q_proj.bias": (f"{block}.attn_q.bias", (WIDTH,)),
        f"{layer}.self_attn.k_proj.weight": (f"{block}.attn_k.weight", (kv, WIDTH)),
        f"{layer}.self_attn.k_proj.bias": (f"{block}.attn_k.bias", (kv,)),
        f"{layer}.self_attn.v_proj.weight": (f"{block}.attn_v.weight", (kv, WIDTH)),
        f"{layer}.self_attn.v_proj.bias": (f"{block}.attn_v.bias", (kv,)),
        f"{layer}.self_attn.o_proj.weight": (f"{block}.attn_output.weight", (WIDTH, WIDTH)),
        f"{layer}.mlp.gate_proj.weight": (f"{block}.ffn_gate.weight", (HIDDEN, WIDTH)),
        f"{layer}.mlp.up_proj.weight": (f"{block}.ffn_up.weight", (HIDDEN, WIDTH)),
        f"{layer}.mlp.down_proj.weight": (f"{block}.ffn_down.weight", (WIDTH, HIDDEN)),
    }
    written = {}
    for name, (gguf_name, shape) in shapes.items():
        # Multiples of 1/64 below 2: exact in bfloat16, so that the comparison can be exact.
        values = (rng.integers(-127, 128, size=shape) / 64).astype(np.float32)
        writer.add_tensor(gguf_name, values)
        written[name] = values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def convert(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "improver.convert", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)


@pytest.mark.slow
def test_a_gguf_file_becomes_a_directory_that_can_be_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = write_gguf(tmp_path / "tiny.gguf")
    out = tmp_path / "out"
    # In this process, as everything here that imports torch: that is what takes the time.
    assert main([str(tmp_path / "tiny.gguf"), str(out)]) == 0
    assert "writing safetensors" in capsys.readouterr().err

    from safetensors.torch import load_file

    weights = load_file(out / "model.safetensors")
    assert weights.keys() == written.keys()
    for name, values in written.items():
        assert str(weights[name].dtype) == "torch.bfloat16"
        np.testing.assert_array_equal(weights[name].float().numpy(), values, err_msg=name)

    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["num_key_value_heads"] == KV_HEADS
    assert "quantization_config" not in config

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out)
    asked = [{"role": "user", "content": "hé"}]
    text = tokenizer.apply_chat_template(asked, tokenize=False)
    assert text == "<|im_start|>user\nhé<|im_end|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.slow
def test_what_is_no_chat_model_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gguf(tmp_path / "plain.gguf", template=None)
    (tmp_path / "junk.gguf").write_bytes(b"not a model")
    for name, words in (
        ("plain", "no chat template"),
        ("junk", "cannot be read as a GGUF model"),
    ):
        assert main([str(tmp_path / f"{name}.gguf"), str(tmp_path / "out")]) == 1
        told = capsys.readouterr().err
        assert words in told
        assert "Traceback" not in told


def test_bad_usage_is_said(tmp_path: Path) -> None:
    assert convert("only one").returncode == 2
    done = convert(tmp_path / "missing.gguf", tmp_path)
    assert done.returncode == 2
    assert "does not exist" in done.stderr
