"""File systems open by URL alone: what a user puts into the environment and the profiles arrives at the server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from lsap_archive import ArchiveMismatchError, Store, StoreUnavailableError, open_archive, verify_archive
from lsap_archive.errors import ArchiveNotFoundError
from lsap_archive.stores.file_systems import open_file_system, read_file

KEY, SECRET = "AKIAOFTHISTEST", "secret-of-this-test"
CLOSED = "http://127.0.0.1:9"


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that has one object, and what every request said of who asks and for which region."""
    requests: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            signed = re.search(r"Credential=([^/]+)/\d+/([^/]+)/s3", self.headers.get("Authorization", ""))
            requests.append({"method": self.command, "key": signed[1], "region": signed[2]} if signed else {})
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"found")

        def log_message(self, *_: object) -> None:
            """Keep the output of the tests quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}", requests
        listening.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Sets variables for clients that have seen none before, and no profile of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_", "FSSPEC_")):
            monkeypatch.delenv(name)

    def give(**variables: str) -> None:
        known = {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
        for name, value in {**known, **variables}.items():
            monkeypatch.setenv(name, value)

    give()
    # A variable that is set for good, as for botocore's name of the region, is to go with the test.
    monkeypatch.setattr(os, "environ", os.environ)
    before = dict(os.environ)
    fsspec.filesystem("s3").clear_instance_cache()
    yield give
    fsspec.filesystem("s3").clear_instance_cache()
    for name in set(os.environ) - set(before):
        del os.environ[name]


PROFILES = """\
[profile whole]
region = eu-west-3
endpoint_url = {url}
aws_access_key_id = AKIAOFTHISTEST
aws_secret_access_key = secret-of-this-test

[profile by-service]
services = ours
aws_access_key_id = AKIAOFTHISTEST
aws_secret_access_key = secret-of-this-test

[services ours]
s3 =
  endpoint_url = {url}
