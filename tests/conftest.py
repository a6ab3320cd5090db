"""What every test may rely on: a quiet environment of its own, no GPU test without a GPU, and other clouds' servers."""

import contextlib
import gc
import http
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from xdist.scheduler import LoadScopeScheduling

# Before anything imports torch, Ray or Prefect. `make test` exports the same values.
QUIET = {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "DO_NOT_TRACK": "1",
    "MPLBACKEND": "Agg",
}


for variable, quiet_value in QUIET.items():
    os.environ.setdefault(variable, quiet_value)  # at import: a folder's own conftest may import torch at once
os.environ.pop("COLUMNS", None)  # pytest-xdist has workers believe in a terminal of 80 columns, which would fold lines


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compiler", action="store_true", help="also what keeps a C++ compiler busy for two minutes")


def pytest_configure(config: pytest.Config) -> None:
    """Cut the run off from the settings, servers and databases of whoever starts it."""
    for name in [name for name in os.environ if name.startswith("LSAP_")]:
        del os.environ[name]
    home = tempfile.TemporaryDirectory(prefix="lsap-prefect-", ignore_cleanup_errors=True)
    config.add_cleanup(home.cleanup)
    os.environ["PREFECT_HOME"] = home.name
    cache = tempfile.TemporaryDirectory(prefix="lsap-cache-", ignore_cleanup_errors=True)
    config.add_cleanup(cache.cleanup)
    os.environ["LSAP_CACHE"] = cache.name
    os.environ.pop("PREFECT_API_URL", None)
    os.environ.pop("PREFECT_PROFILE", None)
    gc.disable()  # until everything is collected: what is imported and collected till then is no garbage


def pytest_collection_finish() -> None:
    """Leave the nearly million objects of modules and tests out of every later search for garbage."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Give them back: extension modules look at the very end whether all of theirs have gone."""
    gc.unfreeze()
    gc.enable()


# Tests that share a Prefect server, a Ray and an S3 server, each group in one process; what takes longest begins first.
PAPER = ("tests/flows/test_reproduce", "tests/flows/test_studies", "tests/flows/test_train")
GROUPS = ("tests/flows/faults/", "tests/flows/", "the paper's flows")
WITHOUT_SERVERS = ("tests/flows/commands/", "tests/flows/parameters/")
WITH_SERVERS = "tests/flows/commands/test_cli.py"  # the exception among them


def group_of(file: str) -> str | None:
    """The group that shares servers with a file's tests; None of those that need none."""
    if file.startswith(WITHOUT_SERVERS) and file != WITH_SERVERS:
        return None
    if file.startswith(PAPER):
        return GROUPS[2]
    return next((group for group in GROUPS if file.startswith(group)), None)


class ByFileAndServers(LoadScopeScheduling):
    """A file's tests stay in one process, and so do those that share servers."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid.partition("::")[0]) or nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFileAndServers:
    """How tests are shared out where there are several processes, in the order in which they were collected."""
    config.option.loadscopereorder = False
    return ByFileAndServers(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest; skip the tests marked `gpu` where there is no CUDA device, and say so."""
    groups = {item.nodeid: group_of(item.nodeid.partition("::")[0]) for item in items}
    items.sort(key=lambda item: [groups[item.nodeid] != group for group in GROUPS])
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, this machine has none"))


@pytest.fixture(autouse=True)
def own_memory() -> Iterator[None]:
    """What a test puts at memory:// goes with it: a question about one object there goes through all that are kept."""
    kept = set(MemoryFileSystem.store)
    yield
    for key in MemoryFileSystem.store.keys() - kept:
        del MemoryFileSystem.store[key]


@pytest.fixture(scope="session")
def one_put_at_a_time() -> Iterator[None]:
    """S3 servers of this process keep a promise of S3's: of several that create an object, one does.

    The emulator looks whether there is an object and then puts it, so that between threads two may both find none.
    """
    responses = pytest.importorskip("moto.s3.responses")
    put, lock = responses.S3Response.put_object, threading.Lock()

    def alone(response: Any) -> Any:
        with lock:
            return put(response)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(responses.S3Response, "put_object", alone)
        yield


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[dict[str, Any]]:
    """storage_options of a server that speaks Google's protocol, with a bucket named lsap.

    The emulator takes every write. Here it refuses `ifGenerationMatch=0` where there is an object, as Google documents;
    in the bucket named careless it does as it is.
    """
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    objects = pytest.importorskip("gcp_storage_emulator.handlers.objects")
    exceptions = pytest.importorskip("gcp_storage_emulator.exceptions")
    upload, one_at_a_time = objects._multipart_upload, threading.Lock()

    def conditional(request: Any, response: Any, storage: Any) -> None:
        bucket, name = request.params["bucket_name"], request.data["meta"]["name"]
        with one_at_a_time:
            if request.query.get("ifGenerationMatch") == ["0"] and bucket != "careless":
                with contextlib.suppress(exceptions.NotFound):
                    storage.get_file_obj(bucket, name)
                    response.status = http.HTTPStatus.PRECONDITION_FAILED
                    return
            upload(request, response, storage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "_multipart_upload", conditional)
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        port = _free_port()
        server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="lsap")
        server.start()
        options = {"endpoint_url": f"http://127.0.0.1:{port}", "token": "anon", "project": "test"}
        import gcsfs

        gcsfs.GCSFileSystem(**options).mkdir("careless")
        yield options
        server.stop()


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """storage_options of a server that speaks Azure's protocol, with a container named lsap."""
    adlfs = pytest.importorskip("adlfs")
    command = shutil.which("azurite-blob") or shutil.which("azurite-blob", path="node_modules/.bin")
    if command is None:
        pytest.skip("needs Azure's storage emulator: npm install azurite (here, or --global)")
    port = _free_port()
    folder = tmp_path_factory.mktemp("azurite")
    flags = ["--silent", "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"]
    with (folder / "log").open("wb") as log:
        address = ["--blobHost", "127.0.0.1", "--blobPort", str(port)]
        process = subprocess.Popen([command, *flags, *address], cwd=folder, stdout=log, stderr=log)
    try:
        _wait_for(port, lambda: (folder / "log").read_text() if process.poll() is not None else "")
        account = "AccountName=devstoreaccount1;AccountKey=" + AZURITE_KEY
        endpoint = f"BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1"
        options = {"connection_string": f"DefaultEndpointsProtocol=http;{account};{endpoint};"}
        adlfs.AzureBlobFileSystem(**options).mkdir("lsap")
        yield options
    finally:
        process.terminate()
        process.wait(20)


# The emulator's own, the same on every machine.
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_for(port: int, failure: Callable[[], str]) -> None:
    """Return once somebody listens on a port."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert not failure(), failure()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nobody listens on port {port}")
