"""The Kubernetes manifests: right by Kubernetes' own schemas, and one with image and settings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from ops import cli, settings
from server.auth import OPEN_PATHS
from tests.ops.test_deploy import DEPLOY, INSTALLED, values_of

HERE = DEPLOY / "kubernetes"
SCHEMAS = json.loads((Path(__file__).parent / "kubernetes_schema.json").read_text("utf-8"))


def load(name: str) -> Any:
    return yaml.safe_load((HERE / name).read_text(encoding="utf-8"))


RESOURCES = load("kustomization.yaml")["resources"]


def check(resource: Any) -> list[str]:
    schema = SCHEMAS["kinds"][resource["kind"]] | {"definitions": SCHEMAS["definitions"]}
    found = jsonschema.Draft202012Validator(schema).iter_errors(resource)
    return [f"{error.json_path}: {error.message}" for error in found]


def merged(below: Any, above: Any) -> Any:
    """A strategic merge, as far as ours needs it: lists of named things by their names."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: merged(below.get(key), value) for key, value in above.items()}
    if isinstance(below, list) and isinstance(above, list):
        changes = {one["name"]: one for one in above}
        return [merged(one, changes.get(one["name"], {})) for one in below]
    return above


def pod() -> dict[str, Any]:
    found: dict[str, Any] = load("statefulset.yaml")["spec"]["template"]["spec"]
    return found


def containers() -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in pod()["containers"]}


@pytest.mark.parametrize("name", RESOURCES)
def test_a_manifest_is_right_by_the_schema(name: str) -> None:
    assert check(load(name)) == []


def test_the_pod_with_gpus_is_right_by_the_schema() -> None:
    overlay = load("cuda/kustomization.yaml")
    assert overlay["resources"] == ["../"]
    [patch] = overlay["patches"]
    whole = merged(load("statefulset.yaml"), load(f"cuda/{patch['path']}"))
    assert check(whole) == []
    limits = {
        one["name"]: one["resources"]["limits"]
        for one in whole["spec"]["template"]["spec"]["containers"]
    }
    assert [name for name in limits if "nvidia.com/gpu" in limits[name]] == ["engine", "improver"]


def test_the_schema_finds_what_is_wrong() -> None:
    broken = load("statefulset.yaml")
    broken["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    broken["spec"]["replicas"] = "one"
    assert len(check(broken)) == 2


def test_every_file_is_applied() -> None:
    files = {str(path.relative_to(HERE)) for path in HERE.rglob("*.yaml")}
    assert files == {*RESOURCES, "kustomization.yaml", "cuda/kustomization.yaml", "cuda/gpus.yaml"}


def test_the_containers_run_commands_that_there_are() -> None:
    commands = typer.main.get_group(cli.app).commands
    for name, container in containers().items():
        assert container["image"] == "journeyman"
        assert set(container["args"]) <= commands.keys(), name
    images = [load(name)["images"][0] for name in ("kustomization.yaml", "cuda/kustomization.yaml")]
    assert [one["newTag"] for one in images] == ["cpu", "cuda"]


def test_no_container_has_a_privilege_and_all_run_as_the_image_s_user() -> None:
    uid = re.search(r"--uid (\d+)", values_of("RUN")[0])
    assert uid is not None
    whole = pod()["securityContext"]
    assert whole["runAsNonRoot"] is True
    assert {whole[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {int(uid[1])}
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod()["automountServiceAccountToken"] is False
    for name, container in containers().items():
        confined = container["securityContext"]
        assert confined["capabilities"] == {"drop": ["ALL"]}, name
        assert confined["allowPrivilegeEscalation"] is False, name
        assert confined["readOnlyRootFilesystem"] is True, name


def test_what_is_mounted_is_there_and_writable_places_are_those_of_the_image() -> None:
    claims = load("statefulset.yaml")["spec"]["volumeClaimTemplates"]
    known = {one["name"] for one in (*pod()["volumes"], *(c["metadata"] for c in claims))}
    for container in containers().values():
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        assert set(mounts.values()) == known
        assert values_of("VOLUME")[0] in mounts


def environment() -> Iterator[tuple[str, str]]:
    for container in containers().values():
        for variable in container["env"]:
            yield variable["name"], variable["value"]


def test_every_variable_is_a_setting_and_the_file_is_where_the_secret_is() -> None:
    known = {f"{settings.PREFIX}{name.upper().replace('.', '__')}" for name in settings.names()}
    for name, value in environment():
        assert name in known | settings.OTHER_VARIABLES
        if name == "JOURNEYMAN_CONFIG":
            assert value == "/etc/journeyman/journeyman.toml"
    head = (HERE / "kustomization.yaml").read_text(encoding="utf-8")
    secret = next(v for v in pod()["volumes"] if v["name"] == "settings")["secret"]["secretName"]
    assert f"create secret generic {secret} --from-file=journeyman.toml" in head


def test_the_probes_ask_what_answers() -> None:
    server, engine = containers()["server"], containers()["engine"]
    defaults = settings.Settings()
    assert server["ports"][0]["containerPort"] == defaults.server.port
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert server[probe]["httpGet"]["path"] in OPEN_PATHS
        assert server[probe]["httpGet"]["port"] == server["ports"][0]["name"]
    for probe in ("startupProbe", "livenessProbe"):
        python, option, code = engine[probe]["exec"]["command"]
        assert python == f"{INSTALLED}/.venv/bin/python"
        assert option == "-c"
        compile(code, probe, "exec")
        assert f"127.0.0.1:{defaults.engine.port}/health" in code


def test_only_the_server_is_reached() -> None:
    [port] = load("service.yaml")["spec"]["ports"]
    assert port["targetPort"] == containers()["server"]["ports"][0]["name"]
    policy = load("networkpolicy.yaml")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [{"ports": [{"port": port["port"]}]}]
    selector = load("statefulset.yaml")["spec"]["selector"]
    assert policy["podSelector"] == selector
    assert load("service.yaml")["spec"]["selector"] == selector["matchLabels"]
    assert all("hostPort" not in p for c in containers().values() for p in c.get("ports", ()))


def test_there_is_time_for_an_orderly_end() -> None:
    drain_s = settings.Settings().server.drain_timeout_s
    assert pod()["terminationGracePeriodSeconds"] > drain_s
