"""What the plugin does to vLLM's CPU kernels, on the kernels themselves."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from types import ModuleType
from typing import Any

import pytest
import torch

from ops import engine_plugin


@pytest.fixture
def kernels() -> ModuleType:
    """A copy of vLLM's kernels of its own: importing vLLM itself takes half a minute."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("no vLLM is installed")
    path = spec.origin.removesuffix("__init__.py") + "lora/ops/torch_ops/lora_ops.py"
    loader = importlib.util.spec_from_file_location("kernels_of_vllm", path)
    assert loader is not None
    assert loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    return module


def _deltas(kernels: ModuleType, slots: list[int]) -> list[list[float]]:
    """What two adapters of rank 1 add to a token of ones in each of `slots`."""
    shrink, expand = torch.ones(2, 1, 1, 3), torch.tensor([[[[2.0]]], [[[5.0]]]])
    tokens, indices = torch.ones(len(slots), 3), torch.tensor(slots)
    buffer, output = torch.zeros(len(slots), 1), torch.zeros(len(slots), 1)
    lengths = torch.ones(len(slots), dtype=torch.long)
    kernels.bgmv_shrink(tokens, shrink, buffer, indices, 1.0)
    kernels.bgmv_expand(buffer, expand, output, indices, True)
    prompt, prompt_output = torch.zeros(len(slots), 1), torch.zeros(len(slots), 1)
    sizes = (lengths, indices, len(slots), 1, len(slots))
    kernels.sgmv_shrink(tokens, shrink, prompt, lengths, *sizes, 1.0)
    kernels.sgmv_expand(prompt, expand, prompt_output, lengths, *sizes, True)
    return [output.flatten().tolist(), prompt_output.flatten().tolist()]


def test_tokens_without_an_adapter_are_left_alone(kernels: ModuleType) -> None:
    engine_plugin.repair(kernels)
    assert _deltas(kernels, [-1, 0, 1, -1]) == [[0.0, 6.0, 15.0, 0.0]] * 2


def test_the_fault_is_still_upstream(kernels: ModuleType) -> None:
    """When this fails, vLLM has been mended and the plugin can go."""
    assert _deltas(kernels, [-1, 0]) == [[15.0, 6.0]] * 2


def test_every_name_of_the_kernel_is_replaced_and_only_once(kernels: ModuleType) -> None:
    user = ModuleType("user")
    user.bgmv_shrink = kernels.bgmv_shrink  # type: ignore[attr-defined]
    engine_plugin.repair(kernels, user)
    repaired = kernels.bgmv_shrink
    assert user.bgmv_shrink is repaired
    engine_plugin.repair(kernels, user)
    assert kernels.bgmv_shrink is repaired


def _wrapper(kernels: ModuleType) -> Any:
    """A wrapper class that does what vLLM's does, on its own kernels."""

    class Wrapper:
        def update_metadata(self, indices: torch.Tensor) -> None:
            self.token_lora_indices = indices

        def add_lora_linear(
            self, y: Any, x: Any, a: Any, b: Any, scale: float, sizes: Any, **more: Any
        ) -> None:
            self.upstream = True
            start = 0
            for lora_a, lora_b, size in zip(a, b, sizes, strict=True):
                buffer = torch.zeros(len(x), lora_b.size(-1))
                kernels.bgmv_shrink(x, lora_a, buffer, self.token_lora_indices, scale)
                kernels.bgmv_expand_slice(
                    buffer, lora_b, y, self.token_lora_indices, start, size, True
                )
                start += size

    return Wrapper


MIXES = [
    [0] * 7,
    [1] * 40,
    [0, -1, 2] * 20,
    [-1] * 7,
    [-1, 0, 1, -1, 2, 0, 0],
    [1, 1, 1, -1, -1, 0, 0],
    [2],
    [-1],
]


@pytest.mark.parametrize("slots", MIXES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_tokens_taken_by_slot_add_up_to_the_same(
    kernels: ModuleType, slots: list[int], scale: float
) -> None:
    engine_plugin.repair(kernels)
    sizes, indices = (5, 2, 2), torch.tensor(slots)
    a = tuple(torch.randn(3, 1, 4, 6) for _ in sizes)
    b = tuple(torch.randn(3, 1, size, 4) for size in sizes)
    x, before = torch.randn(len(slots), 6), torch.randn(len(slots), sum(sizes))
    results = []
    for hastened in (False, True):
        kind = _wrapper(kernels)
        if hastened:
            engine_plugin.hasten(kind)
        wrapper, y = kind(), before.clone()
        wrapper.update_metadata(indices)
        wrapper.add_lora_linear(y, x, a, b, scale, sizes)
        assert hasattr(wrapper, "upstream") is not hastened
        results.append(y)
    torch.testing.assert_close(results[1], results[0])
    base = indices < 0
    assert torch.equal(results[1][base], before[base])


def test_what_is_not_a_plain_layer_goes_to_vllms_own_code(kernels: ModuleType) -> None:
    kind = _wrapper(kernels)
    engine_plugin.hasten(kind)
    engine_plugin.hasten(kind)  # once is enough
    a, b = (torch.randn(1, 1, 4, 6),), (torch.randn(1, 1, 5, 4),)
    for tokens, more in ((2, {"buffer": None}), (1, {})):
        wrapper = kind()
        wrapper.update_metadata(torch.zeros(2, dtype=torch.long))
        if tokens != 2:  # the step is not the one that was announced
            wrapper.token_lora_indices = torch.zeros(tokens, dtype=torch.long)
        wrapper.add_lora_linear(
            torch.zeros(tokens, 5), torch.ones(tokens, 6), a, b, 1.0, (5,), **more
        )
        assert wrapper.upstream


def test_half_precision_is_as_near_to_the_truth_as_vllms(kernels: ModuleType) -> None:
    engine_plugin.repair(kernels)
    torch.manual_seed(1)
    a, b = (torch.randn(2, 1, 8, 64) / 8,), (torch.randn(2, 1, 32, 8) / 8,)
    x, indices = torch.randn(9, 64), torch.tensor([0, 1, -1] * 3)
    truth, errors = torch.zeros(9, 32), []
    engine_plugin.add_by_slot(truth, x, a, b, 1.0, (32,), engine_plugin.rows_by_slot(indices))
    for hastened in (False, True):
        kind = _wrapper(kernels)
        if hastened:
            engine_plugin.hasten(kind)
        wrapper, y = kind(), torch.zeros(9, 32, dtype=torch.bfloat16)
        wrapper.update_metadata(indices)
        half = [tuple(w.bfloat16() for w in given) for given in (a, b)]
        wrapper.add_lora_linear(y, x.bfloat16(), *half, 1.0, (32,))
        errors.append((y.float() - truth).abs().mean().item())
    assert errors[1] < 1.5 * errors[0]


def test_vllm_finds_the_plugin() -> None:
    (found,) = importlib.metadata.entry_points(
        group="vllm.general_plugins", name="journeyman_cpu_lora"
    )
    assert found.load() is engine_plugin.register
