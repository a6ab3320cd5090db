"""An S3 server on this machine, in a process of its own, for benchmarks of what goes into a bucket."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO


@dataclass(frozen=True)
class S3Server:
    """A server that answers.

    Attributes:
        endpoint: its URL; it takes any credentials.
        pid: its process.
    """

    endpoint: str
    pid: int


@contextlib.contextmanager
def opened_s3_server(bucket: str, log: int | IO[bytes] = subprocess.DEVNULL) -> Iterator[S3Server]:
    """A server with an empty bucket.

    Args:
        bucket: its name.
        log: file that every request is written to.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    server = S3Server(f"http://127.0.0.1:{port}", process.pid)
    try:
        _make_bucket(f"{server.endpoint}/{bucket}")
        yield server
    finally:
        process.terminate()
        process.wait()


def _make_bucket(url: str) -> None:
    """Wait for the server and make the bucket."""
    for _ in range(300):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=5)
            return
        time.sleep(0.2)
    raise SystemExit(f"{url} could not be made: nobody answered within a minute")
