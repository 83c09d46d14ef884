"""A vLLM plugin: what its LoRA code for a CPU (0.32) gets wrong, and what it does too slowly.

*Wrong.* vLLM marks a token that no adapter applies to with slot -1. Its CPU kernels
(`vllm/lora/ops/torch_ops/lora_ops.py`) take that for a Python index: the *last* slot. As soon as
`max_loras` adapters are loaded, a request for the base model that shares a batch with any
adapter's is answered with the adapter in the last slot. Nothing fails and nothing is logged; it
shows only in a probe that finds base and adapter equal. `repair` zeroes the first half of the
product for such tokens, so the second half adds nothing.

*Slow.* The kernels copy an adapter's matrices once for every token and multiply them one by one,
which costs more than the layer they are added to. `hasten` sorts the tokens of a step by slot,
once, and multiplies each slot's tokens together: the same sums, in about a tenth of the time
(`ops/bench/lora.py`). Tokens without an adapter are in no slot.

vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`, named in
`pyproject.toml`). Where the device is not a CPU, nothing is touched.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

KERNELS = "vllm.lora.ops.torch_ops.lora_ops"
USERS = ("vllm.lora.ops.torch_ops", "vllm.lora.punica_wrapper.punica_cpu")
"""The modules that took the kernel's name for their own when they were imported."""
WRAPPER = ("vllm.lora.punica_wrapper.punica_cpu", "PunicaWrapperCPU")
"""The class through which every layer adds its adapters, and the module it is in."""

FEW = 16
"""Up to so many rows are multiplied in float32: a product in bfloat16 takes 20 µs to begin, and
what is converted for it is small (measured: 34 µs a matrix pair against 50 with 8 rows)."""


def register() -> None:
    """Repair and hasten the CPU kernels of the vLLM in this process, once."""
    platform = importlib.import_module("vllm.platforms").current_platform
    if platform.is_cpu():
        repair(importlib.import_module(KERNELS), *map(importlib.import_module, USERS))
        module, name = WRAPPER
        hasten(getattr(importlib.import_module(module), name))


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


def hasten(wrapper: Any) -> None:
    """Let a wrapper class multiply once for each adapter of a step, not once for each token.

    Args:
        wrapper: `PunicaWrapperCPU`, or what has its two methods. What it is asked beyond a plain
            linear layer goes to its own code, as does everything while torch compiles.
    """
    upstream_update, upstream_add = wrapper.update_metadata, wrapper.add_lora_linear
    if getattr(upstream_add, "by_slot", False):
        return
    compiling = importlib.import_module("torch").compiler.is_compiling

    def update_metadata(self: Any, *given: Any, **more: Any) -> None:
        upstream_update(self, *given, **more)
        self.rows_by_slot = rows_by_slot(self.token_lora_indices)
        self.rows_known = len(self.token_lora_indices)

    def add_lora_linear(
        self: Any,
        y: Any,  # (token, output)
        x: Any,  # (token, input)
        lora_a_stacked: tuple[Any, ...],  # of (slot, 1, rank, input)
        lora_b_stacked: tuple[Any, ...],  # of (slot, 1, slice, rank)
        scale: float,
        output_slices: tuple[int, ...],
        **more: Any,
    ) -> Any:
        given = (y, x, lora_a_stacked, lora_b_stacked, scale, output_slices)
        if more or compiling() or x.dim() != 2 or len(x) != getattr(self, "rows_known", -1):
            return upstream_add(self, *given, **more)
        add_by_slot(*given, self.rows_by_slot)
        return None

    add_lora_linear.by_slot = True  # type: ignore[attr-defined]
    wrapper.update_metadata, wrapper.add_lora_linear = update_metadata, add_lora_linear
    logging.getLogger(__name__).info("LoRA kernels for the CPU hastened: adapters by slot")


def rows_by_slot(indices: Any) -> list[tuple[int, Any]]:
    """Return which rows of a step belong to each slot; rows without an adapter are left out.

    Args:
        indices: the slot of each token, -1 for none: (token,).

    Returns:
        Slots with their rows: a slice where they are neighbours, else a tensor of row numbers.
    """
    found: dict[int, list[int]] = {}
    for row, slot in enumerate(indices.tolist()):
        if slot >= 0:
            found.setdefault(slot, []).append(row)
    return [
        (slot, slice(rows[0], rows[-1] + 1))
        if rows[-1] - rows[0] + 1 == len(rows)
        else (slot, indices.new_tensor(rows))
        for slot, rows in found.items()
    ]


def add_by_slot(
    y: Any,
    x: Any,
    lora_a_stacked: tuple[Any, ...],
    lora_b_stacked: tuple[Any, ...],
    scale: float,
    output_slices: tuple[int, ...],
    rows: list[tuple[int, Any]],
) -> None:
    """Add to `y`, in place, what the adapters make of `x`; shapes as in `hasten`."""
    for slot, which in rows:
        part, start = x[which], 0
        few = len(part) <= FEW
        part = part.float() if few else part.to(lora_a_stacked[0].dtype)
        for lora_a, lora_b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            down, up = lora_a[slot, 0], lora_b[slot, 0]
            if few:
                down, up = down.float(), up.float()
            narrow = part @ down.T
            if scale != 1.0:
                narrow = narrow * scale
            place = y[:, start : start + size]
            if not isinstance(which, slice):
                place.index_add_(0, which, (narrow @ up.T).to(y.dtype))
            elif up.dtype == y.dtype:
                place[which].addmm_(narrow, up.T)
            else:
                place[which].add_(narrow @ up.T)
            start += size
