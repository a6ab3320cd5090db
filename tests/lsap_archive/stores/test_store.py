"""Every kind of store keeps the same promises."""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from lsap_archive import (
    ArchiveError,
    ArchiveKeyError,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    CorruptArchiveError,
    IncompleteRunError,
    QueryError,
    Store,
    StoreRefusedError,
    StoreUnavailableError,
)

ERRORS = (
    ArchiveKeyError,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    CorruptArchiveError,
    IncompleteRunError,
    QueryError,
    StoreUnavailableError,
)


def test_objects_are_written_read_listed_copied_and_deleted(every_place: Any) -> None:
    store = every_place.store
    assert store.keys() == [] and store.keys("a") == [] and store.folders("a") == []
    store.put("a/one", b"first")
    store.put("a/one", b"12345678")
    store.put("a/b/two", b"")
    store.put("ab/three", b"3")
    assert store.get("a/one") == b"12345678"
    assert store.get("a/one", 2, 5) == b"345"
    assert store.get("a/one", 6) == b"78"
    assert store.get("a/one", -3) == b"678"
    assert store.sizes("a") == {"a/one": 8, "a/b/two": 0}
    assert store.keys() == ["a/b/two", "a/one", "ab/three"]
    assert store.folders("a") == ["b"]
    store.copy("a/one", "a/b/copied")
    assert store.digest("a/b/copied") == store.digest("a/one")
    assert store.exists("a/one") and not store.exists("a/none") and not store.exists("a/b")
    store.delete("a/one")
    store.delete("a/one")
    store.delete_folder("a")
    store.delete_folder("a")
    assert store.keys() == ["ab/three"]
    for call in (store.get, store.size, store.digest, lambda key: store.copy(key, "x")):
        with pytest.raises(ArchiveNotFoundError, match="a/none does not exist"):
            call("a/none")


def test_of_racing_creators_one_wins_and_its_bytes_stay(every_place: Any) -> None:
    store = every_place.store
    barrier = threading.Barrier(8)
    won: list[int] = []

    def create(number: int) -> None:
        own = every_place.store
        barrier.wait()
        if own.create("race", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("race") == str(won[0]).encode()
    assert not store.create("race", b"later")
    assert store.keys() == ["race"]


@pytest.mark.parametrize(
    "key", ["../out", "a/../../out", "/etc/passwd", "a//b", "", "a/./b", "a\\b", "a\nb", "a/.tmp-1", "a*"]
)
def test_keys_cannot_leave_the_root(local_place: Any, key: str) -> None:
    store = local_place.store
    for call in (store.get, store.delete, store.delete_folder, store.exists, store.folders, store.join):
        with pytest.raises(ArchiveMismatchError, match="key"):
            call(key)
    for write in (store.put, store.create):
        with pytest.raises(ArchiveMismatchError, match="key"):
            write(key, b"")
    with pytest.raises(ArchiveMismatchError, match="key"):
        store.copy("a", key)


def test_names_in_keys_cannot_leave_the_root(local_place: Any, work: Any) -> None:
    writer = local_place.writer()
    for name in ("../x", "a/b", "", ".hidden"):
        with pytest.raises(ArchiveMismatchError, match="letters"):
            work.plan(name)
        with pytest.raises(ArchiveMismatchError, match="letters"):
            writer.put_anchor(name, b"")
    with pytest.raises(ArchiveMismatchError, match="leave"):
        writer.put_report("../../x", b"")
    run = writer.start_run(work.plan())
    with pytest.raises(ArchiveMismatchError, match="letters"):
        work.write(run, 0, attempt="../../../x")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://AKIA:hunter2hunter2@bucket/a", "carries a password"),
        ("s3://AKIA:hunter2/hunter2@bucket/a", "carries a password"),
        ("gs://hunter2@bucket/a", "carries a password"),
        ("gs://bucket/a?X-Goog-Signature=hunter2", "carries a signed query"),
        ("az://", "bucket and prefix"),
        ("ftp://host/a", "not known"),
        ("s3://", "bucket and prefix"),
        ("s3://bucket/../other", "bucket and prefix"),
        ("s3://bucket/a?versionId=1", "'\\?'"),
        ("", "no folder"),
    ],
)
def test_urls_that_name_no_store_are_refused(url: str, message: str) -> None:
    with pytest.raises(ArchiveMismatchError, match=message) as caught:
        Store.from_url(url)
    assert "hunter2" not in str(caught.value)


