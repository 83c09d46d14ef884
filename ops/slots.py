"""Slots: how many adapters an engine must have room for at once.

vLLM refuses no load that does not fit: it evicts the adapter that was asked longest ago, and a
request that needs it waits until it is brought back, or stays out of the batch. So what may be
asked at once is counted here, the engine that we start gets that many slots, and a server says when
an engine has fewer (`server.adapters`). Nothing is measured here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Adapters on the device (`max_loras`) and in the host's memory (`max_cpu_loras`)."""

    device: int
    host: int


def needed(*, divided: bool) -> Slots:
    """Return the least an engine needs.

    On the device: the champion, a candidate that is examined or in shadow, and one that comes in
    while the one before it still answers; where the traffic is divided also the canary, or the
    control. In the host's memory also the way back, so that it is there without reading files.

    Args:
        divided: whether a share of the traffic may go beside the champion.
    """
    device = 3 + divided
    return Slots(device=device, host=device + 1)
