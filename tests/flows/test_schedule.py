"""`deployments/prefect.yaml` as it is: applied, run by a worker, fired by its schedule, and what a page of a run shows.

The tests that need the server are one story, in order.
"""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.schedules import CronSchedule
from prefect.utilities.callables import parameter_schema

from flows.commands.runs import FLOWS
from lsap_archive import open_archive

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = ROOT / "deployments" / "prefect.yaml"
PLACE = "s3://lsap/scheduled"
METHODS = ("psp", "lsap_e")
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


# --- what the file says ------------------------------------------------------------------------------


def deployments() -> dict[str, dict[str, Any]]:
    """Deployments as the file has them with LSAP_DATA filled in, by flow and name."""
    written = yaml.safe_load(DEPLOYMENTS.read_text().replace("{{ $LSAP_DATA }}", PLACE))
    return {f"{each['entrypoint'].split('.')[1]}/{each['name']}": each for each in written["deployments"]}


def flow_of(deployment: dict[str, Any]) -> Flow[..., Any]:
    module, _, name = deployment["entrypoint"].rpartition(".")
    found: Flow[..., Any] = getattr(importlib.import_module(module), name)
    return found


@pytest.mark.parametrize("name", deployments())
def test_a_deployment_asks_for_something_that_can_be_run(name: str) -> None:
    deployment = deployments()[name]
    flow = flow_of(deployment)
    schedules = deployment.get("schedules", [])
    for parameters in [deployment["parameters"], *(each["parameters"] for each in schedules if "parameters" in each)]:
        run = flow.validate_parameters(parameters)["run"]
        assert PLACE in run.model_dump_json()
    for each in schedules:
        CronSchedule(cron=each["cron"], timezone=each["timezone"])
    assert len({each["slug"] for each in schedules}) == len(schedules)
    assert deployment["description"] and "lsap" in deployment["tags"]
    assert deployment["concurrency_limit"]["limit"] == 1
    assert deployment["version"] == metadata.version("lsap")


def test_every_flow_of_the_command_line_has_a_deployment() -> None:
    assert {name.split("/")[0] for name in deployments()} == {*FLOWS, "reproduce"}


@pytest.mark.parametrize("name", deployments())
def test_every_field_of_the_form_is_described(name: str) -> None:
    """A field says what it is itself, or all its fields do, and then what they are together."""
    schema = parameter_schema(flow_of(deployments()[name]).fn).model_dump_for_openapi()
    definitions = schema["definitions"]
    bare = [
        f"{kind}.{field}"
        for kind, definition in {"flow": schema, **definitions}.items()
        for field, shown in definition["properties"].items()
        if not (
            shown.get("description") or definitions.get(shown.get("$ref", "").rpartition("/")[2], {}).get("description")
        )
    ]
    assert bare == []


# --- what comes of it --------------------------------------------------------------------------------


