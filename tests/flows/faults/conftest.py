"""What is needed to break things at exact moments: a store that reports and misbehaves, and machines that may die."""

from __future__ import annotations

import contextlib
import io
import random
import runpy
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from domains.digits.data import load_split
from tests.flows.faults.fault_proxy import FaultProxy, s3_client_environment
from tests.flows.faults.jumping_clock import JumpingClock
from tests.flows.faults.machines import Machines, MortalServer
from tests.flows.faults.outcome import FaultOutcome, table
from tests.flows.faults.work import FLOW, WORKER, Bench, Commands, Undisturbed, Work
from tests.flows.ray_nodes import SOON, RayNodes

HERE = Path(__file__).parent
SEED = 20261124
NUM_IMAGES = 40


# --- the table -----------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Known where this folder is named on the command line, as `make faults` does."""
    parser.addoption(
        "--fault-seed", type=int, default=SEED, help="decides where processes are killed and requests fail"
    )
    parser.addoption("--all-faults", action="store_true", help="every fault at all its moments, not a few of them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every day a few of the faults are enough."""
    left_out = [item for item in items if item.get_closest_marker("all_faults")]
    if left_out and not config.getoption("--all-faults", False):
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The fault table of this run, in the order of its tests."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    reports.sort(key=lambda report: report.start)
    found = [value for report in reports for name, value in report.user_properties if name == "fault"]
    if found:
        terminalreporter.section(f"faults, seed {terminalreporter.config.getoption('--fault-seed', SEED)}")
        for line in table(FaultOutcome(**values) for values in found):
            terminalreporter.line(line)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[Sequence[FaultOutcome]], None]:
    """Puts outcomes of one fault into the table, then checks that they cost nothing."""

    def add(outcomes: Sequence[FaultOutcome]) -> None:
        total = FaultOutcome.total(outcomes)
        request.node.user_properties.append(("fault", asdict(total)))
        total.check()

    return add


@pytest.fixture(scope="package")
def fault_seed(request: pytest.FixtureRequest) -> int:
    seed: int = request.config.getoption("--fault-seed", SEED)
    return seed


@pytest.fixture
def chosen(request: pytest.FixtureRequest, fault_seed: int) -> random.Random:
    """Draws the moments of one test."""
    return random.Random(f"{fault_seed} {request.node.name}")


@pytest.fixture(scope="package")
def how_many(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """Of two numbers of moments the one for every day, or with `--all-faults`, as in `make faults`, the larger one."""
    is_whole = request.config.getoption("--all-faults", False)
    return lambda few, all_of_them: all_of_them if is_whole else few


# --- machines and a store ------------------------------------------------------------------------------


@pytest.fixture(scope="package")
def proxy(object_store: Any) -> Iterator[FaultProxy]:
    """Between all commands and workers of this folder and the S3 server."""
    proxy = FaultProxy(object_store.endpoint)
    yield proxy
    proxy.close()


@pytest.fixture(scope="package")
def clock(tmp_path_factory: pytest.TempPathFactory) -> JumpingClock:
    """That of the machines on which commands and workers are."""
    return JumpingClock(tmp_path_factory.mktemp("clock") / "hours")


@pytest.fixture(scope="package")
def nodes(fork_server: Any, worker_server: Any, proxy: FaultProxy, clock: JumpingClock) -> Iterator[Machines]:
    """Two machines with a worker each; the head has no room for work."""
    environment = {**s3_client_environment(proxy.endpoint, WORKER), **clock.environment}
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


@pytest.fixture(scope="package")
def commands_on_proxy(lsap: Any, nodes: Machines, proxy: FaultProxy, clock: JumpingClock) -> Any:
    """Commands that join the cluster."""
    environment = {"LSAP_RAY_ADDRESS": nodes.cluster.address, **s3_client_environment(proxy.endpoint, FLOW)}
    environment |= clock.environment
    return lsap.with_variables(**environment)


@pytest.fixture(scope="package")
def files(object_store: Any) -> Any:
    """The bucket's objects, past the proxy."""
    options = {"key": "who", "secret": "reads", "endpoint_url": object_store.endpoint}
    return fsspec.filesystem("s3", **options, use_listings_cache=False)


@pytest.fixture(scope="package")
def whole_bench(
    commands_on_proxy: Any, proxy: FaultProxy, files: Any, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    """Forty digits in the bucket, and commands of no test."""
    split = load_split("test")
    for row in range(NUM_IMAGES):
        file = io.BytesIO()
        Image.fromarray(split.images[row]).save(file, "PNG")
        files.pipe_file(f"lsap/faults/images/{row:04d}-{split.labels[row]}.png", file.getvalue())
    folder = tmp_path_factory.mktemp("requests")
    return Bench(commands_on_proxy, proxy, "s3://lsap/faults/images", files, folder, Commands())


@pytest.fixture
def bench(whole_bench: Bench, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The same with commands of one test, none of which outlives it."""
    bench = whole_bench.of(Commands())
    yield bench
    bench.commands.end()


@pytest.fixture(scope="package")
def undisturbed(whole_bench: Bench) -> Undisturbed:
    """The inversion that all others are compared with."""
    return whole_bench.undisturbed("invert")


@pytest.fixture(scope="package")
def undisturbed_edit(whole_bench: Bench, undisturbed: Undisturbed) -> Undisturbed:
    """The edit, of the undisturbed inversion."""
    return whole_bench.undisturbed("edit", undisturbed)


@pytest.fixture(scope="package")
def undisturbed_evaluation(whole_bench: Bench, undisturbed: Undisturbed) -> Undisturbed:
    """The evaluation, of the undisturbed inversion."""
    return whole_bench.undisturbed("evaluate", undisturbed)


@pytest.fixture(scope="package")
def undisturbed_refinement(whole_bench: Bench, undisturbed: Undisturbed) -> Undisturbed:
    """The refinement, of the undisturbed inversion."""
    return whole_bench.undisturbed("refine", undisturbed)


UNDISTURBED = {
    "invert": "undisturbed",
    "refine": "undisturbed_refinement",
    "edit": "undisturbed_edit",
    "evaluate": "undisturbed_evaluation",
}


@pytest.fixture
def work(request: pytest.FixtureRequest, bench: Bench) -> Work:
    """One of the commands that work shard by shard, by its verb: parametrized indirectly."""
    return Work(bench, request.getfixturevalue(UNDISTURBED[request.param]))


@pytest.fixture
def inversion(bench: Bench, undisturbed: Undisturbed) -> Work:
    """The first of them."""
    return Work(bench, undisturbed)
