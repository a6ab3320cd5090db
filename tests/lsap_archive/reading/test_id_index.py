"""Ids are found where they are, also where hashes are the same and where an id is there many times."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from lsap_archive.reading.id_index import IdIndex

IDS = [f"{number % 700}.png" for number in range(1000)]


def wanted(asked: list[str]) -> list[int]:
    return [place for place, name in enumerate(IDS) if name in asked]


@pytest.fixture(params=["hashes", "one hash for all"])
def index(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> IdIndex:
    if request.param != "hashes":
        monkeypatch.setattr(IdIndex, "_hashes_of", lambda self, texts: np.zeros(len(texts), dtype=np.uint64))
    return IdIndex(pa.chunked_array([IDS[:300], IDS[300:]]))


@pytest.mark.parametrize("asked", [[], ["699.png"], ["3.png", "no such", "3.png", "650.png"], IDS], ids=len)
def test_all_places_of_ids_in_order(index: IdIndex, asked: list[str]) -> None:
    assert index.places_of(asked).tolist() == wanted(asked)


def test_threads_ask_at_once() -> None:
    index = IdIndex(pa.chunked_array([IDS]))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: index.places_of([f"{number}.png"]).tolist(), range(200)))
    assert found == [wanted([f"{number}.png"]) for number in range(200)]
