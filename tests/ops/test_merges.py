"""Merged weights on disk: only what is complete is found, and only the champion's stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ops import artifacts, merges
from ops.errors import ArtifactError

WHAT = merges.Merge(adapter_sha256="a" * 64, base_sha256="b" * 64, dtype="float32")


def sealed(folder: Path, what: merges.Merge) -> Path:
    return artifacts.seal(folder / what.adapter_sha256, lambda at: merges.write(at, what))[1]


def test_only_what_is_complete_and_made_of_the_same_is_found(tmp_path: Path) -> None:
    assert merges.find(tmp_path, WHAT) is None
    draft = tmp_path / WHAT.adapter_sha256 / ".draft-1"
    draft.mkdir(parents=True)
    merges.write(draft, WHAT)
    assert merges.find(tmp_path, WHAT) is None
    there = sealed(tmp_path, WHAT)
    assert merges.find(tmp_path, WHAT) == there
    assert merges.read(there) == WHAT
    for other in ({"base_sha256": "c" * 64}, {"dtype": "bfloat16"}, {"adapter_sha256": "c" * 64}):
        assert merges.find(tmp_path, replace(WHAT, **other)) is None
    (there / artifacts.MANIFEST).unlink()
    assert merges.find(tmp_path, WHAT) is None


@pytest.mark.parametrize("text", ["{}", "not json", '{"adapter_sha256": 1}', "[]"])
def test_a_record_that_cannot_be_read_is_said(tmp_path: Path, text: str) -> None:
    there = sealed(tmp_path, WHAT)
    (there / merges.FILE).write_text(text)
    with pytest.raises(ArtifactError, match=r"no readable merge\.json"):
        merges.read(there)
    assert merges.find(tmp_path, WHAT) is None


def test_all_but_one_s_are_removed(tmp_path: Path) -> None:
    kept, other = sealed(tmp_path, WHAT), sealed(tmp_path, replace(WHAT, adapter_sha256="c" * 64))
    merges.keep_only(tmp_path, WHAT.adapter_sha256)
    assert kept.is_dir()
    assert not other.exists()
    merges.keep_only(tmp_path, None)
    assert not kept.exists()
    merges.keep_only(tmp_path / "never made", None)
