"""What is needed to break things at exact moments: a store that reports and misbehaves, and machines that may die."""

from __future__ import annotations

import contextlib
import io
import runpy
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from domains.digits.data import load_split
from lsap_archive import Store, open_archive
from tests.flows.faults.fault_proxy import FaultProxy, StoreRequest, s3_client_environment
from tests.flows.faults.machines import Machines, MortalServer
from tests.flows.faults.outcome import FaultOutcome, Finished, Values, outcome_of, table
from tests.flows.ray_nodes import SOON, RayNodes

HERE = Path(__file__).parent
SEED = 20261124
FLOW, WORKER = "FLOWPROCESS", "WORKERPROCESS"  # access keys, by which the proxy tells them apart
NUM_IMAGES = 40
WORK = {"methods": "[lsap_e]", "shard_rows": 4, "report_images": 0}


# --- the table -----------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Known where this folder is named on the command line, as `make faults` does."""
    parser.addoption(
        "--fault-seed", type=int, default=SEED, help="decides where processes are killed and requests fail"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The fault table of this run, in the order of its tests."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    found = [value for report in reports for name, value in report.user_properties if name == "fault"]
    if found:
        terminalreporter.section(f"faults, seed {terminalreporter.config.getoption('--fault-seed', SEED)}")
        for line in table(FaultOutcome(**values) for values in found):
            terminalreporter.line(line)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[FaultOutcome], None]:
    """Puts an outcome into the table, then checks that it cost nothing."""

    def add(outcome: FaultOutcome) -> None:
        request.node.user_properties.append(("fault", asdict(outcome)))
        outcome.check()

    return add


@pytest.fixture(scope="package")
def fault_seed(request: pytest.FixtureRequest) -> int:
    seed: int = request.config.getoption("--fault-seed", SEED)
    return seed


# --- machines and a store ------------------------------------------------------------------------------


@pytest.fixture(scope="package")
def proxy(object_store: Any) -> Iterator[FaultProxy]:
    """Between all commands and workers of this folder and the S3 server."""
    proxy = FaultProxy(object_store.endpoint)
    yield proxy
    proxy.close()


@pytest.fixture(scope="package")
def nodes(fork_server: Any, worker_server: Any, proxy: FaultProxy) -> Iterator[Machines]:
    """Two machines with a worker each; the head has no room for work."""
    environment = s3_client_environment(proxy.endpoint, WORKER)
    cluster = RayNodes(fork_server, worker_server, environment=environment, num_cpus=0, _system_config=SOON)
    with contextlib.closing(cluster):
        yield Machines(cluster, [cluster.add(), cluster.add()])


@pytest.fixture(scope="package")
def mortal_server(
    fork_server: Any, prefect_server: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MortalServer]:
    """A server of this folder's own, on a copy of the other one's database: making one takes half a minute."""
    home = tmp_path_factory.mktemp("mortal")
    with (
        contextlib.closing(sqlite3.connect(prefect_server.log.parent / "prefect.db")) as source,
        contextlib.closing(sqlite3.connect(home / "prefect.db")) as copy,
    ):
        source.backup(copy)
    environment = {"PREFECT_HOME": str(home), "PREFECT_SERVER_UI_ENABLED": "false"}
    environment |= {
        f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false"
        for service in ("SCHEDULER", "LATE_RUNS", "CANCELLATION_CLEANUP")
    }
    ours, theirs = fork_server.Pipe()
    process = fork_server.Process(
        target=runpy.run_path,
        args=(str(HERE / "prefect_servers.py"),),
        kwargs={
            "init_globals": {"PIPE": theirs, "ENVIRONMENT": environment},
            "run_name": "__main__",
        },
    )
    process.start()
    theirs.close()
    server = MortalServer(f"http://127.0.0.1:{ours.recv()}/api", ours)
    server.start()
    yield server
    ours.close()
    process.join(60)
    assert process.exitcode == 0


# --- work ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Commands that work on `source`, through the proxy; archives are read past it."""

    lsap: Any
    proxy: FaultProxy
    source: str
    options: Mapping[str, Any]

    def invert(self, archive: str, **fields: Any) -> Any:
        return self.lsap.invert("--json", **{"source": self.source, "archive": archive, **WORK, **fields})

    def against(self, server: MortalServer, **variables: str) -> Bench:
        """The same commands, reporting to another Prefect server."""
        return self.with_variables(PREFECT_API_URL=server.url, **variables)

    def with_variables(self, **variables: str) -> Bench:
        """The same commands, with further variables."""
        return replace(self, lsap=self.lsap.with_variables(**variables))

    def store(self, archive: str) -> Store:
        return Store.from_url(archive, self.options)

    def values(self, archive: str) -> Values:
        return Values.of(open_archive(archive, storage_options=self.options))

    def finished_shards(self, archive: str) -> Finished:
        return Finished(self.store(archive), len(self.proxy.log))

    def outcome(
        self,
        fault: str,
        points: int,
        archive: str,
        undisturbed: Undisturbed,
        recomputed: int,
        *,
        has_retired: bool = False,
    ) -> FaultOutcome:
        options = self.options if "://" in archive else {}
        return outcome_of(fault, points, archive, options, undisturbed.values, recomputed, has_retired=has_retired)


@pytest.fixture(scope="package")
def bench(
    lsap: Any,
    fork_server: Any,
    config: Path,
    nodes: Machines,
    proxy: FaultProxy,
    object_store: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bench:
    """Forty digits in the bucket, and commands that join the cluster."""
    options = {"key": "who", "secret": "reads", "endpoint_url": object_store.endpoint}
    files = fsspec.filesystem("s3", **options, use_listings_cache=False)
    split = load_split("test")
    for row in range(NUM_IMAGES):
        file = io.BytesIO()
        Image.fromarray(split.images[row]).save(file, "PNG")
        files.pipe_file(f"lsap/faults/images/{row:04d}-{split.labels[row]}.png", file.getvalue())
    environment = {"LSAP_RAY_ADDRESS": nodes.cluster.address, **s3_client_environment(proxy.endpoint, FLOW)}
    commands = lsap.with_variables(**environment)
    return Bench(commands, proxy, "s3://lsap/faults/images", options)


@dataclass(frozen=True)
class Undisturbed:
    """What an archive shows after a run that nobody disturbed, and what the store was asked on the way."""

    values: Values
    requests: list[StoreRequest]
    archive: str
    members: Mapping[str, set[str]]


@pytest.fixture(scope="package")
def undisturbed(bench: Bench) -> Undisturbed:
    """The run that all others are compared with."""
    url, start = "s3://lsap/faults/undisturbed", len(bench.proxy.log)
    finished = bench.invert(url).wait(90)
    assert finished.code == 0, finished.err
    requests = bench.proxy.log[start:]
    members: dict[str, set[str]] = {}
    for row in open_archive(url, storage_options=bench.options).rows().to_pylist():
        marker = f"runs/{row['run_id']}/_commit/{row['shard']:05d}.json"
        members.setdefault(marker, set()).add(row["uri"].removeprefix("s3://"))
    return Undisturbed(bench.values(url), requests, url.removeprefix("s3://"), members)
