"""What KubeRay's operator refuses although its schemas allow it: the rules of versions 1.6 and 1.7, in our own words.

The operator checks a RayCluster and a RayJob once more when it sees them (`ValidateRayClusterSpec` and its like, in its
`validation.go`): what breaks a rule is taken by `kubectl apply`, and nothing ever comes of it.
Feature gates are off, whatever their default.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

Document = dict[str, Any]
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
LONGEST_CLUSTER, LONGEST_JOB = 53, 47  # characters: what the operator appends has to fit a label of 63
GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")
MANAGED = "KUBERAY_GEN_AUTOSCALER_START_CMD"


# --- clusters -----------------------------------------------------------------------------------------


def groups_of(spec: Document) -> list[Document]:
    return [spec["headGroupSpec"], *spec.get("workerGroupSpecs", ())]


def containers_of(group: Document) -> list[Document]:
    found: list[Document] = group["template"]["spec"].get("containers") or []
    return found


def head_variables(spec: Document) -> dict[str, Any]:
    containers = containers_of(spec["headGroupSpec"])
    return {each["name"]: each.get("value") for each in containers[0].get("env", ())} if containers else {}


def has_new_autoscaler(spec: Document) -> bool:
    asked = spec.get("autoscalerOptions", {}).get("version") == "v2"
    return bool(spec.get("enableInTreeAutoscaling")) and asked


def knows_of_idle_groups(spec: Document) -> bool:
    return has_new_autoscaler(spec) or head_variables(spec).get("RAY_enable_autoscaler_v2") in ("1", "true")


def version_of(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def has_resources_in_one_place(group: Document) -> bool:
    started = {"num-cpus", "num-gpus", "memory", "resources"} & group.get("rayStartParams", {}).keys()
    return not (started and group.get("resources"))


def has_sound_bounds(group: Document, spec: Document) -> bool:
    low, high = group.get("minReplicas"), group.get("maxReplicas")
    if low is None or high is None:
        is_free = bool(spec.get("enableInTreeAutoscaling"))
        return is_free and (low or 0) >= 0 and (high or 0) >= 0
    return bool(0 <= low <= high)


def has_sound_auth(spec: Document) -> bool:
    auth = spec.get("authOptions") or {}
    if auth.get("mode") != "token":
        return not auth.get("enableK8sTokenAuth")
    version = version_of(spec.get("rayVersion", ""))
    if auth.get("enableK8sTokenAuth"):
        return version >= (2, 55, 0) and not auth.get("secretName")
    return version >= (2, 52, 0)


def has_sound_redis(spec: Document) -> bool:
    head, variables = spec["headGroupSpec"].get("rayStartParams", {}), head_variables(spec)
    if "redis-username" in head or "REDIS_USERNAME" in variables or "RAY_REDIS_ADDRESS" in variables:
        return False
    return "gcsFaultToleranceOptions" not in spec or not ("redis-password" in head or "REDIS_PASSWORD" in variables)


def has_one_autoscaler(spec: Document) -> bool:
    told = head_variables(spec).get("RAY_enable_autoscaler_v2")
    if not spec.get("enableInTreeAutoscaling"):
        return told not in ("1", "true")
    return told is None or "version" not in spec.get("autoscalerOptions", {})


def restarts_rightly(spec: Document) -> bool:
    policies = {group["template"]["spec"].get("restartPolicy", "Never") for group in groups_of(spec)}
    return not has_new_autoscaler(spec) or policies == {"Never"}


CLUSTER_RULES: dict[str, Callable[[Document], bool]] = {
    "every group has a container": lambda spec: all(containers_of(group) for group in groups_of(spec)),
    "resources stand in rayStartParams or in resources": lambda spec: all(
        has_resources_in_one_place(group) for group in groups_of(spec)
    ),
    "labels are no parameter of ray start": lambda spec: all(
        "labels" not in group.get("rayStartParams", {}) for group in groups_of(spec)
    ),
    "labels are labels": lambda spec: all(
        LABEL_VALUE.fullmatch(str(value)) and LABEL_VALUE.fullmatch(key.rpartition("/")[2])
        for group in groups_of(spec)
        for key, value in group.get("labels", {}).items()
    ),
    "0 <= minReplicas <= maxReplicas, both told without the autoscaler": lambda spec: all(
        has_sound_bounds(group, spec) for group in spec.get("workerGroupSpecs", ())
    ),
    "no group is suspended": lambda spec: not any(group.get("suspend") for group in spec.get("workerGroupSpecs", ())),
    "idle times and priorities of groups need autoscaler v2": lambda spec: (
        knows_of_idle_groups(spec)
        or not any({"idleTimeoutSeconds", "priority"} & group.keys() for group in spec.get("workerGroupSpecs", ()))
    ),
    "the idle time is not negative": lambda spec: spec.get("autoscalerOptions", {}).get("idleTimeoutSeconds", 0) >= 0,
    "the autoscaler's command is the operator's": lambda spec: (
        MANAGED not in [each["name"] for each in spec.get("autoscalerOptions", {}).get("env", ())]
    ),
    "one place says which autoscaler": has_one_autoscaler,
    "autoscaler v2 restarts no pod": restarts_rightly,
    "redis is told in gcsFaultToleranceOptions": has_sound_redis,
    "a token needs Ray 2.52, and one source": has_sound_auth,
    "nothing needs a feature gate": lambda spec: not any(name in spec for name in GATED),
    "upgrades are Recreate or None": lambda spec: (
        spec.get("upgradeStrategy", {}).get("type", "None") in ("Recreate", "None")
    ),
}


# --- jobs ---------------------------------------------------------------------------------------------


def has_a_cluster(spec: Document) -> bool:
    if "clusterSelector" in spec:
        return bool(spec["clusterSelector"].get("ray.io/cluster"))
    return "rayClusterSpec" in spec and not list(broken(spec["rayClusterSpec"], CLUSTER_RULES))


def leaves_the_cluster_alone(spec: Document) -> bool:
    if "clusterSelector" not in spec:
        return True
    is_tried_again = spec.get("backoffLimit", 0) > 0
    return not (is_tried_again or spec.get("suspend") or spec.get("submissionMode") == "SidecarMode")


def is_submitted_rightly(spec: Document) -> bool:
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode == "InteractiveMode":
        return not spec.get("backoffLimit", 0) > 0
    return mode != "SidecarMode" or not {"submitterPodTemplate", "submitterConfig"} & spec.keys()


JOB_RULES: dict[str, Callable[[Document], bool]] = {
    "a time to live belongs to a job that shuts down after itself": lambda spec: (
        not spec.get("ttlSecondsAfterFinished") or bool(spec.get("shutdownAfterJobFinishes"))
    ),
    "a time to live is not negative": lambda spec: spec.get("ttlSecondsAfterFinished", 0) >= 0,
    "what is suspended shuts down": lambda spec: not spec.get("suspend") or bool(spec.get("shutdownAfterJobFinishes")),
    "a job has a cluster, its own or one that it names": has_a_cluster,
    "a job on a cluster that it names is neither tried again nor suspended": leaves_the_cluster_alone,
    "modes of submission have what they can do": is_submitted_rightly,
    "deadlines are positive": lambda spec: all(
        spec.get(name, 1) > 0 for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds")
    ),
    "tries are not negative": lambda spec: spec.get("backoffLimit", 0) >= 0,
    "the runtime environment is YAML": lambda spec: isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict),
    "deletion rules need a feature gate": lambda spec: "deletionStrategy" not in spec,
}


def broken(spec: Document, rules: dict[str, Callable[[Document], bool]]) -> Iterator[str]:
    yield from (rule for rule, holds in rules.items() if not holds(spec))


def has_a_name(document: Document) -> bool:
    name = document["metadata"]["name"]
    longest = LONGEST_JOB if document["kind"] == "RayJob" else LONGEST_CLUSTER
    return len(name) <= longest and DNS_LABEL.fullmatch(name) is not None


def refusals(document: Document) -> list[str]:
    """The rules that the operator would refuse it by."""
    named = [] if has_a_name(document) else ["a name is a short DNS label"]
    return [*named, *broken(document["spec"], JOB_RULES if document["kind"] == "RayJob" else CLUSTER_RULES)]


# --- the manifests ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rays(deployments: Path) -> dict[str, Document]:
    """The manifests of KubeRay's own kinds, by kind."""
    files = sorted((deployments / "kubernetes").glob("*.yaml"))
    documents = [document for file in files for document in yaml.safe_load_all(file.read_text())]
    return {each["kind"]: each for each in documents if each["apiVersion"].startswith("ray.io/")}


