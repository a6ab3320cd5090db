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
    run.resolve(Settings(ray_address="auto"))  # which refuses what is not there
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


# --- who reaches whom ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labels(
    manifests: list[dict[str, Any]], cluster: dict[str, Any], templates: dict[str, dict[str, Any]]
) -> dict[str, dict[str, str]]:
    """Labels of every pod, those of the cluster's nodes as KubeRay gives them."""
    found = {name: dict(template.get("metadata", {}).get("labels", {})) for name, template in templates.items()}
    name = cluster["metadata"]["name"]
    for group in ("head", *(group["groupName"] for group in cluster["spec"]["workerGroupSpecs"])):
        kind = "head" if group == "head" else "worker"
        of_group = "headgroup" if group == "head" else group
        given = {
            "ray.io/cluster": name,
            "ray.io/node-type": kind,
            "ray.io/group": of_group,
            "ray.io/is-ray-node": "yes",
        }
        found[group] |= given
    return found


def selected(labels: dict[str, dict[str, str]], selector: dict[str, str]) -> set[str]:
    return {name for name, has in labels.items() if selector.items() <= has.items()}


def variables(template: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in template["spec"]["containers"][0].get("env", ())}


def ports(template: dict[str, Any]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0].get("ports", ())}


def test_selectors_find_pods_with_the_ports_that_are_asked_for(
    manifests: list[dict[str, Any]], templates: dict[str, dict[str, Any]], labels: dict[str, dict[str, str]]
) -> None:
    for document in manifests:
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            (name,) = selected(labels, spec["selector"])
            for port in spec["ports"]:
                assert ports(templates[name])[port["targetPort"]] == port["port"]
        elif document["kind"] == "Deployment":
            name = document["metadata"]["name"]
            assert selected(labels, spec["selector"]["matchLabels"]) == {name}
        elif document["kind"] == "NetworkPolicy":
            (name,) = selected(labels, spec["podSelector"]["matchLabels"])
            for rule in spec["ingress"]:
                assert {port["port"] for port in rule["ports"]} <= set(ports(templates[name]).values())
                assert all(len(selected(labels, one["podSelector"]["matchLabels"])) == 1 for one in rule["from"])


def test_whoever_talks_to_prefect_is_let_in_and_can_say_who_it_is(
    manifests: list[dict[str, Any]], templates: dict[str, dict[str, Any]], labels: dict[str, dict[str, str]]
) -> None:
    (policy,) = (document["spec"] for document in manifests if document["kind"] == "NetworkPolicy")
    (rule,) = policy["ingress"]
    let_in = set[str]().union(*(selected(labels, one["podSelector"]["matchLabels"]) for one in rule["from"]))
    talking = {name for name, template in templates.items() if "PREFECT_API_URL" in variables(template)}
    assert let_in == talking == {"head", "prefect-worker"}
    wanted = variables(templates["prefect"])["PREFECT_SERVER_API_AUTH_STRING"]["valueFrom"]
    for name in talking:
        assert variables(templates[name])["PREFECT_API_AUTH_STRING"]["valueFrom"] == wanted


def test_every_secret_and_key_is_made_by_the_readme(
    deployments: Path, templates: dict[str, dict[str, Any]], cluster: dict[str, Any]
) -> None:
    """Also the token's: where a cluster names its secret, the operator makes none."""
    text = (deployments / "README.md").read_text().replace("\\\n", " ")
    made = {
        name: set(re.findall(r"--from-literal=([\w-]+)=", rest))
        for name, rest in re.findall(r"kubectl create secret generic (\S+)(.*)", text)
    }
    containers = [template["spec"]["containers"][0] for template in templates.values()]
    sources = [
        each["valueFrom"]["secretKeyRef"] for one in containers for each in one.get("env", ()) if "valueFrom" in each
    ]
    sources.append({"name": cluster["spec"]["authOptions"]["secretName"], "key": "auth_token"})
    assert [source for source in sources if source["key"] not in made[source["name"]]] == []
    assert {one["secretRef"]["name"] for each in containers for one in each.get("envFrom", ())} <= made.keys()