@dataclass
class Scheduled:
    """Deployments on the session's server, a worker that runs them, and a bucket to work on."""

    api: SyncPrefectClient
    options: dict[str, Any]
    save_digits: Callable[[Path, Iterable[int]], list[str]]
    folder: Path
    names: list[str] = field(default_factory=list)

    def add_images(self, rows: Iterable[int]) -> None:
        names = self.save_digits(self.folder, rows)
        fsspec.filesystem("s3", **self.options, use_listings_cache=False).put(
            [str(self.folder / name) for name in names], [f"{PLACE}/images/{name}" for name in names]
        )
        self.names += names

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = (
            open_archive(f"{PLACE}/archive", storage_options=self.options).rows(history=True).to_pylist()
        )
        return rows

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.request("GET", f"/deployments/name/{name}").json()
        return found

    def flow_runs(self, **wanted: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api.request("POST", "/flow_runs/filter", json={"flow_runs": wanted}).json()
        return found

    def wait_for(self, count: int, **wanted: Any) -> list[dict[str, Any]]:
        """The flow runs, once there are so many of them and all have ended."""
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            runs = self.flow_runs(**wanted)
            if len(runs) >= count and all(run["state_type"] in ENDED for run in runs):
                return runs
            time.sleep(0.3)
        raise TimeoutError(f"{count} runs have not ended: {self.flow_runs(**wanted)}")

    def artifacts(self, run_id: str) -> dict[str, dict[str, Any]]:
        wanted = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
        found = self.api.request("POST", "/artifacts/filter", json=wanted).json()
        return {each["key"]: each for each in found if each["key"]}


@pytest.fixture(scope="module")
def scheduled(
    prefect: Any,
    prefect_server: Any,
    ray_cluster: Any,
    s3_endpoint: str,
    s3_credentials: tuple[str, str],
    save_digits: Callable[[Path, Iterable[int]], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Scheduled]:
    folder = tmp_path_factory.mktemp("scheduled")
    key, secret = s3_credentials
    environment = {
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "LSAP_RAY_ADDRESS": ray_cluster.address,
        "RAY_AUTH_MODE": "disabled",
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
    }
    made = prefect("--no-prompt", "work-pool", "create", "lsap", "--type", "process")
    assert made.code == 0, made.out + made.err
    worker = prefect.start("--no-prompt", "worker", "start", "--pool", "lsap", **environment)
    try:
        apply = ("deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
        applied = prefect("--no-prompt", *apply, **environment, LSAP_DATA=PLACE)
        assert applied.code == 0, applied.out + applied.err
        options = {"key": key, "secret": secret, "endpoint_url": s3_endpoint}
        with SyncPrefectClient(api=prefect_server.url) as api:
            yield Scheduled(api, options, save_digits, folder / "images")
    finally:
        os.kill(worker.pid, signal.SIGINT)
        worker.process.join(20)
        if not worker.has_ended:
            worker.kill()


@pytest.fixture(scope="module")
def triggered(scheduled: Scheduled) -> list[dict[str, Any]]:
    """Two runs asked for at once, over the first six images."""
    scheduled.add_images(range(6))
    identity = scheduled.deployment("invert/nightly")["id"]
    ids = []
    for _ in range(2):
        asked = {"state": {"type": "SCHEDULED"}}
        ids.append(scheduled.api.request("POST", f"/deployments/{identity}/create_flow_run", json=asked).json()["id"])
    return scheduled.wait_for(2, id={"any_": ids})


@pytest.mark.ray
@pytest.mark.object_store
@pytest.mark.slow
def test_of_two_runs_of_a_deployment_one_is_enough(scheduled: Scheduled, triggered: list[dict[str, Any]]) -> None:
    assert sorted(run["state_type"] for run in triggered) == ["CANCELLED", "COMPLETED"]
    rows = Counter((row["method"], row["image_id"], row["status"]) for row in scheduled.rows())
    assert rows == {(method, name, "ok"): 1 for method in METHODS for name in scheduled.names}


@pytest.mark.ray
@pytest.mark.object_store
@pytest.mark.slow
def test_the_page_of_a_run_shows_progress_table_pictures_and_places(
    scheduled: Scheduled, triggered: list[dict[str, Any]]
) -> None:
    (done,) = [run for run in triggered if run["state_type"] == "COMPLETED"]
    shown = scheduled.artifacts(done["id"])
    assert (shown["progress"]["type"], shown["progress"]["data"]) == ("progress", 100.0)
    assert "12 of 12" in shown["progress"]["description"]
    text = shown["inversion"]["data"]
    assert shown["inversion"]["description"] == "6 images; this command: 12 ok"
    assert "| LSAP\\_E" in text or "| LSAP_E" in text
    assert "![contact sheet](data:image/jpeg;base64,/9j/" in text
    assert f"`{PLACE}/archive`" in text and f"`{PLACE}/archive/reports/invert.html`" in text


@pytest.mark.ray
@pytest.mark.object_store
@pytest.mark.slow
def test_the_schedule_fires_and_finds_exactly_the_new_images(
    scheduled: Scheduled, triggered: list[dict[str, Any]]
) -> None:
    before = {row["run_id"] for row in scheduled.rows()}
    known = list(scheduled.names)
    scheduled.add_images(range(6, 9))
    deployment = scheduled.deployment("invert/nightly")
    (nightly,) = [each for each in deployment["schedules"] if each["slug"] == "nightly"]
    assert (nightly["active"], nightly["schedule"]["cron"]) == (True, "0 2 * * *")
    schedule = f"/deployments/{deployment['id']}/schedules/{nightly['id']}"
    often = {"schedule": {"interval": 10, "anchor_date": "2026-01-01T00:00:00Z", "timezone": "UTC"}}
    scheduled.api.request("PATCH", schedule, json=often)
    fired = {"tags": {"all_": ["auto-scheduled", "inversion"]}, "state": {"type": {"not_any_": ["SCHEDULED"]}}}
    while not scheduled.flow_runs(**fired):
        time.sleep(0.2)
    scheduled.api.request("PATCH", schedule, json={"active": False})
    done = [run for run in scheduled.wait_for(1, **fired) if run["state_type"] == "COMPLETED"]
    new = [row for row in scheduled.rows() if row["run_id"] not in before]
    added = [name for name in scheduled.names if name not in known]
    assert Counter((row["method"], row["image_id"]) for row in new) == {
        (method, name): 1 for method in METHODS for name in added
    }
    assert len(scheduled.rows()) == len(METHODS) * len(scheduled.names)
    assert scheduled.artifacts(done[0]["id"])["inversion"]["description"] == "9 images; this command: 6 ok"


@pytest.mark.ray
@pytest.mark.object_store
@pytest.mark.slow
def test_a_run_with_nothing_to_do_says_so_and_starts_no_worker(
    scheduled: Scheduled, triggered: list[dict[str, Any]], lsap_on_cluster: Any, prefect_server: Any, tmp_path: Path
) -> None:
    """Given on the command line, with the parameters of the deployment."""
    file = tmp_path / "nightly.yaml"
    file.write_text(yaml.safe_dump(scheduled.deployment("invert/nightly")["parameters"]["run"]))
    again = lsap_on_cluster("run", "invert", str(file))
    assert again.code == 0, again.err
    assert "this command: nothing was left to do" in again.out
    tasks = prefect_server.task_runs_of(again)
    assert tasks and not [task for task in tasks if task["name"].startswith("embed")]
    shown = scheduled.artifacts(tasks[0]["flow_run_id"])
    assert shown["inversion"]["description"].endswith("this command: nothing was left to do")