def test_the_operator_takes_the_manifests(rays: dict[str, Document]) -> None:
    assert {kind: refusals(document) for kind, document in rays.items()} == {"RayCluster": [], "RayJob": []}


WORKER = "spec.workerGroupSpecs.0."
HEAD = "spec.headGroupSpec."
CONTAINER = f"{HEAD}template.spec.containers.0."
BROKEN: list[tuple[str, str, dict[str, Any]]] = [
    ("RayCluster", "a name is a short DNS label", {"metadata.name": "n" * 54}),
    ("RayCluster", "a name is a short DNS label", {"metadata.name": "1st"}),
    ("RayCluster", "every group has a container", {f"{WORKER}template.spec.containers": []}),
    ("RayCluster", "resources stand in rayStartParams or in resources", {f"{HEAD}resources": {"CPU": "1"}}),
    ("RayCluster", "labels are no parameter of ray start", {f"{WORKER}rayStartParams.labels": "a=b"}),
    ("RayCluster", "labels are labels", {f"{WORKER}labels": {"a": "not a label"}}),
    ("RayCluster", "0 <= minReplicas <= maxReplicas, both told without the autoscaler", {f"{WORKER}minReplicas": 9}),
    ("RayCluster", "no group is suspended", {f"{WORKER}suspend": True}),
    ("RayCluster", "idle times and priorities of groups need autoscaler v2", {f"{WORKER}idleTimeoutSeconds": 60}),
    ("RayCluster", "the idle time is not negative", {"spec.autoscalerOptions.idleTimeoutSeconds": -1}),
    ("RayCluster", "the autoscaler's command is the operator's", {"spec.autoscalerOptions.env": [{"name": MANAGED}]}),
    (
        "RayCluster",
        "one place says which autoscaler",
        {
            "spec.autoscalerOptions.version": "v2",
            f"{CONTAINER}env": [{"name": "RAY_enable_autoscaler_v2", "value": "true"}],
        },
    ),
    (
        "RayCluster",
        "autoscaler v2 restarts no pod",
        {"spec.autoscalerOptions.version": "v2", f"{WORKER}template.spec.restartPolicy": "Always"},
    ),
    ("RayCluster", "redis is told in gcsFaultToleranceOptions", {f"{CONTAINER}env": [{"name": "RAY_REDIS_ADDRESS"}]}),
    ("RayCluster", "a token needs Ray 2.52, and one source", {"spec.rayVersion": "2.51.9"}),
    ("RayCluster", "a token needs Ray 2.52, and one source", {"spec.authOptions.enableK8sTokenAuth": True}),
    ("RayCluster", "nothing needs a feature gate", {"spec.networkPolicy": {}}),
    ("RayCluster", "upgrades are Recreate or None", {"spec.upgradeStrategy": {"type": "NewCluster"}}),
    ("RayJob", "a name is a short DNS label", {"metadata.name": "n" * 48}),
    ("RayJob", "a time to live belongs to a job that shuts down after itself", {"spec.ttlSecondsAfterFinished": 86400}),
    ("RayJob", "a time to live is not negative", {"spec.ttlSecondsAfterFinished": -1}),
    ("RayJob", "what is suspended shuts down", {"spec.suspend": True}),
    ("RayJob", "a job has a cluster, its own or one that it names", {"spec.clusterSelector": {"cluster": "lsap"}}),
    ("RayJob", "a job on a cluster that it names is neither tried again nor suspended", {"spec.backoffLimit": 2}),
    (
        "RayJob",
        "modes of submission have what they can do",
        {"spec.submissionMode": "InteractiveMode", "spec.backoffLimit": 1},
    ),
    ("RayJob", "deadlines are positive", {"spec.activeDeadlineSeconds": 0}),
    ("RayJob", "tries are not negative", {"spec.backoffLimit": -1}),
    ("RayJob", "the runtime environment is YAML", {"spec.runtimeEnvYAML": "- 1"}),
    ("RayJob", "deletion rules need a feature gate", {"spec.deletionStrategy": {}}),
]


@pytest.mark.parametrize(("kind", "rule", "changes"), BROKEN)
def test_each_rule_refuses_what_breaks_it(
    rays: dict[str, Document], kind: str, rule: str, changes: dict[str, Any]
) -> None:
    document = copy.deepcopy(rays[kind])
    for path, value in changes.items():
        *way, last = path.split(".")
        place: Any = document
        for name in way:
            place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
        place[last] = value
    assert rule in refusals(document)


def test_no_rule_is_left_untried() -> None:
    tried = {rule for _, rule, _ in BROKEN}
    assert tried == {"a name is a short DNS label", *CLUSTER_RULES, *JOB_RULES}
