"""Listings: in the order of whole names on every kind of storage, a page at a time, with a version of each content."""

from __future__ import annotations

import os
import random
import re
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fsspec
import numpy as np
import pytest

from tasks.errors import SourceError
from tasks.sources.source import open_source

Write = Callable[[str, bytes], None]


@pytest.fixture(params=["local", "memory", *(pytest.param(c, marks=pytest.mark.object_store) for c in ("s3", "gcs"))])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any], Write]:
    """URL of an empty folder, its storage_options, and what writes below it."""
    name = request.node.name.partition("[")[0]
    url, options = {
        "local": (str(tmp_path), lambda: {}),
        "memory": (f"memory://{name}", lambda: {}),
        "s3": (f"s3://listed/{name}", lambda: request.getfixturevalue("s3_options")),
        "gcs": (f"gs://lsap/{name}", lambda: request.getfixturevalue("gcs_server")),
    }[request.param]
    given = options()
    fs, folder = fsspec.core.url_to_fs(url, **given, **({"use_listings_cache": False} if given else {}))

    def write(key: str, data: bytes) -> None:
        path = f"{folder}/{key}"
        if request.param == "local":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        fs.pipe_file(path, data)

    return url, given, write


# Names whose order depends on what "/" is compared with, and what is left out in more than one way.
KEYS = (
    *("a.png", "a/b.png", "a/b/c.png", "a-b/x.png", "a.b/x.png", "a/é.png", "a/z.png", "z.png", "A.png"),
    *(".h/x.png", ".h/y.png", ".hidden.png", "a/.k/b.png", "a/.k/c/d.png", "notes.txt", "a/notes", "b/.png"),
)


@pytest.mark.parametrize("pattern", ["", "/*.png", "/**/*.png", "/a*/*.png", "/**/[a-c].png"])
def test_every_storage_lists_the_same_in_the_order_of_the_ids(
    pattern: str, storage: tuple[str, dict[str, Any], Write], tmp_path_factory: pytest.TempPathFactory
) -> None:
    url, options, write = storage
    reference = tmp_path_factory.mktemp("reference")
    for key in KEYS:
        write(key, key.encode())
        (reference / key).parent.mkdir(parents=True, exist_ok=True)
        (reference / key).write_bytes(key.encode())
    with open_source(url + pattern, storage_options=options) as source, open_source(f"{reference}{pattern}") as wanted:
        items = list(source.items())
        ids = [item.image_id for item in items]
        assert ids == sorted(ids) == [item.image_id for item in wanted.items()]
        assert [source.read(item) for item in items] == [image_id.encode() for image_id in ids]
        found, expected = source.describe(), wanted.describe()
        assert found.other_files == expected.other_files
        assert found.num_hidden == expected.num_hidden > 0


def versions(url: str, options: dict[str, Any]) -> dict[str, str | None]:
    with open_source(url, storage_options=options) as source:
        return {item.image_id: item.version for item in source.items()}


def test_a_version_changes_with_the_content_and_only_with_it(storage: tuple[str, dict[str, Any], Write]) -> None:
    url, options, write = storage
    for name in ("a.png", "b.png", "c/d.png"):
        write(name, b"12345678")
    first = versions(url, options)
    assert all(first.values()) and first == versions(url, options)
    write("b.png", b"87654321")  # of the same size
    write("c/d.png", b"123")
    then = versions(url, options)
    assert {name for name in first if then[name] != first[name]} == {"b.png", "c/d.png"}
    assert versions(f"{url}/b.png", options) == {"b.png": then["b.png"]}  # alone as in the folder


def test_a_file_in_the_place_of_another_with_its_times_has_another_version(tmp_path: Path) -> None:
    path, other = tmp_path / "x.png", tmp_path / "y"
    path.write_bytes(b"12345678")
    first = versions(str(tmp_path), {})
    other.write_bytes(b"87654321")
    times = path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    assert versions(str(tmp_path), {}) != first


def test_versions_of_members_arrays_and_manifests(tmp_path: Path) -> None:
    def pack(content: bytes) -> dict[str, str | None]:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("a.png", b"1")
            archive.writestr("b.png", content)
        return versions(str(tmp_path / "x.zip"), {})

    first, again, changed = pack(b"2"), pack(b"2"), pack(b"3")
    assert first == again  # packed anew, the members are the same
    assert (first["a.png"] == changed["a.png"]) and (first["b.png"] != changed["b.png"])
    np.save(tmp_path / "x.npy", np.zeros((2, 4, 4), np.uint8))
    of_array = versions(str(tmp_path / "x.npy"), {})
    assert len(set(of_array.values())) == 1 and None not in of_array.values()
    np.save(tmp_path / "x.npy", np.ones((2, 4, 4), np.uint8))
    assert not set(of_array.values()) & set(versions(str(tmp_path / "x.npy"), {}).values())
    (tmp_path / "x.csv").write_text("uri\na.png\n")
    assert versions(str(tmp_path / "x.csv"), {}) == {"a.png": None}


@pytest.fixture
def endless() -> Iterator[Callable[[int, bool], tuple[dict[str, Any], list[str]]]]:
    """A bucket of any number of images, made while they are listed, in order or out of it; and what was asked of it."""
    asked: list[str] = []
    shape = {"num_images": 0, "in_order": True}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            asked.append(self.path)
            start = int(query.get("continuation-token", ["0"])[0])
            numbers = list(range(start, min(start + 1000, shape["num_images"])))
            if not shape["in_order"]:
                random.Random(start).shuffle(numbers)
                numbers[0] = shape["num_images"] - start
            entries = "".join(
                f"<Contents><Key>set/{n:09d}.png</Key><Size>9</Size><ETag>&quot;{n:032x}&quot;</ETag></Contents>"
                for n in numbers
            )
            left = start + 1000 < shape["num_images"]
            more = f"<NextContinuationToken>{start + 1000}</NextContinuationToken>" if left else ""
            truncated = str(left).lower()
            body = (
                f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{more}{entries}</ListBucketResult>".encode()
            )
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.send_response(404)  # the folder is no object
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep the output of the tests quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"

        def make(num_images: int, in_order: bool = True) -> tuple[dict[str, Any], list[str]]:
            shape.update(num_images=num_images, in_order=in_order)
            return {"key": "AKIAENDLESS", "secret": "of the endless", "endpoint_url": url}, asked

        yield make
        server.shutdown()


@pytest.mark.object_store
def test_a_flat_bucket_is_listed_page_by_page_in_bounded_memory(endless: Any) -> None:
    options, asked = endless(12_000)
    with open_source("s3://endless/set", storage_options=options) as source:
        items = source.items()
        first = next(items)
        before = len(asked)
        for _ in range(2_000):
            next(items)
        tracemalloc.start()
        count = 2_001 + sum(1 for _ in items)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (first.image_id, count) == ("000000000.png", 12_000)
    assert first.version is not None
    assert peak < 3 * 2**20  # all of them would take 6 MB
    listed = [path for path in asked[before:] if "list-type=2" in path]
    assert len(asked[before:]) == len(listed) == 11  # nothing else is asked, and of each page once


@pytest.mark.object_store
def test_a_store_that_does_not_list_in_order_is_refused(endless: Any) -> None:
    options, _ = endless(3_000, False)
    with open_source("s3://endless/set", storage_options=options) as source, pytest.raises(SourceError) as caught:
        list(source.items())
    assert re.search("listed out of order .* manifest", str(caught.value))
