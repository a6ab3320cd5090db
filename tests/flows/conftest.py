"""What the flow runs against: one Prefect server, one Ray and one S3 server, all on this machine and of our own.

Commands run as processes of their own, so that they can be killed. To spare each the seconds of its imports they
are forked from a process that has them behind it (`multiprocessing`'s fork server), and Ray's workers from another
(`forked_workers.py`); `test_cli.py` starts some commands from nothing, as a shell does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from domains.digits.data import load_split
from flows.parameters.invert import InvertRun
from tasks.inversion.plan import InversionStage
from tasks.inversion.request import InversionRequest
from tasks.settings import Settings
from tests.flows.forked_workers import WorkerServer
from tests.flows.ray_nodes import RayNodes
from tests.planned import Planned

HERE = Path(__file__).parent
ACCESS_KEY = "AKIATESTFLOWSONLY"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/never-to-be-kept"
# Work small enough for a test; every command of one comparison uses the same.
SMALL = """\
domain: digits
methods: [stylegan2_w_plus, lsap_o_w_plus]
shard_rows: 4
batch_size: 4
anchor: {num_samples: 500}
workers: {count: 1, threads: 1, device: cpu}
report_images: 4
"""


# --- servers -----------------------------------------------------------------------------------------


@dataclass
class PrefectServer:
    """A `prefect server start` of this test session."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def wait(self, timeout_seconds: float = 180.0) -> None:
        """Return once it answers."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"the Prefect server does not answer:\n{self.log.read_text()}")

    def states_of(self, finished: Finished) -> list[str]:
        """States of the flow runs of a command."""
        names = re.findall(r"Beginning (?:sub)?flow run '([a-z-]+)'", finished.err)
        body = json.dumps({"flow_runs": {"name": {"any_": names}}}).encode()
        request = urllib.request.Request(f"{self.url}/flow_runs/filter", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return [run["state_type"] for run in json.load(answer)]

    def slots_taken(self) -> int:
        """How many regions of archives somebody writes."""
        request = urllib.request.Request(
            f"{self.url}/v2/concurrency_limits/filter", b"{}", {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return sum(limit["active_slots"] for limit in json.load(answer))

    def task_runs_of(self, finished: Finished, timeout_seconds: float = 30.0) -> list[dict[str, Any]]:
        """Every task run of the flow run of a command, once all of them have ended.

        They are told to the server by events, some of which arrive after the command has ended.
        """
        names = re.findall(r"Beginning flow run '([a-z-]+)'", finished.err)
        wanted = {"flow_runs": {"name": {"any_": names}}, "limit": 200}
        body = json.dumps(wanted).encode()
        deadline = time.monotonic() + timeout_seconds
        while True:
            request = urllib.request.Request(f"{self.url}/task_runs/filter", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                runs: list[dict[str, Any]] = json.load(answer)
            has_ended = bool(runs) and all(run["state_type"] in ("COMPLETED", "FAILED", "CRASHED") for run in runs)
            if has_ended or time.monotonic() > deadline:
                return runs
            time.sleep(0.2)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="package", autouse=True)
def starting_prefect_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrefectServer | None]:
    """Started first and waited for last: it makes its database while the tests that need no server run."""
    if not any("prefect_server" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    }
    log = home / "server.log"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    yield PrefectServer(process, f"http://127.0.0.1:{port}/api", log)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="package")
def prefect_server(starting_prefect_server: PrefectServer | None) -> PrefectServer:
    """The server, answering."""
    assert starting_prefect_server is not None
    starting_prefect_server.wait()
    return starting_prefect_server


class ObjectStore:
    """An S3 server in this process; what it holds outlives its pauses."""

    def __init__(self) -> None:
        self._port = free_port()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Answer from now on."""
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        """Refuse every connection from now on."""
        self._server.stop()


@pytest.fixture(scope="package")
def object_store(one_put_at_a_time: None) -> Iterator[ObjectStore]:
    """An S3 server of our own with a bucket named lsap."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each of thousands of requests
    store = ObjectStore()
    options = {"key": ACCESS_KEY, "secret": SECRET_KEY, "endpoint_url": store.endpoint}
    fsspec.filesystem("s3", **options, use_listings_cache=False).makedirs("lsap", exist_ok=True)
    yield store
    store.stop()


@pytest.fixture(scope="package")
def s3_endpoint(object_store: ObjectStore) -> str:
    """Where the S3 server is."""
    return object_store.endpoint


@pytest.fixture(scope="package")
def s3_credentials() -> tuple[str, str]:
    """What must never be seen again."""
    return ACCESS_KEY, SECRET_KEY


def s3_environment(endpoint: str) -> dict[str, str]:
    """The usual variables of an S3 client."""
    return {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_ENDPOINT_URL": endpoint}


# --- commands ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str


@dataclass
class Running:
    """A command under way."""

    process: ForkServerProcess
    folder: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def has_ended(self) -> bool:
        return not self.process.is_alive()

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()

    def wait(self, timeout_seconds: float = 240.0) -> Finished:
        self.process.join(timeout_seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"the command did not end within {timeout_seconds:.0f} s:\n{self.text('err')}")
        return Finished(self.process.exitcode, self.text("out"), self.text("err"))

    def kill(self) -> None:
        """kill -9 of this one process; what it started is left to itself."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.join()


