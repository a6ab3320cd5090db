"""A batch is as large as memory has room for, and smaller once it ran out; what each image gets stays the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.presets import METHODS
from tasks.errors import OutOfMemoryError
from tasks.inversion.batches import Footprint, batch_that_fits, is_certain, room_of_worker
from tasks.inversion.cost import cost_of
from tasks.inversion.probe import Probed
from tasks.inversion.worker import EmbedWorker
from tasks.remembered import Remembered
from tests.tasks.conftest import CONFIG

GIB = 2**30


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSAP_CACHE", str(tmp_path / "cache"))


def crowded(worker: EmbedWorker, room: int) -> list[int]:
    """A worker whose device has memory for so many images; returns the batches that are begun."""
    begun: list[int] = []
    perceptual = worker.networks.perceptual

    class Crowded:
        distance = staticmethod(perceptual.distance)

        def features(self, images: Tensor) -> list[Tensor]:
            begun.append(len(images))
            if len(images) > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return perceptual.features(images)

    worker.networks = replace(worker.networks, perceptual=Crowded())  # type: ignore[arg-type]
    return begun


@pytest.mark.parametrize("stop_at_lpips", [None, 0.0])
def test_a_batch_that_memory_runs_out_with_is_halved_and_nobody_tries_it_again(
    stop_at_lpips: float | None, new_laboratory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """One whose rows are filled again, too; where no image is ever near enough, the codes are the same."""
    through, small = new_laboratory(), new_laboratory()
    through.fill(5)
    wanted = through.invert(shard_rows=5)
    small.methods = (small.methods[0].with_settings({"stop_at_lpips": stop_at_lpips}),)
    prepared = small.prepare(shard_rows=5, batch_size=4)
    worker = small.worker(prepared)
    begun = crowded(worker, 1)
    outcome = worker(prepared.shards[0])
    assert outcome.by_status == {"ok": 5} and worker.progress() == 5
    assert begun[:3] == [4, 2, 1] and set(begun[3:]) == {1}
    assert "batches of 2 images: with 4 memory ran out (20.00 GiB were asked for)" in caplog.text
    found, ids = small.publish(prepared), [f"{number}.png" for number in range(5)]
    np.testing.assert_allclose(  # rounding of the last digit, grown over the steps
        found.codes(ids, "stylegan2_w_plus"), wanted.codes(ids, "stylegan2_w_plus"), atol=5e-3, rtol=0
    )
    assert {row["attempt"].rsplit("-", 1)[1] for row in found.rows().to_pylist()} == {"batch1"}

    again = small.prepare(shard_rows=5, seed=1)
    worker = small.worker(again)  # of another process, say: it finds what this one has learnt
    begun = crowded(worker, 1)
    worker(again.shards[0])
    assert set(begun) == {1}


def test_where_not_even_one_image_has_room_the_error_says_how_much_there_is(laboratory: Any) -> None:
    laboratory.fill(1)
    prepared = laboratory.prepare()
    worker = laboratory.worker(prepared, memory_bytes=3 * GIB)
    crowded(worker, 0)
    with pytest.raises(OutOfMemoryError, match=r"not even one image at a time .*20\.00 GiB .* room for 3\.0 GiB"):
        worker(prepared.shards[0])


def test_batches_are_halved_for_every_process_that_was_ended(laboratory: Any) -> None:
    laboratory.fill(1)
    request = laboratory.prepare().request
    (method,) = request.methods
    assert [batch_that_fits(request, method, CONFIG, halvings=number) for number in (0, 1, 2, 3)] == [4, 2, 1, 1]
    with pytest.raises(OutOfMemoryError, match="also with one image at a time"):
        batch_that_fits(request, method, CONFIG, halvings=4)
    assert batch_that_fits(request, method, CONFIG) == 1  # of the next command


def test_what_fits_follows_from_one_image_and_two() -> None:
    two = Footprint.of_probes([Probed(1, GIB, 4 * GIB, 10.0), Probed(2, GIB, 7 * GIB, 18.0)])
    assert (two.held_bytes, two.image_bytes, two.image_seconds) == (GIB, 3 * GIB, 9.0)
    assert [two.most(room * GIB) for room in (3, 4, 21, 25)] == [0, 1, 6, 8]
    one = Footprint.of_probes([Probed(1, GIB, 4 * GIB, 10.0)])  # two had no room
    assert one.of(1) == 4 * GIB and one.most(7 * GIB) == 2


def test_a_batch_is_fitted_to_the_room_of_a_worker_by_what_a_process_of_its_own_took(laboratory: Any) -> None:
    laboratory.fill(1)
    asked = {"fits_batch": True, "memory_bytes": 2 * GIB, "num_workers": 2, "batch_size": 10**6}
    request = replace(laboratory.prepare().request, **asked)
    (method,) = request.methods
    assert not is_certain(request, method, CONFIG, room_of_worker(request))
    batch = batch_that_fits(request, method, CONFIG)  # one image and two are tried in a process of its own
    (kept,) = Remembered("batches")._all().values()
    assert (kept["device"], kept["method"], [one["batch"] for one in kept["probed"]]) == ("cpu", method.name, [1, 2])
    footprint = Footprint.of_probes([Probed(**one) for one in kept["probed"]])
    assert 1 <= batch <= footprint.most(2 * GIB)
    held = kept["probed"][0]["held_bytes"]
    assert 0.1 * GIB < held < kept["probed"][1]["peak_bytes"] < 2 * GIB  # torch alone is more
    crowded_request = replace(request, memory_bytes=held // 2)  # not tried again, and refused with the figures
    for insisting in (True, False):
        with pytest.raises(
            ConfigError, match=r"batches of 1 .* take 0\.\d GiB .* each of 2 workers has room for 0\.\d"
        ):
            cost_of(replace(crowded_request, fits_batch=not insisting), method, CONFIG, at_most=10**6)
    told = cost_of(request, method, CONFIG, at_most=10**6)
    assert told.batch == batch and held < told.peak_bytes <= 2 * GIB and told.image_seconds > 0
    fewer = cost_of(request, method, CONFIG, at_most=1)  # images than a batch has room for
    assert fewer.batch == 1 and told.peak_bytes - fewer.peak_bytes == (batch - 1) * footprint.image_bytes


def test_large_images_are_tried_and_small_ones_are_not(laboratory: Any) -> None:
    request = laboratory.request()
    large, encoder = GeneratorConfig.config_f(1024), METHODS["e4e"]
    (method,) = request.methods
    assert is_certain(request, method, CONFIG, 16 * GIB)
    assert not is_certain(request, method, large, 16 * GIB)
    assert is_certain(request, encoder, GeneratorConfig.config_f(256), 128 * GIB)
