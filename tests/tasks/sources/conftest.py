"""A bucket for what is listed and read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, Any]]:
    """storage_options of an S3 server with a bucket named listed."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "AKIALISTINGS", "secret": "of listings", "endpoint_url": f"http://{host}:{port}"}
    fsspec.filesystem("s3", **options, use_listings_cache=False).mkdir("listed")
    yield options
    server.stop()