"""
KEYS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}


@pytest.mark.object_store
@pytest.mark.parametrize(
    ("variables", "region"),
    [
        ({**KEYS, "AWS_ENDPOINT_URL": "{url}"}, "us-east-1"),
        ({**KEYS, "AWS_ENDPOINT_URL_S3": "{url}", "AWS_ENDPOINT_URL": CLOSED}, "us-east-1"),
        ({**KEYS, "AWS_ENDPOINT_URL": "{url}", "AWS_DEFAULT_REGION": "eu-north-1"}, "eu-north-1"),
        ({**KEYS, "AWS_ENDPOINT_URL": "{url}", "AWS_REGION": "eu-north-1"}, "eu-north-1"),
        ({"AWS_PROFILE": "whole"}, "eu-west-3"),
        ({"AWS_PROFILE": "by-service"}, "us-east-1"),
        ({"AWS_PROFILE": "whole", "AWS_REGION": "eu-north-1"}, "eu-north-1"),
    ],
    ids=lambda value: "+".join(name for name in value if name not in KEYS) if isinstance(value, dict) else value,
)
def test_endpoint_region_and_credentials_come_from_the_environment(
    variables: dict[str, str],
    region: str,
    server: tuple[str, list[dict[str, str]]],
    environment: Callable[..., None],
    tmp_path: Path,
) -> None:
    url, requests = server
    profiles = tmp_path / "profiles"
    profiles.write_text(PROFILES.format(url=url))
    environment(AWS_CONFIG_FILE=str(profiles), **{name: value.format(url=url) for name, value in variables.items()})
    assert Store.from_url("s3://bucket/folder").get("x") == b"found"
    assert requests == [{"method": "GET", "key": KEY, "region": region}]  # and not a second one for the size
    assert read_file("s3://bucket/folder/x") == b"found"
    assert all(request["key"] == KEY and request["region"] == region for request in requests)


SHOW_CLIENT = """
import json
from lsap_archive.stores.file_systems import open_file_system
fs, _ = open_file_system("s3://bucket/x")
fs.connect()
config = fs.s3.meta.config
print(json.dumps([config.read_timeout, config.connect_timeout, config.retries, fs.endpoint_url]))
"""


@pytest.mark.object_store
def test_timeouts_and_retries_come_from_the_environment() -> None:
    """In a process of its own: fsspec reads its variables while it is imported."""
    variables = {
        "FSSPEC_S3_CONFIG_KWARGS": json.dumps({"read_timeout": 77, "connect_timeout": 3}),
        "FSSPEC_S3_ENDPOINT_URL": CLOSED,
        "AWS_MAX_ATTEMPTS": "9",
        "AWS_RETRY_MODE": "standard",
    }
    answer = subprocess.run(
        [sys.executable, "-c", SHOW_CLIENT], env={**os.environ, **KEYS, **variables}, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == [77, 3, {"total_max_attempts": 9, "mode": "standard"}, CLOSED]


@pytest.mark.object_store
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, ["no credentials found", "AWS_PROFILE"]),
        ({"AWS_PROFILE": "none of this name"}, ["configuration is refused", "none of this name", "~/.aws/config"]),
        ({**KEYS, "AWS_ENDPOINT_URL": CLOSED, "AWS_MAX_ATTEMPTS": "1"}, [f"{CLOSED} does not answer", "AWS_ENDPOINT"]),
    ],
)
def test_what_is_wrong_with_the_environment_is_one_sentence(
    variables: dict[str, str], words: list[str], environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    environment(**variables)
    with pytest.raises(StoreUnavailableError) as caught:
        Store.from_url("s3://bucket/folder").get("x")
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value) and SECRET not in str(caught.value)


def test_an_endpoint_with_a_password_is_refused_without_repeating_it(environment: Callable[..., None]) -> None:
    environment(AWS_ENDPOINT_URL="http://me:hunter2@127.0.0.1:9", **KEYS)
    with pytest.raises(ArchiveMismatchError, match="AWS_ENDPOINT_URL carries a password") as caught:
        Store.from_url("s3://bucket/folder")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("package", "url"),
    [("gcsfs", "gs://bucket/x"), ("adlfs", "az://container/x")],
)
def test_a_client_that_is_not_installed_is_named_with_its_command(
    package: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = url.partition(":")[0]
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not there
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    with pytest.raises(StoreUnavailableError, match=f"needs the package {package}.*: pip install {package}$"):
        open_file_system(url)


def test_a_file_is_read_by_path_and_by_url(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    fsspec.filesystem("memory").pipe_file("/read-file/x", b"2")
    assert read_file(str(tmp_path / "x")) == read_file(f"file://{tmp_path}/x") == b"1"
    assert read_file("memory://read-file/x") == b"2"
    with pytest.raises(ArchiveNotFoundError, match="does not exist"):
        read_file(str(tmp_path / "y"))
    with pytest.raises(ArchiveNotFoundError, match="is a folder"):
        read_file(str(tmp_path))
    with pytest.raises(ArchiveMismatchError, match="has 1 bytes; wanted at most 0"):
        read_file(str(tmp_path / "x"), max_bytes=0)


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    with listening:
        for path, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path / "socket", "a socket"), ("/dev/zero", "a device")):
            with pytest.raises(ArchiveMismatchError, match=f"is {kind}; wanted a file"):
                read_file(str(path))
        store = Store.from_url(tmp_path)
        store.put("a", b"1")
        assert store.keys() == ["a"]
        for key in ("pipe", "socket"):
            assert not store.exists(key)
            with pytest.raises(ArchiveNotFoundError, match="and no object: take it away"):
                store.get(key)


@pytest.mark.parametrize("url", ["a\0b", "file:///a\0b", "s3://bucket/a\0b", "https://host/a\0b"])
def test_a_url_with_a_nul_is_refused_before_it_is_asked_for(url: str) -> None:
    for ask in (Store.from_url, open_file_system, read_file):
        with pytest.raises(ArchiveMismatchError, match="NUL"):
            ask(url)


def test_advice_for_a_package_that_is_missing_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec raises an ImportError without a name for a client of its own list."""
    monkeypatch.setitem(sys.modules, "paramiko", None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.sftp", raising=False)
    with pytest.raises(StoreUnavailableError, match="paramiko") as refusal:
        open_file_system("sftp://host/x")
    assert "None" not in str(refusal.value)


@pytest.mark.object_store
@pytest.mark.parametrize("cloud", ["gcs", "azure"])
def test_an_archive_is_written_read_and_verified_on_other_clouds(
    cloud: str, published: Any, work: Any, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue(f"{cloud}_place")
    run = published(place)
    archive = open_archive(place.url, storage_options=place.options)
    ids = [f"image-{row}" for row in range(work.num_images)]
    assert (archive.codes(ids, "lsap_o") == work.expected(run)).all()
    assert archive.sql("SELECT count(*) AS n FROM rows").to_pylist() == [{"n": work.num_images}]
    assert verify_archive(place.url, storage_options=place.options).problems == []


@pytest.mark.object_store
def test_a_store_that_ignores_conditions_is_refused_before_anything_depends_on_them(
    gcs_server: dict[str, Any], gcs_place: Any
) -> None:
    careless = type(gcs_place)(gcs_place.url.replace("//lsap/", "//careless/"), gcs_server)
    with pytest.raises(StoreUnavailableError, match="overwrites what was asked to be create-only"):
        careless.writer()
    with contextlib.suppress(StoreUnavailableError):
        gcs_place.writer()
    assert gcs_place.store.exists("archive.json")  # the same server, where it keeps the condition
