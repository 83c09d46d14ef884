"""How the engine is called, and what reaches the children."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from ops import keys, services
from ops.errors import ProcessError
from ops.models import Model
from ops.services import EngineBuild
from ops.settings import EngineSettings, ImproverSettings, Settings

CPU = EngineBuild(device="cpu", version="0.32.0")
CUDA = EngineBuild(device="cuda", version="0.32.0")
MODEL = Model(name="Tiny", directory=Path("/models/tiny-abc"), sha256="ff", origin="a test")


def settings(**engine: object) -> Settings:
    return Settings.model_construct(
        **{**dict(Settings()), "engine": EngineSettings.model_validate(engine)}
    )


def option(command: tuple[str, ...], name: str) -> str:
    return command[command.index(name) + 1]


def test_the_engine_is_bound_to_loopback_and_takes_adapters() -> None:
    engine = services.engine(settings(port=9001), MODEL, CPU)
    assert option(engine.command, "--host") == "127.0.0.1"
    assert option(engine.command, "--port") == "9001"
    assert option(engine.command, "--model") == "/models/tiny-abc"
    assert option(engine.command, "--served-model-name") == "Tiny"
    assert "--enable-lora" in engine.command
    assert int(option(engine.command, "--max-loras")) >= 3
    assert engine.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    # Both would open doors that nobody guards.
    assert "VLLM_SERVER_DEV_MODE" not in engine.environment
    assert "VLLM_LORA_RESOLVER_CACHE_DIR" not in engine.environment


def test_the_engine_leaves_room_on_a_gpu_where_it_is_told_to() -> None:
    flag, given = "--gpu-memory-utilization", settings(gpu_memory_share=0.5)
    assert option(services.engine(given, MODEL, CUDA).command, flag) == "0.5"
    assert flag not in services.engine(given, MODEL, CPU).command
    assert flag not in services.engine(settings(), MODEL, CUDA).command
    for wrong in (0, 1, 1.5, -0.5, "half"):
        with pytest.raises(ValidationError):
            settings(gpu_memory_share=wrong)


@pytest.mark.parametrize("build", [CPU, CUDA])
def test_the_second_engine_is_the_first_without_adapters(build: EngineBuild) -> None:
    given = settings(port=9001, merged_port=9002)
    first = services.engine(given, MODEL, build)
    second = services.second_engine(given, Path("/merged/abc"), "code@v3", build)
    assert option(second.command, "--model") == "/merged/abc"
    assert option(second.command, "--served-model-name") == "code@v3"
    assert option(second.command, "--port") == "9002"
    assert second.ready_url == "http://127.0.0.1:9002/health"
    assert any("lora" in word for word in first.command)
    assert not any("lora" in word or word.endswith("_proj") for word in second.command)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in second.environment
    own = {"/merged/abc", "code@v3", "9002"}
    assert set(second.command) - own < set(first.command)


def test_weights_are_merged_in_what_the_engine_computes_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(services, "cpu_flags", lambda: {"avx2"})
    assert services.merged_dtype(settings(), CPU) == "float32"
    assert services.merged_dtype(settings(), CUDA) == "bfloat16"
    assert services.merged_dtype(settings(dtype="float16"), CUDA) == "float16"


def test_a_cpu_is_treated_as_one_and_a_gpu_is_left_to_vllm() -> None:
    cpu = services.engine(settings(kv_cache_gib=7), MODEL, CPU)
    assert "--enforce-eager" in cpu.command
    assert cpu.environment["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert cpu.environment["KMP_BLOCKTIME"] == "1"
    cuda = services.engine(settings(), MODEL, CUDA)
    assert "--enforce-eager" not in cuda.command
    assert option(cuda.command, "--dtype") == "auto"
    assert not {"LD_PRELOAD", "TORCH_COMPILE_DISABLE"} & cuda.environment.keys()


@pytest.mark.parametrize("compiler", [True, False])
def test_nothing_is_compiled_where_nothing_can_be(
    monkeypatch: pytest.MonkeyPatch, compiler: bool
) -> None:
    monkeypatch.setattr(services, "can_compile", lambda: compiler)
    found = services.engine(settings(), MODEL, CPU).environment
    assert ("TORCH_COMPILE_DISABLE" in found, "TORCHINDUCTOR_CACHE_DIR" in found) == (
        not compiler,
        compiler,
    )


def test_slots_for_the_way_back_are_never_fewer_than_slots() -> None:
    engine = services.engine(settings(max_loras=8, max_cpu_loras=5), MODEL, CPU)
    assert option(engine.command, "--max-cpu-loras") == "8"


def test_extra_arguments_come_last_and_so_win() -> None:
    engine = services.engine(settings(extra_args=["--dtype", "float16"]), MODEL, CPU)
    assert engine.command[-2:] == ("--dtype", "float16")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"avx2", "avx512f"}, "float32"),
        ({"avx512f", "avx512_bf16"}, "bfloat16"),
        ({"amx_bf16"}, "bfloat16"),
        (set(), "float32"),
    ],
)
def test_the_number_format_fits_the_cpu(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], dtype: str
) -> None:
    monkeypatch.setattr(services, "cpu_flags", lambda: flags)
    assert services.engine_dtype("auto", CPU) == dtype
    assert services.engine_dtype("float16", CPU) == "float16"
    assert services.engine_dtype("auto", CUDA) == "auto"


def test_what_the_user_preloads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "preloads", lambda: ["/x/libtcmalloc_minimal.so.4"])
    monkeypatch.setenv("LD_PRELOAD", "/mine.so:/x/libtcmalloc_minimal.so.4")
    found = services.cpu_environment()
    assert found["LD_PRELOAD"] == "/x/libtcmalloc_minimal.so.4:/mine.so"


def test_children_are_told_what_flags_changed(tmp_path: Path) -> None:
    changed = settings(port=9001).model_copy(update={"data_dir": tmp_path})
    environment = services.server(changed, MODEL).environment
    assert environment["JOURNEYMAN_DATA_DIR"] == str(tmp_path)
    assert environment["JOURNEYMAN_ENGINE__PORT"] == "9001"
    assert environment["JOURNEYMAN_ENGINE__MODEL"] == "/models/tiny-abc"
    assert "JOURNEYMAN_ENGINE__URL" not in environment


def test_an_engine_below_the_floor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services.importlib.metadata, "version", lambda name: "0.24.0")
    with pytest.raises(ProcessError, match=r"0\.24\.0 is too old.*0\.31"):
        services.engine_build()


def test_a_missing_engine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise services.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(services.importlib.metadata, "version", missing)
    with pytest.raises(ProcessError, match="ops/run up"):
        services.engine_build()


def test_the_improver_gets_the_installation_s_own_key_and_nobody_else_learns_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOURNEYMAN_API_KEY", raising=False)
    here = Settings(data_dir=tmp_path)
    own = {"JOURNEYMAN_API_KEY": keys.own(tmp_path)}
    assert own.items() <= services.improver(here, MODEL).environment.items()
    assert "JOURNEYMAN_API_KEY" not in services.engine(here, MODEL, CPU).environment
    elsewhere = Settings(data_dir=tmp_path, improver=ImproverSettings(server_url="http://x"))
    assert services.api_key(elsewhere) == {}
    monkeypatch.setenv("JOURNEYMAN_API_KEY", "given")
    assert services.api_key(here) == {}
