"""Machines that share no network but a bridge: a head with the command, a node with the workers, an object store."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pytest
import ray as ray_package

from lsap_archive import open_archive, verify_archive

pytestmark = [pytest.mark.ray, pytest.mark.object_store, pytest.mark.slow]

BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 90.0
NUM_IMAGES = 4
ACCESS_KEY, SECRET_KEY, TOKEN = "AKIATESTNETWORKS", "never-to-be-seen-in-a-log/x", "a-token-of-this-test-" + "0" * 32
SMALL_STORE = f"--object-store-memory={80 * 2**20}"
PACKAGES = {"flows", "tasks", "domains", "lsap_core", "lsap_archive"}


@dataclass
class Network:
    """Namespaces on a bridge, each with an address of its own; this process has the bridge's."""

    prefix: str
    subnet: str
    folder: Path
    names: list[str] = field(default_factory=list)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def bridge(self) -> str:
        return f"{self.prefix}b"

    def address(self, name: str = "") -> str:
        """Of a machine, or of this one."""
        return f"{self.subnet}.{self.names.index(name) + 2 if name else 1}"

    def make_bridge(self) -> None:
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self.address()}/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")

    def add(self, name: str) -> None:
        """A machine with a cable to the bridge."""
        self.names.append(name)
        space, cable = f"{self.prefix}-{name}", f"{self.prefix}{len(self.names)}"
        ip("netns", "add", space)
        ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("link", "set", cable, "master", self.bridge, "up")
        ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", space, "link", "set", device, "up")

    def start(self, name: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Begin a command on a machine, with what it says in a file of the machine's name."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", f"{self.prefix}-{name}", *command],
                env={**os.environ, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def processes(self, name: str, title: str = "") -> set[int]:
        """What runs on a machine and has a title that begins like this."""
        found = set()
        for pid in map(int, ip("netns", "pids", f"{self.prefix}-{name}").split()):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title.encode()):
                    found.add(pid)
        return found

    def remove(self) -> None:
        for name in self.names:
            for pid in self.processes(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            ip("netns", "del", f"{self.prefix}-{name}")
        ip("link", "del", self.bridge)
        for process in self.started:
            process.wait()


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def forward(listener: socket.socket, target: tuple[str, int]) -> None:
    """Hand every connection on to a server of this machine; ends with the listener."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def connect(client: socket.socket) -> None:
        with client, socket.create_connection(target) as server:
            back = threading.Thread(target=pump, args=(server, client), daemon=True)
            back.start()
            pump(client, server)
            back.join()

    with contextlib.suppress(OSError):
        while True:
            threading.Thread(target=connect, args=(listener.accept()[0],), daemon=True).start()


def wait_for(condition: Callable[[], Any], network: Network) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        logs = "\n".join(path.read_text() for path in network.folder.glob("*.log"))
        assert time.monotonic() < deadline, f"nothing happened:\n{logs}"
        time.sleep(0.05)


def listens(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces are made by root")
    if " " in sys.executable:
        pytest.skip("ray start --head ends at once where the interpreter's path has a space")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces are made with ip, of the package iproute2, which is not installed")
    network = Network(f"l{os.getpid()}", f"10.197.{os.getpid() % 250}", tmp_path)
    try:
        network.make_bridge()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine lets nobody make networks: {error.stderr.strip()}")
    try:
        for name in ("head", "node", "store"):
            network.add(name)
        yield network
    finally:
        network.remove()


@pytest.fixture
def session_folder() -> Iterator[Path]:
    """Ray's: its sockets allow no long path."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def test_a_head_a_node_and_a_store_with_addresses_of_their_own_make_one_run(
    network: Network,
    session_folder: Path,
    prefect_server: Any,
    config: Path,
    save_digits: Callable[[Path, Iterable[int]], list[str]],
    tmp_path: Path,
) -> None:
    """The code travels to the node; credentials do not: each machine has them from its own environment."""
    names = save_digits(tmp_path / "images", range(NUM_IMAGES))
    head, node, store = (network.address(name) for name in ("head", "node", "store"))
    storage = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_ENDPOINT_URL": f"http://{store}:5000",
    }
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_worker_niceness": "0"}
    network.start("store", str(BIN / "moto_server"), "-H", store, "-p", "5000")
    start = (str(BIN / "ray"), "start", "--block", "--disable-usage-stats", SMALL_STORE)
    first = ("--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={session_folder}")
    network.start("head", *start, *first, f"--node-ip-address={head}", **ray)
    wait_for(lambda: listens(head, 6379), network)
    join = (f"--address={head}:6379", "--num-cpus=2", f"--node-ip-address={node}")
    own_folder = ("unshare", "--mount", "sh", "-ec", f'mount -t tmpfs tmpfs {session_folder}; exec "$@"', "sh")
    network.start("node", *own_folder, *start, *join, **ray, **storage)
    wait_for(lambda: listens(store, 5000), network)
    options = {"key": ACCESS_KEY, "secret": SECRET_KEY, "endpoint_url": storage["AWS_ENDPOINT_URL"]}
    fsspec.filesystem("s3", **options, use_listings_cache=False).makedirs("lsap", exist_ok=True)

    prefect = urlsplit(prefect_server.url)
    with socket.create_server((network.address(), 0)) as listener:
        threading.Thread(target=forward, args=(listener, (prefect.hostname, prefect.port)), daemon=True).start()
        fields = {"source": tmp_path / "images", "archive": "s3://lsap/apart", "methods": "[lsap_o_w_plus]"}
        fields["workers.count"] = 1
        command = network.start(
            "head",
            *(str(BIN / "lsap"), "run", "invert", str(config)),
            *(word for name, value in fields.items() for word in ("--set", f"{name}={value}")),
            **ray,
            **storage,
            PREFECT_API_URL=f"http://{network.address()}:{listener.getsockname()[1]}{prefect.path}",
            LSAP_RAY_ADDRESS=f"{head}:6379",
            LSAP_RAY_SHIP_CODE="1",
        )
        seen = {name: set[int]() for name in ("head", "node")}
        while command.poll() is None:
            for name, workers in seen.items():
                workers |= network.processes(name, "ray::Host")
            time.sleep(0.1)
    said = (tmp_path / "head.log").read_text()
    assert command.returncode == 0, said + (tmp_path / "node.log").read_text()
    assert seen["node"] and not seen["head"]
    raylet = min(network.processes("node", str(Path(ray_package.__file__).parent / "core")))
    sessions = Path(f"/proc/{raylet}/root{session_folder}")
    assert {path.name for path in sessions.glob("session_2*/runtime_resources/py_modules_files/*/*")} == PACKAGES
    assert verify_archive("s3://lsap/apart", options).problems == []
    rows = open_archive("s3://lsap/apart", options).rows(history=True).to_pylist()
    assert Counter(row["image_id"] for row in rows) == dict.fromkeys(names, 1)
    folders = (session_folder, sessions)
    written = [path for folder in folders for path in folder.glob("session_2*/logs/*") if path.is_file()]
    assert written
    assert [path for path in written if SECRET_KEY.encode() in path.read_bytes()] == []
    assert SECRET_KEY not in said