class Lsap:
    """Runs `lsap` with arguments, each command in a process of its own; or another program, by what it calls."""

    def __init__(
        self,
        context: ForkServerContext,
        folder: Path,
        config: Path,
        environment: dict[str, str],
        program: str = "flows.commands.cli:main",
    ):
        self._context = context
        self._folder = folder
        self._config = config
        self._environment = environment
        self._program = program
        self._count = 0

    def start(self, *arguments: str, **environment: str) -> Running:
        """Begin a command, with further variables."""
        self._count += 1
        folder = self._folder / f"{self._count:03d}"
        folder.mkdir()
        process = self._context.Process(
            target=runpy.run_path,
            args=(str(HERE / "forked_command.py"),),
            kwargs={
                "init_globals": {
                    "PROGRAM": self._program,
                    "ARGUMENTS": arguments,
                    "ENVIRONMENT": {**self._environment, **environment},
                    "FOLDER": str(folder),
                },
                "run_name": "__main__",
            },
        )
        process.start()
        return Running(process, folder)

    def __call__(self, *arguments: str, **environment: str) -> Finished:
        """Begin a command and wait for its end."""
        return self.start(*arguments, **environment).wait()

    def with_variables(self, **environment: str) -> Lsap:
        """The same commands with further variables."""
        folder = self._folder / f"variables-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        return Lsap(self._context, folder, self._config, {**self._environment, **environment}, self._program)

    def outputs(self) -> list[Path]:
        """Files with what the commands so far have printed."""
        return sorted(self._folder.glob("*/*"))

    def invert(self, *flags: str, **fields: Any) -> Running:
        """Begin `run invert` with SMALL and further fields; `__` stands for a dot."""
        changes = [f"{name.replace('__', '.')}={value}" for name, value in fields.items()]
        return self.start("run", "invert", str(self._config), *(x for c in changes for x in ("--set", c)), *flags)


@pytest.fixture(scope="package")
def fork_server(prefect_server: PrefectServer) -> ForkServerContext:
    """Where commands are forked from, with the variables that libraries read while they are imported."""
    context = multiprocessing.get_context("forkserver")
    studies = ["flows.reproduce_editability", "flows.reproduce_inheritance"]
    flows = ["flows.reproduce", *studies]  # the others with them
    context.set_forkserver_preload(["flows.commands.cli", *flows, "torchmetrics.image.fid", "prefect.cli"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", prefect_server.url)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")  # read when Ray is imported; commands set it before
        patch.setenv("RAY_worker_niceness", "0")  # 15 by default, with which tests crawl on a busy machine
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture(scope="package")
def worker_server() -> Iterator[WorkerServer]:
    """Where Ray's workers are forked from; it ends with this process."""
    with tempfile.TemporaryDirectory(prefix="lsap-workers-") as folder:  # a socket's path has to be short
        path = Path(folder) / "socket"
        command = [sys.executable, str(HERE / "forked_workers.py"), "--serve", str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
            while not path.exists():
                assert process.poll() is None
                time.sleep(0.05)
            yield WorkerServer(str(path), process.pid)  # then stdin is closed, at which it ends


@pytest.fixture(scope="package")
def ray_cluster(fork_server: ForkServerContext, worker_server: WorkerServer, s3_endpoint: str) -> Iterator[RayNodes]:
    """One node, whose workers find the S3 server."""
    environment = s3_environment(s3_endpoint)
    with contextlib.closing(RayNodes(fork_server, worker_server, environment=environment, num_cpus=4)) as nodes:
        yield nodes


@pytest.fixture(scope="package")
def lsap(fork_server: ForkServerContext, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Lsap:
    """The command line, against the Prefect server of this session; every command starts a Ray of its own."""
    return Lsap(fork_server, tmp_path_factory.mktemp("commands"), config, {})


@pytest.fixture(scope="package")
def prefect(fork_server: ForkServerContext, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Lsap:
    """Prefect's own command, against the same server."""
    folder = tmp_path_factory.mktemp("prefect-commands")
    return Lsap(fork_server, folder, config, {}, "prefect.cli:app")


@pytest.fixture(scope="package")
def lsap_on_cluster(
    fork_server: ForkServerContext,
    config: Path,
    tmp_path_factory: pytest.TempPathFactory,
    ray_cluster: RayNodes,
    s3_endpoint: str,
) -> Lsap:
    """The same, joining the Ray cluster of this session: that saves the start of one."""
    environment = {"LSAP_RAY_ADDRESS": ray_cluster.address, **s3_environment(s3_endpoint)}
    return Lsap(fork_server, tmp_path_factory.mktemp("commands"), config, environment)


@pytest.fixture(scope="package")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that fits into seconds; each test names its source and archive."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="package")
def closed_port() -> int:
    """A port of this machine on which nobody answers."""
    return free_port()


# --- work in this process ----------------------------------------------------------------------------


@pytest.fixture(scope="package")
def plan_here(config: Path) -> Callable[..., tuple[Planned, InversionRequest]]:
    """Plans a run of SMALL with further fields; returns what is left, and what a worker is built from."""

    def plan(**fields: Any) -> tuple[Planned, InversionRequest]:
        changes = [f"{name.replace('__', '.')}={value}" for name, value in fields.items()]
        request = InvertRun.read(str(config), changes).resolve(Settings())
        with InversionStage(request) as stage:
            return Planned(tuple(stage.jobs())), request

    return plan


@pytest.fixture(scope="package")
def save_digits() -> Callable[[Path, Iterable[int]], list[str]]:
    """Writes digits of the test split as PNG files, and returns their names."""
    split = load_split("test")

    def save(folder: Path, rows: Iterable[int]) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        names = []
        for row in rows:
            names.append(f"{row:04d}-{split.labels[row]}.png")
            Image.fromarray(split.images[row]).save(folder / names[-1])
        return names

    return save
