"""An object of an archive in a bucket that is not what was written: noticed, named, and its images made again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import fsspec
import pytest

from lsap_archive import CorruptArchiveError
from tests.flows.faults.outcome import FaultOutcome

pytestmark = [pytest.mark.ray, pytest.mark.object_store, pytest.mark.slow]


@pytest.mark.parametrize("kind", ["w_plus/c/", "rows/shard-"], ids=["codes", "rows"])
def test_a_damaged_object(
    kind: str, bench: Any, undisturbed: Any, fault_seed: int, record: Callable[[FaultOutcome], None]
) -> None:
    """One bit of one shard, flipped in the store."""
    archive = f"lsap/faults/damaged-{kind[:4]}"
    url, files = f"s3://{archive}", fsspec.filesystem("s3", **bench.options, use_listings_cache=False)
    for name in files.find(undisturbed.archive):
        files.cp_file(name, name.replace(undisturbed.archive, archive, 1))
    chosen = random.Random(fault_seed)
    name = chosen.choice(sorted(name for name in files.find(archive) if f"/{kind}" in name))
    data = bytearray(files.cat_file(name))
    data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
    files.pipe_file(name, bytes(data))

    with pytest.raises(CorruptArchiveError, match="lsap archive verify"):
        bench.values(url)
    verified = bench.lsap("archive", "verify", url, "--json")
    (problem,) = json.loads(verified.out)["problems"]
    assert verified.code == 1
    assert f"{archive}/{problem['key']}" == name
    before = bench.finished_shards(url)
    repaired = bench.lsap("archive", "repair", url)
    assert repaired.code == 0, repaired.err

    shown = bench.values(url)
    missing = undisturbed.values.rows.keys() - shown.rows.keys()
    assert len(missing) == len(next(iter(undisturbed.members.values())))
    finished = bench.invert(url).wait()
    assert finished.code == 0, finished.err
    again = json.loads(finished.out)["embedded"] - len(missing)
    again += before.recomputed(bench.store(url), bench.proxy.log)
    record(
        bench.outcome(f"corrupted object in S3: {kind.partition('/')[0]}", 1, url, undisturbed, again, has_retired=True)
    )
