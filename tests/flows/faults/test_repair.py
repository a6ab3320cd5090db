"""An object of an archive in a bucket that is not what was written: noticed, named, and its images made again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from lsap_archive import CorruptArchiveError
from tests.flows.faults.work import Work

pytestmark = [pytest.mark.ray, pytest.mark.object_store, pytest.mark.slow]


@pytest.mark.all_faults
@pytest.mark.parametrize("kind", ["w_plus/c/", "rows/shard-"], ids=["codes", "rows"])
def test_a_damaged_object(
    kind: str,
    inversion: Work,
    chosen: random.Random,
    how_many: Callable[[int, int], int],
    record: Callable[..., None],
) -> None:
    """One bit of one shard, flipped in the store."""
    bench, outcomes, (name_of_kind, _, _) = inversion.bench, [], kind.partition("/")
    for number in range(how_many(1, 3)):
        archive = f"lsap/faults/damaged-{name_of_kind}-{number}"
        url = f"s3://{archive}"
        bench.copy(inversion.undisturbed.archive, url)
        name = chosen.choice(sorted(name for name in bench.files.find(archive) if f"/{kind}" in name))
        data = bytearray(bench.files.cat_file(name))
        data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        bench.files.pipe_file(name, bytes(data))

        with pytest.raises(CorruptArchiveError, match="lsap archive verify"):
            bench.values(url)
        verified = bench.commands.ended(bench.commands.add(bench.lsap.start("archive", "verify", url, "--json")))
        (problem,) = json.loads(verified.out)["problems"]
        assert verified.code == 1
        assert f"{archive}/{problem['key']}" == name
        before = bench.finished_shards(url)
        repaired = bench.commands.ended(bench.commands.add(bench.lsap.start("archive", "repair", url)))
        assert repaired.code == 0, repaired.err

        shown = bench.values(url)
        missing = inversion.undisturbed.values.rows.keys() - shown.rows.keys()
        assert len(missing) == len(next(iter(inversion.undisturbed.members.values())))
        finished = inversion.finish(url)
        again = json.loads(finished.out)["embedded"] - len(missing)
        again += before.recomputed(bench.store(url), bench.proxy.log)
        outcomes.append(
            inversion.outcome(f"corrupted object in S3: {name_of_kind}", 1, url, again, may_say=["retired"])
        )
    record(outcomes)
