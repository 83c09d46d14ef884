"""The repair of vLLM's CPU kernels, on the kernels themselves."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from types import ModuleType

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


def test_vllm_finds_the_plugin() -> None:
    (found,) = importlib.metadata.entry_points(
        group="vllm.general_plugins", name="journeyman_cpu_lora"
    )
    assert found.load() is engine_plugin.register
