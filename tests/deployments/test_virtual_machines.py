"""ray_cluster.yaml, as `ray up` itself checks it before it starts a machine."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster(deployments: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((deployments / "ray_cluster.yaml").read_text())
    return document


def test_ray_up_takes_it(cluster: dict[str, Any]) -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(prepare_config({**cluster, "idle_timeout": 5}))


def test_nodes_start_what_there_is(cluster: dict[str, Any], check_command: Callable[[Sequence[str]], None]) -> None:
    for part in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert [command.split()[1] for command in cluster[part]] == ["stop", "start"]
        for command in cluster[part]:
            check_command(shlex.split(command.replace("$RAY_HEAD_IP", "head")))


def test_gpu_machines_come_with_the_work_and_hold_no_key(
    cluster: dict[str, Any], known_variables: set[str], deployments: Path
) -> None:
    types = cluster["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu"]["min_workers"] == 0 and types["gpu"]["max_workers"] == cluster["max_workers"]
    for node in types.values():
        assert node["node_config"]["IamInstanceProfile"] == {"Name": "lsap-storage"}
    options = [shlex.split(option) for option in cluster["docker"]["run_options"]]
    names = {words[1].split("=")[0] for words in options if words[0] == "--env"}
    assert names and names <= known_variables
    assert "AWS_" not in (deployments / "ray_cluster.yaml").read_text()
