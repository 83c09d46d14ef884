"""What an operator and a client are handed: units, image, compose files, and the pages on them."""

from __future__ import annotations

import configparser
import ctypes
import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from ops import cli
from ops.settings import ServerSettings, Settings
from sandbox import seccomp, values
from sandbox.pool import Pool
from sandbox.spec import Cell, Example, Spec, Stdio, Test, Variable, parse_spec, render
from sandbox.types import Tier, Verdict
from server.app import create_app
from server.executions import ExecutionIn, ExecutionReport
from server.protocol import METRIC_TYPES, FeedbackIn, SpecOptions, read_spec

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "ops" / "deploy"
DOCS = ROOT / "ops" / "docs"
UNIT = DEPLOY / "journeyman.service"
INSTALLED = "/opt/journeyman"

Section = dict[str, list[str]]


def unit(path: Path) -> dict[str, Section]:
    """A unit file: section → key → values, an empty value resetting nothing here."""

    class Lists(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            if isinstance(value, list) and key in self:
                self[key].extend(value)
            else:
                super().__setitem__(key, value)

    parser = configparser.RawConfigParser(dict_type=Lists, strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(path.read_text(encoding="utf-8"))
    return {
        name: {key: value.split("\n") for key, value in parser.items(name)}
        for name in parser.sections()
    }


# --- systemd ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service() -> Section:
    return unit(UNIT)["Service"]


def environment(service: Section) -> dict[str, str]:
    return dict(line.split("=", 1) for line in service["Environment"])


def test_the_unit_starts_what_the_readme_says(service: Section) -> None:
    (command,) = service["ExecStart"]
    program, *arguments = shlex.split(command)
    assert arguments == ["up"]
    assert os.access(program.replace(INSTALLED, str(ROOT)), os.X_OK)
    assert service["WorkingDirectory"] == [INSTALLED]


def test_the_unit_writes_only_where_it_may(service: Section) -> None:
    assert service["ProtectSystem"] == ["strict"]
    writable = (
        f"/var/lib/{service['StateDirectory'][0]}",
        f"/var/cache/{service['CacheDirectory'][0]}",
    )
    given = environment(service)
    assert given["JOURNEYMAN_DATA_DIR"].startswith(writable)
    assert given["HOME"].startswith(writable)
    assert given["XDG_CACHE_HOME"].startswith(writable)


def test_the_unit_leaves_time_for_an_orderly_end(service: Section) -> None:
    # As in ops/services.py: improver, server and engine, one after the other.
    source = (ROOT / "ops" / "services.py").read_text(encoding="utf-8")
    needed = sum(float(seconds) for seconds in re.findall(r"stop_timeout_s=([\d.]+)", source))
    assert float(service["TimeoutStopSec"][0]) > needed > 0
    assert service["KillMode"] == ["mixed"]


def test_the_service_has_no_privileges_and_keeps_what_the_sandbox_needs(service: Section) -> None:
    assert service["NoNewPrivileges"] == ["yes"]
    assert service["CapabilityBoundingSet"] == [""]
    assert service["User"] == ["journeyman"]
    for hindrance in ("RestrictNamespaces", "PrivateUsers", "MemoryDenyWriteExecute"):
        assert hindrance not in service
        assert hindrance in UNIT.read_text(encoding="utf-8"), "say why it is left out"


def analyze(*arguments: str) -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt-get install systemd)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The unit with the checkout where it is, since `verify` looks for the program."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text("utf-8").replace(INSTALLED, str(ROOT)), encoding="utf-8")
    return copy


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_systemd_accepts_the_unit(here: Path, device: str) -> None:
    if device == "cuda":
        shutil.copytree(DEPLOY / "journeyman.service.d", here.parent / "journeyman.service.d")
    assert analyze("verify", str(here)).strip() == ""


def test_systemd_finds_the_unit_little_exposed(here: Path) -> None:
    # 0 to 10, here in tenths; namespaces, network and shared users are what is left.
    analyze("security", "--offline=true", "--threshold=30", str(here))


def test_systemd_makes_the_account() -> None:
    program = shutil.which("systemd-sysusers")
    if program is None:
        pytest.skip("systemd-sysusers is not installed (Debian: apt-get install systemd)")
    command = [program, "--dry-run", str(DEPLOY / "sysusers.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = (DEPLOY / "sysusers.conf").read_text(encoding="utf-8").splitlines()[-1]
    assert shlex.split(line)[1] == unit(UNIT)["Service"]["User"][0]


def allowed_calls(words: list[str]) -> set[str]:
    """The system calls that a `SystemCallFilter=` lets through."""
    found: set[str] = set()
    for word in words:
        if not word.startswith("@"):
            found.add(word)
            continue
        lines = map(str.strip, analyze("syscall-filter", word).splitlines())
        members = [line for line in lines if line and not line.startswith(("#", "@"))]
        groups = re.findall(r"^    (@\S+)$", analyze("syscall-filter", word), re.M)
        found |= set(members) | allowed_calls(groups)
    return found


def filter_words(service: Section) -> list[str]:
    return [word for line in service["SystemCallFilter"] for word in line.split()]


def test_the_filter_passes_what_the_sandbox_calls(service: Section) -> None:
    source = (ROOT / "sandbox" / "isolation.py").read_text(encoding="utf-8")
    needed = set(re.findall(r'_syscall\(\s*"(\w+)"', source))
    assert {"pivot_root", "landlock_restrict_self"} <= needed
    needed |= {"unshare", "mount", "umount2", "prctl", "seccomp", "setresuid", "setgroups"}
    # Whatever a program inside the sandbox may call must pass the outer filter as well.
    needed |= {name for name, numbers in seccomp.SYSCALLS.items() if numbers[0] is not None}
    assert needed - allowed_calls(filter_words(service)) == set()


_FILTERED = """
import ctypes, json, os, sys
lib = ctypes.CDLL("libseccomp.so.2")
lib.seccomp_init.restype = ctypes.c_void_p
context = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(0x00050001)))  # EPERM
for name in json.loads(sys.argv[1]):
    number = lib.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        assert lib.seccomp_rule_add(context, ctypes.c_uint32(0x7FFF0000), number, 0) == 0
assert lib.seccomp_load(context) == 0  # sets no_new_privs, as the unit does
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.mark.slow
@pytest.mark.isolation
def test_a_program_runs_in_namespaces_under_the_filter_of_the_unit(service: Section) -> None:
    """The unit's filter for real, as an ordinary user without capabilities."""
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp is not installed (Debian: apt-get install libseccomp2)")
    calls = json.dumps(sorted(allowed_calls(filter_words(service))))
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    options: dict[str, Any] = {
        "user": account.pw_uid if account else None,
        "group": account.pw_gid if account else None,
        "extra_groups": [] if account else None,
        "env": {
            "PATH": "/usr/bin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(os.path.isdir, sys.path)]),
        },
        "capture_output": True,
        "text": True,
        "check": False,
        "cwd": "/",
    }
    python = _reachable_python(options)
    try_ = ["-m", "sandbox", "run", "-", "--entry", "f", "--args", "[20]"]
    command = [*try_, "--tier", "user-namespace", "--json"]
    program = "import pandas\ndef f(x): return pandas.Series([x, 22]).sum()"
    filtered = [python, "-c", _FILTERED, calls, *command]
    done = subprocess.run(filtered, input=program, **options)
    if done.returncode != 0:
        plain = subprocess.run([python, *command], input=program, **options)
        if plain.returncode != 0:
            pytest.skip(f"no user namespaces here: {plain.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "OK"


def _reachable_python(options: dict[str, Any]) -> str:
    """A Python of this version that the unprivileged account can run."""
    for path in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            if subprocess.run([path, "-c", "import pydantic_core"], **options).returncode == 0:
                return path
        except OSError:
            continue
    pytest.skip("no Python here that an ordinary user can run")


# --- containers -------------------------------------------------------------------------------


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Containerfile, continued lines joined."""
    lines = [
        line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, rest in pairs]


CONTAINERFILE = DEPLOY / "Containerfile"


def values_of(name: str) -> list[str]:
    return [rest for found, rest in instructions(CONTAINERFILE) if found == name]


def test_the_image_holds_the_checkout_and_nothing_else() -> None:
    copied = [source for rest in values_of("COPY") for source in rest.split()[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    assert set(copied) == {
        "pyproject.toml", "README.md", "LICENSE", "ops", "server", "improver", "sandbox",
    }  # fmt: skip
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)


def test_the_image_is_built_by_the_one_set_up_and_runs_as_nobody_in_particular() -> None:
    known = {
        "FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "USER", "VOLUME", "STOPSIGNAL",
        "ENTRYPOINT", "CMD",
    }  # fmt: skip
    assert {name for name, _ in instructions(CONTAINERFILE)} <= known
    assert values_of("ARG") == ["DEVICE=cpu", "PIP_EXTRA_INDEX_URL="]
    assert 'JOURNEYMAN_DEVICE="$DEVICE"' in values_of("RUN")[1]
    assert "ops/run setup" in values_of("RUN")[1]
    assert json.loads(values_of("ENTRYPOINT")[0]) == [f"{INSTALLED}/ops/run"]
    assert json.loads(values_of("CMD")[0]) == ["up"]
    assert values_of("USER") == ["journeyman"]
    for script in values_of("RUN"):
        subprocess.run(["bash", "-n", "-c", script], check=True)


def compose(*files: str) -> dict[str, Any]:
    """Compose files, merged as far as ours need it: objects deeply, the rest replaced."""

    def merge(below: Any, above: Any) -> Any:
        if isinstance(below, dict) and isinstance(above, dict):
            merged = {key: merge(below.get(key), value) for key, value in above.items()}
            return {**below, **merged}
        return above

    found: Any = {}
    for file in files:
        found = merge(found, yaml.safe_load((DEPLOY / file).read_text(encoding="utf-8")))
    whole: dict[str, Any] = found
    return whole


def test_the_compose_file_agrees_with_the_image() -> None:
    services = compose("compose.yaml")["services"]
    ours = services["journeyman"]
    context = (DEPLOY / ours["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / ours["build"]["dockerfile"]) == CONTAINERFILE
    arguments = {value.split("=")[0] for value in values_of("ARG")}
    assert ours["build"]["args"].keys() == arguments
    assert ours["volumes"][0].split(":")[1] == values_of("VOLUME")[0]
    uid = re.search(r"--uid (\d+)", values_of("RUN")[0])
    assert uid is not None
    assert ours["user"] == f"{uid[1]}:{uid[1]}"
    assert ours["healthcheck"]["test"][1] == f"{INSTALLED}/.venv/bin/python"
    compile(ours["healthcheck"]["test"][3], "healthcheck", "exec")


def test_every_container_is_confined_and_none_publishes_a_port() -> None:
    whole = compose("compose.yaml")
    for name, one in whole["services"].items():
        assert one["cap_drop"] == ["ALL"], name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        # The server refuses other addresses than loopback while it has no keys.
        assert one["network_mode"] == "host", name
        assert "ports" not in one, name
        assert "privileged" not in one, name
        assert re.search(r":[\w.-]+$", one["image"]), f"{name}: name a version"
        for volume in one["volumes"]:
            source = volume.split(":")[0]
            assert source in whole["volumes"] or (DEPLOY / source).exists(), volume
    commands = " ".join(whole["services"]["prometheus"]["command"])
    assert "--web.listen-address=127.0.0.1:9090" in commands
    assert whole["services"]["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"


def test_the_gpu_is_one_file_more() -> None:
    ours = compose("compose.yaml", "compose.cuda.yaml")["services"]["journeyman"]
    assert ours["build"]["args"]["DEVICE"] == "cuda"
    assert ours["image"] == "journeyman:cuda"
    (device,) = ours["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert ours["read_only"] is True


def test_grafana_is_provisioned_with_our_dashboard() -> None:
    (source,) = compose("grafana/datasource.yml")["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://127.0.0.1:9090"
    (provider,) = compose("grafana/dashboards.yml")["providers"]
    mounts = compose("compose.yaml")["services"]["grafana"]["volumes"]
    targets = [mount.split(":")[1] for mount in mounts]
    assert f"{provider['options']['path']}/journeyman.json" in targets


def settings_named() -> Iterator[tuple[str, str]]:
    for path in (UNIT, CONTAINERFILE, *sorted(DEPLOY.glob("compose*.yaml"))):
        for name in re.findall(r"\bJOURNEYMAN_[A-Z_]+\b", path.read_text(encoding="utf-8")):
            yield path.name, name


def test_every_variable_is_a_setting() -> None:
    known = {"JOURNEYMAN_DEVICE", "JOURNEYMAN_MODEL"}  # of ops/run, and of compose.yaml itself
    for name, field in Settings.model_fields.items():
        known.add(f"JOURNEYMAN_{name.upper()}")
        for inner in getattr(field.annotation, "model_fields", {}):
            known.add(f"JOURNEYMAN_{name.upper()}__{inner.upper()}")
    assert [found for found in settings_named() if found[1] not in known] == []


# --- pages ------------------------------------------------------------------------------------


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


PAGES = sorted(path.name for path in DOCS.glob("*.md"))

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
SPECS = [
    (json.loads(spec), text, program)
    for spec, text, program in re.findall(
        r"```json\n(.*?)```\n\n```text\n(.*?)```\n\n```python\n(.*?)```", page("io_spec.md"), re.S
    )
]


def spec_of(request: dict[str, Any]) -> Spec:
    return parse_spec({k: v for k, v in request.items() if k not in SpecOptions.model_fields})


def test_every_json_block_is_a_specification_with_its_text_and_a_program() -> None:
    blocks = [
        json.loads(body) for kind, body in _BLOCK.findall(page("io_spec.md")) if kind == "json"
    ]
    assert blocks == [request for request, _, _ in SPECS]
    for request in blocks:
        spec = spec_of(request)
        assert parse_spec(spec.to_json()) == spec
        read = read_spec(request, prompt="", n=1, default_candidates=4, max_candidates=32)
        assert read is not None


@pytest.mark.parametrize(("request_", "text", "program"), SPECS)
def test_the_model_reads_what_the_page_says(
    request_: dict[str, Any], text: str, program: str
) -> None:
    assert render(spec_of(request_)) == text.strip()
    compile(program, "page", "exec")


@pytest.mark.slow
@pytest.mark.isolation
async def test_the_programs_of_the_page_pass() -> None:
    async with Pool(workers=1, recheck_s=0) as pool:
        for request, _, program in SPECS:
            verification = await pool.check(program, spec_of(request))
            assert verification.verdict is Verdict.OK, verification.feedback()
            assert verification.verified == spec_of(request).has_checks


def test_every_field_of_a_specification_is_described() -> None:
    text = page("io_spec.md")
    for model in (Spec, Example, Test, Stdio, Cell, Variable, SpecOptions):
        missing = [name for name in model.model_fields if f"`{name}`" not in text]
        assert missing == [], model.__name__
    defaults = ServerSettings()
    assert f"with checks {defaults.default_candidates} by default" in text
    assert f"{defaults.max_candidates} at most" in text
    assert all(f"`{verdict.value}`" in text for verdict in Verdict)
    assert all(f"`{tier.label}`" in text for tier in Tier)


def test_every_form_of_a_value_is_shown_and_read() -> None:
    table = page("io_spec.md").split("## Values")[1].split("## Comparison")[0]
    forms = [json.loads(form) for form in re.findall(r"`(\{\"\$.*?\})`", table)]
    for form in forms:
        values.decode(form)
    shown = {tag for form in forms for tag in form}
    assert shown == set(re.findall(r'\{"(\$\w+)"', values.__doc__ or ""))


def test_the_routes_of_the_clients_page_are_those_of_the_server() -> None:
    table = page("clients.md").split("## The routes")[1]
    named = set(re.findall(r"`(GET|POST|DELETE|PUT|PATCH) (/[^`]*)`", table))
    document = create_app(Settings()).openapi()
    served = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    assert named == served


def test_the_clients_page_names_the_metrics_of_feedback() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", page("clients.md"), re.M)
    words = {"boolean": (bool,), "number": (int, float), "text": (str,)}
    assert {name: words[kind] for name, kind in rows} == METRIC_TYPES


def test_the_examples_of_the_clients_page_are_well_formed() -> None:
    for kind, body in _BLOCK.findall(page("clients.md")):
        if kind == "python":
            compile(body, "clients.md", "exec")
        elif kind == "yaml":
            config = yaml.safe_load(body)
            for model in _models(config):
                assert model.get("apiBase", model.get("api_base")) == "http://127.0.0.1:8000/v1"
            for sink in config.get("data", []) if isinstance(config, dict) else []:
                assert sink["destination"] == "http://127.0.0.1:8000/v1/ingest/continue"
        elif kind == "js":
            assert "http://127.0.0.1:8000/v1" in body  # tests/server/clients.mjs runs the like
        else:
            subprocess.run(["bash", "-n", "-c", body], check=True)
            for given in re.findall(r"-d '(\{.*?\})'", body, re.S):
                request = json.loads(given)
                if "io_spec" in request:
                    spec_of(request["io_spec"])
                elif request.get("source") == "client":
                    ExecutionReport.model_validate(request)
                elif "code" in request:
                    ExecutionIn.model_validate(request)
                else:
                    FeedbackIn.model_validate(request)


def _models(config: Any) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = config.get("models", []) if isinstance(config, dict) else config
    return models


def commands() -> Iterator[tuple[str, list[str]]]:
    for name in PAGES:
        for line in re.findall(r"`(?:journeyman|ops/run) ([a-z][^`]*)`", page(name)):
            yield name, shlex.split(line)


@pytest.mark.parametrize(("name", "words"), list(commands()))
def test_every_command_on_the_pages_exists(name: str, words: list[str]) -> None:
    if words[0] in ("setup", "test", "check", "lock"):  # of ops/run itself
        assert f"\n  {words[0]})" in (ROOT / "ops" / "run").read_text(encoding="utf-8")
        return
    command: Any = typer.main.get_command(cli.app)
    context = command.make_context("journeyman", list(words), resilient_parsing=True)
    rest = list(words)
    while rest and isinstance(command, type(typer.main.get_group(cli.app))):
        _, found, rest = command.resolve_command(context, rest)
        assert found is not None, words
        command = found
    if command.context_settings.get("ignore_unknown_options"):  # another package's command: ask it
        module = "sandbox/__main__" if words[0] == "sandbox" else "improver/__main__"
        source = (ROOT / f"{module}.py").read_text(encoding="utf-8")
        for word in rest:
            if words[0] == "import" and not word.startswith("-"):
                continue  # a path
            assert not word[0].islower() or f'"{word}"' in source, words
            assert not word.startswith("--") or f'"{word}"' in source, words
        return
    options = {option for parameter in command.params for option in getattr(parameter, "opts", ())}
    options |= {o for parameter in command.params for o in getattr(parameter, "secondary_opts", ())}
    assert {word for word in rest if word.startswith("-")} <= options, words


def headings(name: str) -> set[str]:
    return {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", page(name), re.M)
    }


@pytest.mark.parametrize("name", PAGES)
def test_links_and_files_on_the_pages_exist(name: str) -> None:
    text = page(name)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("http"):
            file, _, heading = target.partition("#")
            assert (DOCS / file).exists(), target
            assert not heading or heading in headings(file or name), target
    for path in re.findall(r"`((?:ops|server|sandbox|improver|tests)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", PAGES)
def test_settings_on_the_pages_exist(name: str) -> None:
    pattern = r"`((?:engine|server|sandbox|store|improver)\.[a-z_.]+)`"
    for setting in re.findall(pattern, page(name)):
        fields: Any = Settings.model_fields
        for part in setting.split("."):
            assert part in fields, setting
            fields = getattr(fields[part].annotation, "model_fields", {})
