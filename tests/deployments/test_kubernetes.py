"""The manifests for KubeRay: known to Kubernetes as far as they are its own, and in agreement with each other."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from flows.parameters.invert import InvertRun
from tasks.settings import Settings

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def manifests(deployments: Path) -> list[dict[str, Any]]:
    files = sorted((deployments / "kubernetes").glob("*.yaml"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


@pytest.fixture(scope="module")
def cluster(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (cluster,) = (document for document in manifests if document["kind"] == "RayCluster")
    return cluster


@pytest.fixture(scope="module")
def templates(manifests: list[dict[str, Any]], cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every description of a pod, by the name of its container."""
    spec = cluster["spec"]
    found = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    found += [document["spec"]["template"] for document in manifests if document["kind"] == "Deployment"]
    names = ["head", *(group["groupName"] for group in spec["workerGroupSpecs"]), "prefect", "prefect-worker"]
    return dict(zip(names, found, strict=True))


def validate(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_what_is_kubernetes_own_is_known_to_it(
    manifests: list[dict[str, Any]], templates: dict[str, dict[str, Any]]
) -> None:
    for document in manifests:
        if not document["apiVersion"].startswith("ray.io/"):
            validate(document)
    for name, template in templates.items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": template["spec"]}
        validate(pod)
        with pytest.raises(kubernetes_validate.ValidationError):
            validate({**pod, "spec": {**template["spec"], "tolerance": []}})


def test_pods_have_limits_and_no_rights(templates: dict[str, dict[str, Any]]) -> None:
    for template in templates.values():
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        (container,) = template["spec"]["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])


def test_gpu_nodes_come_when_work_waits_for_them_within_bounds(cluster: dict[str, Any]) -> None:
    spec = cluster["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"  # the work of others does not push it over
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    for group in groups.values():
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    limits = {name: group["template"]["spec"]["containers"][0]["resources"]["limits"] for name, group in groups.items()}
    assert limits["gpu"]["nvidia.com/gpu"] == "1" and "nvidia.com/gpu" not in limits["cpu"]
    assert groups["gpu"]["template"]["spec"]["containers"][0]["image"].endswith("-cuda")


def test_versions_are_the_projects(cluster: dict[str, Any], templates: dict[str, dict[str, Any]]) -> None:
    assert f"ray=={cluster['spec']['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for template in templates.values():
        assert f":{version}-" in template["spec"]["containers"][0]["image"]


def test_secrets_are_named_and_never_told(
    templates: dict[str, dict[str, Any]], cluster: dict[str, Any], known_variables: set[str]
) -> None:
    for template in templates.values():
        for variable in template["spec"]["containers"][0].get("env", ()):
            assert variable["name"] in known_variables
            if re.search("SECRET|PASSWORD|_TOKEN|DATABASE|AUTH_STRING", variable["name"]):
                assert set(variable["valueFrom"]) == {"secretKeyRef"}
    for name in ("head", "gpu", "cpu", "prefect-worker"):  # all that read or write the bucket
        assert templates[name]["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "lsap-storage"}}]
    token = {each["name"]: each for each in templates["prefect-worker"]["spec"]["containers"][0]["env"]}
    reference = token["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": cluster["spec"]["authOptions"]["secretName"], "key": "auth_token"}


def test_the_job_asks_for_a_run_that_is_there(
    manifests: list[dict[str, Any]],
    cluster: dict[str, Any],
    check_command: Callable[[Sequence[str]], None],
    tmp_path: Path,
) -> None:
    (job,) = (document for document in manifests if document["kind"] == "RayJob")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    words = shlex.split(job["spec"]["entrypoint"])
    check_command(words)
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = head["containers"][0]["volumeMounts"]
    (volume,) = head["volumes"]
    assert volume["name"] == mount["name"]
    (runs,) = (document for document in manifests if document["kind"] == "ConfigMap")
    assert volume["configMap"]["name"] == runs["metadata"]["name"]
    folder, _, name = words[3].rpartition("/")
    assert folder == mount["mountPath"]
    for file, text in runs["data"].items():
        (tmp_path / file).write_text(text)
    run = InvertRun.read(str(tmp_path / name))
    run.resolve(Settings())  # which refuses what is not there
    workers = run.workers
    most = max(group["maxReplicas"] for group in cluster["spec"]["workerGroupSpecs"])
    assert workers.gpus_each == 1 and workers.count <= most


def test_commands_and_addresses_are_there(
    manifests: list[dict[str, Any]],
    cluster: dict[str, Any],
    templates: dict[str, dict[str, Any]],
    check_command: Callable[[Sequence[str]], None],
) -> None:
    for name in ("prefect", "prefect-worker"):
        check_command(templates[name]["spec"]["containers"][0]["command"])
    services = {document["metadata"]["name"] for document in manifests if document["kind"] == "Service"}
    known = {*services, f"{cluster['metadata']['name']}-head-svc"}
    asked = {host for each in templates.values() for host in re.findall(r"(?:://|=|')([a-z-]+):\d{4}", str(each))}
    assert asked == known
