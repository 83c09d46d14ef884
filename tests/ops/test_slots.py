"""Slots: what an engine must have room for, and what the one we start gets."""

from __future__ import annotations

import pytest

from ops import services
from ops.settings import ReleaseSettings
from ops.slots import Slots, needed
from tests.ops.test_services import CPU, MODEL, option, settings


def test_the_way_back_always_has_a_place_in_memory() -> None:
    assert needed(divided=False) == Slots(device=3, host=4)
    assert needed(divided=True) == Slots(device=4, host=5)


@pytest.mark.parametrize(
    ("release", "device"),
    [({}, "3"), ({"canary_share": 0.1}, "4"), ({"control_share": 0.1}, "4")],
)
def test_an_engine_that_we_start_has_room_for_a_canary(
    release: dict[str, float], device: str
) -> None:
    given = settings().model_copy(update={"release": ReleaseSettings(**release)})
    command = services.engine(given, MODEL, CPU).command
    assert option(command, "--max-loras") == device
    assert int(option(command, "--max-cpu-loras")) > int(device)
