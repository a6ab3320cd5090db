"""The whole way: PNG files in, Prefect and Ray in between, an archive on an object store out; then again, and more."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lsap_archive import Archive, Store, open_archive, verify_archive
from lsap_core.images import comparison_view, from_uint8, quantize
from tasks.decoding import decode_image
from tasks.weights import load_generator

pytestmark = [pytest.mark.ray, pytest.mark.object_store, pytest.mark.slow]

METHODS = ("stylegan2_w_plus", "lsap_o_w_plus")
URL = "s3://lsap/end-to-end"


@dataclass(frozen=True)
class Place:
    """Images on disk, and the archive that they went to."""

    images: Path
    options: dict[str, Any]
    finished: Any

    def archive(self) -> Archive:
        return open_archive(URL, storage_options=self.options)

    def rows(self) -> list[dict[str, Any]]:
        return self.archive().rows().to_pylist()


@pytest.fixture(scope="module")
def place(
    lsap_on_cluster: Any,
    s3_endpoint: str,
    save_digits: Callable[[Path, Iterable[int]], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Place:
    images = tmp_path_factory.mktemp("images")
    save_digits(images, range(10))
    finished = lsap_on_cluster.invert(source=images, archive=URL, embedding__num_steps=5).wait()
    assert finished.code == 0, finished.err
    print(finished)
    return Place(images, {"key": "any", "secret": "other-secret", "endpoint_url": s3_endpoint}, finished)


def test_first(place):
    print(place.rows()[0])
    assert 0