def test_local_urls_name_the_same_folder(tmp_path: Path) -> None:
    Store.from_url(tmp_path / "a b").put("x", b"1")
    assert Store.from_url(f"file://{tmp_path}/a%20b").get("x") == b"1"
    assert Store.from_url(f"{tmp_path}/a b/").get("x") == b"1"


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_bytes(b"a file where the folder should be")
    with pytest.raises(StoreUnavailableError, match=r"cannot write .*blocked/x"):
        Store.from_url(tmp_path / "blocked").put("x", b"")
    if os.geteuid() == 0:
        return  # root may write anywhere
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(StoreUnavailableError, match="permission denied"):
        Store.from_url(tmp_path / "closed").put("x", b"")


def test_half_written_files_are_not_objects(tmp_path: Path) -> None:
    store = Store.from_url(tmp_path)
    store.put("a/one", b"1")
    (tmp_path / "a" / ".tmp-dead").write_bytes(b"left by a killed process")
    assert store.keys() == ["a/one"]
    store.delete_folder("a")
    assert not (tmp_path / "a").exists()


@pytest.mark.object_store
def test_a_missing_bucket_is_named(s3_options: dict[str, Any]) -> None:
    store = Store.from_url("s3://no-such-bucket/a", s3_options)
    calls = (
        lambda: store.get("x"),
        lambda: store.exists("x"),
        lambda: store.keys("x"),
        lambda: store.put("x", b""),
        lambda: store.create("x", b""),
    )
    for call in calls:
        with pytest.raises(StoreUnavailableError, match=r"bucket no-such-bucket .* does not exist: create it"):
            call()


@pytest.mark.object_store
def test_credentials_are_in_no_message(s3_options: dict[str, Any]) -> None:
    secret = "wJalrXUtnFEMIK7MDENG"
    options = {
        "key": "AKIAEXAMPLE",
        "secret": secret,
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 1},
    }
    store = Store.from_url("s3://lsap/a", options)
    with pytest.raises(StoreUnavailableError, match=r"http://127.0.0.1:9 does not answer") as caught:
        store.get("x")
    assert "\n" not in str(caught.value)
    not_a_url = {**options, "endpoint_url": "http://user:pass/word@127.0.0.1:9"}
    with pytest.raises(StoreUnavailableError) as invalid:
        Store.from_url("s3://lsap/a", not_a_url).get("x")
    assert "pass/word" not in "".join(traceback.format_exception(invalid.value))
    with pytest.raises(StoreUnavailableError) as other:
        Store.from_url("s3://no-such-bucket/a", {**s3_options, "secret": secret}).put("x", b"")
    for text in (repr(store), str(caught.value), repr(caught.value), str(other.value)):
        assert secret not in text and "AKIAEXAMPLE" not in text
    for error in (caught.value, other.value):
        assert secret not in "".join(traceback.format_exception(error))


@pytest.mark.object_store
def test_documents_cannot_hold_a_credential(s3_options: dict[str, Any]) -> None:
    store = Store.from_url("s3://lsap/documents", s3_options)
    with pytest.raises(ArchiveMismatchError, match="would hold a credential") as caught:
        store.create("plan.json", f'{{"secret": "{s3_options["secret"]}"}}'.encode())
    assert s3_options["secret"] not in str(caught.value)
    assert not store.exists("plan.json")


@contextlib.contextmanager
def answering(*answers: tuple[int, str]) -> Iterator[dict[str, Any]]:
    """storage_options of a server that answers each PUT with the next status and error code."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # clients ask first whether to send the body

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, code = left.pop(0) if left else (500, "AskedTooOften")
            body = f"<Error><Code>{code}</Code></Error>".encode() if code else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep the output of the tests quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        quiet = {"retries": {"max_attempts": 0}}
        try:
            yield {"key": "k", "secret": "s", "endpoint_url": url, "config_kwargs": quiet}
        finally:
            server.shutdown()
            thread.join()
    assert left == []


@pytest.mark.object_store
def test_other_servers_answers_to_a_conditional_write() -> None:
    # Ceph says 412 without naming the condition
    with answering((412, "PreconditionFailed")) as options:
        assert not Store.from_url("s3://lsap/a", options).create("x", b"1")
    # AWS says 409 while another conditional write is under way
    with answering((409, "ConditionalRequestConflict"), (200, "")) as options:
        assert Store.from_url("s3://lsap/a", options).create("x", b"1")
    # Swift cannot
    with (
        answering((501, "NotImplemented")) as options,
        pytest.raises(StoreUnavailableError, match="create-only"),
    ):
        Store.from_url("s3://lsap/a", options).create("x", b"1")
    with answering((403, "AccessDenied")) as options, pytest.raises(StoreRefusedError, match="denied"):
        Store.from_url("s3://lsap/a", options).create("x", b"1")


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_travel_between_processes(kind: type[ArchiveError]) -> None:
    error = kind("runs/x is gone: restore it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error) == "runs/x is gone: restore it"
    assert isinstance(error, ArchiveError) and len(kind.__bases__) == 2
