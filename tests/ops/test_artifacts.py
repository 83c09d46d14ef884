from __future__ import annotations

import os
from pathlib import Path

import pytest

from ops import artifacts
from ops.errors import ArtifactError


def _write(text: str = "weights") -> object:
    def write(draft: Path) -> None:
        (draft / "sub").mkdir()
        (draft / "sub" / "a.bin").write_text(text)
        (draft / "b.json").write_text("{}")

    return write


def test_the_same_content_has_the_same_path(tmp_path: Path) -> None:
    first = artifacts.seal(tmp_path, _write())  # type: ignore[arg-type]
    again = artifacts.seal(tmp_path, _write())  # type: ignore[arg-type]
    other = artifacts.seal(tmp_path, _write("others"))  # type: ignore[arg-type]
    assert first == again
    assert other[1] != first[1]
    assert artifacts.verify(first[1]) == first[0] == first[1].name
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([first[0], other[0]])


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def write(draft: Path) -> None:
        (draft / "a").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        artifacts.seal(tmp_path, write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda d: (d / "b.json").write_text("{ }"), "b.json"),
        (lambda d: (d / "b.json").unlink(), "b.json"),
        (lambda d: (d / "new").write_text(""), "new"),
        (lambda d: (d / "sub" / "a.bin").write_bytes(b"weight"), "sub/a.bin"),
        (lambda d: os.symlink("/etc/passwd", d / "link"), "link"),
        (lambda d: os.mkfifo(d / "pipe"), "pipe"),
        (lambda d: (d / artifacts.MANIFEST).write_text("{"), "manifest"),
        (lambda d: (d / artifacts.MANIFEST).write_text("{}"), "digest"),
        (lambda d: (d / artifacts.MANIFEST).unlink(), "manifest"),
    ],
)
def test_whatever_was_altered_is_named(tmp_path: Path, harm: object, named: str) -> None:
    _, path = artifacts.seal(tmp_path, _write())  # type: ignore[arg-type]
    harm(path)  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=named):
        artifacts.verify(path)


def test_links_cannot_be_sealed(tmp_path: Path) -> None:
    def write(draft: Path) -> None:
        (draft / "link").symlink_to("/etc/passwd")

    with pytest.raises(ArtifactError, match="plain file"):
        artifacts.seal(tmp_path, write)
    assert list(tmp_path.iterdir()) == []
