"""Everything by URL: run files, domain, weights, images, archive, reports and results in one bucket, without a secret.

The same story on two servers: moto, which every machine has, and Ceph's, which checks credentials and is started where
it is installed. The tests of this file are one story, in order.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from lsap_archive import Store, open_archive, verify_archive

pytestmark = [pytest.mark.ray, pytest.mark.object_store, pytest.mark.slow]

HERE = Path(__file__).parent
ROOT = "s3://lsap/by url"
ARCHIVE = f"{ROOT}/archive"
NUM_IMAGES = 5
WORKERS = {"count": 1, "threads": 1, "device": "cpu"}
SECRET = "kept+out/of+everything=1"


@dataclass(frozen=True)
class Bucket:
    """A bucket named lsap, and the command line with the variables that open it."""

    lsap: Any
    options: dict[str, str]

    @property
    def store(self) -> Store:
        return Store.from_url(ROOT, self.options)

    def run(self, flow: str, *flags: str, **environment: str) -> Any:
        return self.lsap("run", flow, f"{ROOT}/{flow}.yaml", *flags, **environment)

    def secrets(self) -> list[bytes]:
        """The key and the secret as they are, as a URL and as base64 would hold them."""
        given = [self.options["key"], self.options["secret"]]
        forms = [form(text) for text in given for form in (str, functools.partial(quote, safe=""), quote)]
        return [text.encode() for text in forms] + [base64.b64encode(text.encode()).rstrip(b"=") for text in given]


@pytest.fixture(scope="module", params=["moto", "ceph"])
def bucket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """Each server in turn."""
    results = {"LSAP_RESULTS": f"{ROOT}/results"}
    if request.param == "moto":
        endpoint = request.getfixturevalue("s3_endpoint")
        key, secret = request.getfixturevalue("s3_credentials")
        lsap = request.getfixturevalue("lsap_on_cluster").with_variables(**results)
        yield Bucket(lsap, {"key": key, "secret": secret, "endpoint_url": endpoint})
        return
    if missing := [name for name in ("ceph-mon", "ceph-osd", "radosgw") if shutil.which(name) is None]:
        pytest.skip(f"needs {missing[0]}: apt-get install ceph-mon ceph-osd radosgw ceph-common (Debian, as root)")
    if os.geteuid() != 0:
        pytest.skip("Ceph's daemons are started as root here")
    with ceph(tmp_path_factory.mktemp("ceph"), "AKIACEPHOFTESTS", SECRET) as endpoint:
        options = {"key": "AKIACEPHOFTESTS", "secret": SECRET, "endpoint_url": endpoint}
        import fsspec

        fsspec.filesystem("s3", **options, use_listings_cache=False).mkdir("lsap")
        variables = {"AWS_ACCESS_KEY_ID": options["key"], "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": endpoint}
        yield Bucket(request.getfixturevalue("lsap").with_variables(**variables, **results), options)


@contextlib.contextmanager
def ceph(folder: Path, key: str, secret: str) -> Iterator[str]:
    """A monitor, a store in memory and a gateway; gives the gateway's address."""
    ports = [free_port() for _ in range(3)]
    environment = {**os.environ, "FOLDER": str(folder), "KEY": key, "SECRET": secret}
    environment |= {"MONITOR_2": str(ports[0]), "MONITOR_1": str(ports[1]), "GATEWAY": str(ports[2])}
    try:
        subprocess.run(["bash", str(HERE / "start_ceph.sh")], env=environment, check=True, timeout=120)
        yield f"http://127.0.0.1:{ports[2]}"
    finally:
        pids = [int(file.read_text()) for file in folder.glob("*.pid") if file.read_text().strip()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 20
        while pids and time.monotonic() < deadline:
            time.sleep(0.1)
            pids = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def filled(
    bucket: Bucket, save_digits: Callable[[Path, Iterable[int]], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Bucket:
    """Images, weights, a domain whose weights lie beside it, and a file for each run."""
    store, digits = bucket.store, Path("domains/digits")
    images = tmp_path_factory.mktemp("digits")
    for name in save_digits(images, range(NUM_IMAGES)):
        store.put(f"images/{name}", (images / name).read_bytes())
    domain = yaml.safe_load((digits / "domain.yaml").read_text())
    weights = {"generator.safetensors", "encoders/e4e.safetensors", "directions/slant.safetensors"}
    for name in weights:
        store.put(f"domain/{name}", (digits / name).read_bytes())
    domain |= {"name": "own", "encoders": {"e4e": "encoders/e4e.safetensors"}}
    domain |= {"directions": {"slant": "directions/slant.safetensors"}, "attributes": ["slant"]}
    store.put("domain/own.yaml", yaml.safe_dump(domain).encode())
    shared = {"archive": ARCHIVE, "domain": f"{ROOT}/domain/own.yaml", "batch_size": 4, "workers": WORKERS}
    source = {"source": f"{ROOT}/images"}
    runs: dict[str, dict[str, Any]] = {
        "invert": {**shared, **source, "methods": ["e4e"], "shard_rows": 4, "anchor": {"num_samples": 200}},
        "edit": {**shared, "edits": {"more": {"direction": "slant", "strength": 1}}, "keep_images": True},
        "evaluate": {**shared, **source, "lec": {}},
    }
    for flow, fields in runs.items():
        store.put(f"{flow}.yaml", yaml.safe_dump(fields).encode())
    return bucket


@pytest.fixture(scope="module")
def worked(filled: Bucket) -> dict[str, Any]:
    """What each flow has printed."""
    printed = {}
    for flow in ("invert", "edit", "evaluate"):
        finished = filled.run(flow, "--json", PREFECT_LOGGING_EXTRA_LOGGERS="lsap,lsap_archive,tasks,flows")
        assert finished.code == 0, finished.err
        printed[flow] = json.loads(finished.out)
    return printed


def test_every_flow_works_by_url_alone(filled: Bucket, worked: dict[str, Any]) -> None:
    archive = open_archive(ARCHIVE, storage_options=filled.options)
    rows = archive.rows(history=True).to_pylist()
    assert {row["image_id"] for row in rows if row["method"] == "e4e"} == set(names(filled))
    assert {row["method"] for row in rows} == {"e4e", "e4e/more"} and len(rows) == 2 * NUM_IMAGES
    assert {row["status"] for row in rows} == {"ok"}
    assert archive.sql("SELECT count(*) AS n FROM measurements WHERE value IS NOT NULL").to_pylist()[0]["n"] > 0
    assert filled.store.get("archive/reports/invert.html").startswith(b"<!doctype html")
    assert verify_archive(ARCHIVE, storage_options=filled.options).problems == []
    verified = filled.lsap("archive", "verify", ARCHIVE, "--json")
    assert (verified.code, json.loads(verified.out)["problems"]) == (0, [])


def test_the_reports_of_flows_are_json_where_the_setting_says(filled: Bucket, worked: dict[str, Any]) -> None:
    kept = [key for key in filled.store.keys("results") if key.endswith(".json")]
    assert sorted(key.split("/")[1] for key in kept) == ["edit", "evaluate", "invert"]
    for key in kept:
        document = json.loads(filled.store.get(key))
        assert key == f"results/{document['flow']}/{document['flow_run_id']}.json"
        assert document["report"]["archive"] == ARCHIVE
        printed = worked[document["flow"]]
        assert {name: printed[name] for name in document["report"] if name in printed} == {
            name: value for name, value in document["report"].items() if name in printed
        }


# What goes wrong with storage: the words that say so, and variables and changes that make it happen.
FAILURES: dict[str, tuple[int, str, dict[str, str], list[str]]] = {
    "no such bucket": (1, "does not exist: create it", {}, ["archive=s3://nowhere/archive"]),
    "no such source": (2, "nothing is at", {}, ["source=s3://nowhere/images"]),
    "closed port": (1, "does not answer", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, []),
    "password in the endpoint": (2, "AWS_ENDPOINT_URL carries a password", {"AWS_ENDPOINT_URL": "{with_password}"}, []),
    "password in the source": (2, "source carries a password", {}, ["source=s3://{key}:{secret}@lsap/images"]),
    "password in the archive": (2, "archive carries a password", {}, ["archive=s3://{key}:{secret}@lsap/archive"]),
    "signed source": (2, "source carries a signed query", {}, ["source=https://host/x.zip?X-Amz-Signature={quoted}"]),
    "signed weights": (2, "encoders.e4e carries a signed query", {}, ["encoders.e4e=https://host/x?sig={quoted}"]),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_fails_is_one_sentence_without_a_secret(case: str, filled: Bucket, tmp_path: Path) -> None:
    code, words, variables, changes = FAILURES[case]
    key, secret = filled.options["key"], filled.options["secret"]
    with_password = filled.options["endpoint_url"].replace("://", f"://{key}:{quote(secret, safe='')}@")
    known = {"key": key, "secret": secret, "quoted": quote(secret, safe=""), "with_password": with_password}
    here = tmp_path / "invert.yaml"  # the bucket cannot be reached in some of the cases
    here.write_bytes(filled.store.get("invert.yaml"))
    flags = [part for change in changes for part in ("--set", change.format(**known))]
    flags += ["--set", "domain=digits"]
    given = {name: value.format(**known) for name, value in variables.items()}
    finished = filled.lsap("run", "invert", str(here), *flags, "--dry-run", AWS_MAX_ATTEMPTS="1", **given)
    assert finished.code == code, finished.err
    assert words in finished.err.splitlines()[-1], finished.err
    assert finished.out == ""


def test_credentials_are_kept_nowhere(filled: Bucket, worked: dict[str, Any], prefect_server: Any) -> None:
    """Not in an object of the bucket, in what commands printed, or in what Prefect keeps: as text, quoted or base64."""
    store = filled.store
    told = {key: store.get(key) for key in store.keys()}  # noqa: SIM118
    printed = {str(path): path.read_bytes() for path in filled.lsap.outputs()}
    database = {str(path): path.read_bytes() for path in prefect_server.log.parent.iterdir() if path.is_file()}
    assert len(told) > 30 and len(printed) >= 6
    assert any(b"by url/archive" in data for data in database.values())  # it is what it seems to be
    for name, data in {**told, **printed, **database}.items():
        for secret in filled.secrets():
            assert secret not in data, name


def names(bucket: Bucket) -> list[str]:
    return [key.removeprefix("images/") for key in bucket.store.keys("images")]


@pytest.mark.parametrize("url", ["s3://nowhere/archive", "s3://{key}:{secret}@nowhere/archive"])
def test_debug_logs_of_a_failure_tell_no_secret(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the traceback, and all that lies behind the error."""
    from flows.commands.cli import main

    key, secret = "AKIAOFDEBUGLOGS", SECRET
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    monkeypatch.setattr("s3fs.S3FileSystem._cache", {})
    for name in ("lsap", "lsap_archive", "tasks", "flows"):
        caplog.set_level("DEBUG", name)
    assert main(["archive", "describe", url.format(key=key, secret=secret)]) in (1, 2)
    told = caplog.text + "".join(capsys.readouterr())
    assert "lsap: " in told
    for form in (str, quote, functools.partial(quote, safe="")):
        assert form(secret) not in told and key not in told
