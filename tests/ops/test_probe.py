from __future__ import annotations

from pathlib import Path

import pytest

from ops import probe
from ops.errors import ArtifactError
from ops.probe import ProbeText

BASE = [-2.0, -0.5, -3.0, -1.0]
ADAPTER = [-1.0, -0.6, -0.5, -0.9]
TEXT = ProbeText(token_ids=[1, 2, 3, 4, 5], base_logprobs=BASE, adapter_logprobs=ADAPTER)


def _shifted(values: list[float], by: float) -> list[float]:
    return [value + by for value in values]


def test_an_engine_that_agrees_is_accepted() -> None:
    result = probe.compare([TEXT], [_shifted(BASE, 0.01)], [_shifted(ADAPTER, -0.01)])
    assert result.accepted
    assert result.tokens == 4
    assert result.engine_error == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("base", "adapter", "reason"),
    [
        (BASE, BASE, "changes nothing"),
        (BASE, _shifted(ADAPTER, -1.0), "differ by"),
        (ADAPTER, BASE, "differ by"),
        (BASE, [-1.8, -0.1, -0.9, -1.2], "follow"),
        (BASE, [float("nan"), *ADAPTER[1:]], "not finite"),
        (BASE, [float("-inf"), *ADAPTER[1:]], "not finite"),
    ],
)
def test_anything_else_is_refused(base: list[float], adapter: list[float], reason: str) -> None:
    if reason == "follow":  # same size of error, other direction
        adapter = [a + d for a, d in zip(ADAPTER, [-0.7, 0.1, -0.1, 0.05], strict=True)]
        base = [-2.0, -0.9, -0.4, -1.4]
    result = probe.compare([TEXT], [base], [adapter])
    assert not result.accepted
    assert reason in result.reason


def test_a_probe_survives_the_disk(tmp_path: Path) -> None:
    probe.write(tmp_path, [TEXT])
    assert probe.read(tmp_path) == [TEXT]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"texts": []}',
        '{"texts": [{}]}',
        '{"texts": [{"token_ids": [1, 2], "base_logprobs": [], "adapter_logprobs": []}]}',
        '{"texts": [{"token_ids": [1], "base_logprobs": [], "adapter_logprobs": []}]}',
    ],
)
def test_a_malformed_probe_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / probe.FILE).write_text(content)
    with pytest.raises(ArtifactError, match=r"probe\.json"):
        probe.read(tmp_path)
