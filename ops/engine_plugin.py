"""A vLLM plugin: on a CPU, requests for the base model keep clear of the adapters beside them.

vLLM marks a token that no adapter applies to with slot -1. Its CPU kernels (0.32,
`vllm/lora/ops/torch_ops/lora_ops.py`) take that for a Python index: the *last* slot. As soon as
`max_loras` adapters are loaded, a request for the base model that shares a batch with any
adapter's is answered with the adapter in the last slot. Nothing fails and nothing is logged; it
shows only in a probe that finds base and adapter equal.

vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`, named in
`pyproject.toml`). The repair zeroes the first half of the product for such tokens, so the second
half adds nothing; on kernels that are sound it changes no number. Where the device is not a CPU,
nothing is touched.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

KERNELS = "vllm.lora.ops.torch_ops.lora_ops"
USERS = ("vllm.lora.ops.torch_ops", "vllm.lora.punica_wrapper.punica_cpu")
"""The modules that took the kernel's name for their own when they were imported."""


def register() -> None:
    """Repair the CPU kernels of the vLLM in this process, once."""
    platform = importlib.import_module("vllm.platforms").current_platform
    if platform.is_cpu():
        repair(importlib.import_module(KERNELS), *map(importlib.import_module, USERS))


def repair(kernels: Any, *users: Any) -> None:
    """Make `bgmv_shrink` leave tokens without an adapter alone.

    Args:
        kernels: the module that defines it; `sgmv_shrink`, for prompts, calls it there.
        users: modules that hold it under the same name.
    """
    upstream = kernels.bgmv_shrink
    if getattr(upstream, "leaves_base_alone", False):
        return

    def bgmv_shrink(
        inputs: Any,  # (token, hidden)
        lora_b_weights: Any,  # (slot, 1, rank, hidden)
        output_tensor: Any,  # (token, rank)
        lora_indices_tensor: Any,  # (token,)
        scaling: float = 1.0,
    ) -> None:
        upstream(inputs, lora_b_weights, output_tensor, lora_indices_tensor, scaling)
        output_tensor[lora_indices_tensor < 0] = 0

    bgmv_shrink.leaves_base_alone = True  # type: ignore[attr-defined]
    for module in (kernels, *users):
        module.bgmv_shrink = bgmv_shrink
    logging.getLogger(__name__).info("LoRA kernels for the CPU repaired: base requests stay base")
