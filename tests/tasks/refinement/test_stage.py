"""Refinements of a laboratory's inversions: planned, worked on, published, rendered, edited, measured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lsap_archive import (
    FAILED,
    OK,
    Archive,
    ArchiveKeyError,
    RunReader,
    RunWriter,
    Store,
    open_archive,
    repair_archive,
    verify_archive,
)
from lsap_core.errors import ConfigError
from lsap_core.images import from_uint8, quantize
from lsap_core.objectives.terms import pixel_error
from tasks.archived.made_rows import NOT_INVERTED
from tasks.archived.rendering import RunPart, Stored
from tasks.editing.plan import EditingStage
from tasks.refinement.cost import dry_run
from tasks.refinement.plan import RefinementStage
from tasks.refinement.worker import RefineWorker
from tasks.weights.generators import load_generator
from tests.refining import METHOD, REFINED, RefiningDesk, pti


def test_refined_images_come_closer_and_are_rendered_as_they_were_measured(refining: RefiningDesk) -> None:
    archive, outcomes = refining.refine()
    assert [outcome.by_status for outcome in outcomes] == [{OK: 4}, {OK: 1}]
    assert archive.methods == [METHOD, REFINED] and archive.edits == []
    paired = archive.sql(
        "select r.mse as refined, i.mse as inverted, r.num_steps, r.final_loss, r.lpips from rows r join rows i "
        "on r.subject_run_id = i.run_id and r.subject_row = i.row"
    ).to_pylist()
    assert len(paired) == 5 and all(row["refined"] < row["inverted"] and row["num_steps"] == 6 for row in paired)
    ids = [f"{number}.png" for number in range(4)]  # a batch of the worker: convolutions round by its size
    stored = Stored.of_images(refining.renderer, archive, ids, REFINED)
    measured = archive.sql("select mse from rows where method = $m and shard = 0 order by row", m=REFINED)
    images, originals = stored.render(), RefineWorker(refining.request()).originals
    target = from_uint8(np.stack([originals.read(_record(archive, image_id)) for image_id in ids]))
    shown = pixel_error(quantize(images), target)
    assert measured.column("mse").to_pylist() == pytest.approx(shown.tolist(), rel=1e-6)  # of the numbers that are kept
    for one, image in zip(stored.one_by_one(), images, strict=True):
        torch.testing.assert_close(one.render()[0], image, atol=1e-5, rtol=0)
    assert verify_archive(refining.laboratory.archive).is_sound


def _record(archive: Archive, image_id: str) -> dict[str, Any]:
    rows = archive.sql("select image_id, uri, digest from rows where image_id = $i", i=image_id).to_pylist()
    found: dict[str, Any] = rows[0]
    return found


def test_an_edit_of_a_refinement_starts_from_it(refining: RefiningDesk, desk: Any) -> None:
    """Of strength 0 it is the refined inversion bit for bit, with its weights; and its edits are told from others."""
    refining.refine()
    edits = {name: {"direction": "right", "strength": strength} for name, strength in (("right", 2.0), ("none", 0.0))}
    archive, outcomes = desk.edit(edits, keep_images=True)
    assert {outcome.by_status[OK] for outcome in outcomes} == {4, 1}
    assert set(archive.edits) == {f"{name}/{edit}" for name in (METHOD, REFINED) for edit in edits}
    renderer, ids = refining.renderer, ["1.png", "4.png"]
    inversion, same, other = (
        Stored.of_images(renderer, archive, ids, f"{REFINED}{edit}").render() for edit in ("", "/none", "/right")
    )
    assert torch.equal(same, inversion) and not torch.equal(other, inversion)
    plain = Stored.of_images(renderer, archive, ids, f"{METHOD}/right").render()
    assert float((plain - other).abs().mean()) > 1e-3
    stored = Stored.of_images(renderer, archive, ids, REFINED)
    torch.testing.assert_close(stored.render(torch.from_numpy(archive.codes(ids, f"{REFINED}/right"))), other)
    for run in archive.runs:  # row by row as by id
        if run.method == f"{REFINED}/right":
            part = RunPart(RunReader.open(refining.laboratory.archive, run.run_id), range(1, 5))
            torch.testing.assert_close(part.stored(renderer, [0, 3]).render(), other)
    kept = {edit: archive.images(ids, f"{REFINED}/{edit}") for edit in edits}
    assert kept["right"] != kept["none"]
    assert verify_archive(refining.laboratory.archive).is_sound


def test_the_same_refinement_is_not_made_again_and_another_is(refining: RefiningDesk) -> None:
    refining.refine()
    assert refining.refine()[1] == []
    archive, outcomes = refining.refine(pti(num_steps=2))
    assert [outcome.by_status for outcome in outcomes] == [{OK: 4}, {OK: 1}]
    assert len({run.method_digest for run in archive.runs if run.method == REFINED}) == 2
    archive, outcomes = refining.refine(pti(num_steps=2), state_type="float32")
    assert [outcome.by_status for outcome in outcomes] == [{OK: 4}, {OK: 1}]
    assert archive.array(archive.runs[-1].run_id, "weights").dtype == np.float32


def test_of_an_inversion_that_was_retired_nothing_is_made(refining: RefiningDesk, desk: Any) -> None:
    archive, _ = refining.refine()
    (inversion,) = (run.run_id for run in archive.runs if run.subject is None)
    refining.laboratory.store.put(f"runs/{inversion}/rows/shard-00000.parquet", b"damaged")
    repair_archive(refining.laboratory.archive)
    assert refining.refine()[1] == []
    _, outcomes = desk.edit({"right": {"direction": "right", "strength": 2.0}}, methods=(REFINED,))
    assert [(outcome.index, outcome.by_status) for outcome in outcomes] == [(1, {OK: 1})]
    _, outcomes = refining.refine(pti(num_steps=2))
    assert [outcome.index for outcome in outcomes] == [1]


class InterruptedWorkError(Exception):
    """Someone pulled the plug."""


@pytest.mark.parametrize("keep", ["state", "images"])
def test_an_interrupted_refinement_goes_on_and_ends_the_same(
    refining: RefiningDesk, new_laboratory: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    other = RefiningDesk(new_laboratory())
    other.laboratory.invert()
    asked = {"keep": keep, "batch_size": 2}
    whole, _ = other.refine(**asked)
    put, saved = Store.put, []

    def put_some(store: Store, key: str, data: bytes) -> None:
        put(store, key, data)
        if "/state-" in key:
            saved.append(key)
            if len(saved) == 5 + 3:  # after the last step the result is kept in the place of the state
                raise InterruptedWorkError

    with monkeypatch.context() as patch, contextlib.suppress(InterruptedWorkError):
        patch.setattr(Store, "put", put_some)
        refining.refine(save_every_seconds=0, **asked)
    assert len(saved) == 8
    archive, outcomes = refining.refine(**asked)
    assert [(outcome.num_known, outcome.resumed_at) for outcome in outcomes] == [(2, 3), (0, 0)]
    ids = [f"{number}.png" for number in range(5)]
    np.testing.assert_array_equal(archive.codes(ids, REFINED), whole.codes(ids, REFINED))
    if keep == "state":
        for name, values in whole.refined(ids, REFINED).items():
            np.testing.assert_array_equal(archive.refined(ids, REFINED)[name], values, err_msg=name)
    else:
        found, wanted = (
            {key.rsplit("/", 1)[1]: lab.store.get(key) for key in lab.contents() if key.endswith(".png")}
            for lab in (refining.laboratory, other.laboratory)
        )
        assert len(found) == 5 and found == wanted


def test_what_cannot_be_read_or_was_not_inverted_is_a_row_with_its_reason(laboratory: Any) -> None:
    laboratory.fill(3)
    laboratory.put("bad.png", b"no picture")
    laboratory.invert()
    (laboratory.source / "1.png").unlink()
    laboratory.put("2.png", laboratory.picture(7))
    archive, _ = RefiningDesk(laboratory).refine()
    rows = archive.sql("select * from rows where method = $m order by image_id", m=REFINED).to_pylist()
    told = {row["image_id"]: (row["status"], row["reason"]) for row in rows}
    assert told == {
        "0.png": (OK, None),
        "1.png": (FAILED, "not_in_source"),
        "2.png": (FAILED, "changed"),
        "bad.png": (FAILED, NOT_INVERTED),
    }
    assert "bring it back, or invert it again" in rows[1]["message"]


@pytest.mark.parametrize("keep", ["images", "nothing"])
def test_without_a_state_codes_and_measurements_are_kept_and_no_edit_is_rendered(
    keep: str, refining: RefiningDesk, desk: Any
) -> None:
    archive, _ = refining.refine(keep=keep)
    run = next(run for run in archive.runs if run.method == REFINED)
    reader = RunReader.open(refining.laboratory.archive, run.run_id)
    assert {one.name for one in reader.manifest.arrays} == {"w_plus", "trace"}
    assert archive.sql("select count(mse) as n from rows where method = $m", m=REFINED).to_pylist() == [{"n": 5}]
    if keep == "images":
        assert len(archive.images(["0.png", "4.png"], REFINED)) == 2
    request = desk.request({"right": {"direction": "right", "strength": 2.0}})
    (left_out,) = EditingStage(request).notes
    assert left_out.startswith(f"left out: refinement {REFINED} kept no state (keep: {keep})")
    with pytest.raises(ConfigError, match=rf"{REFINED} kept no state .*name other methods"):
        EditingStage(replace(request, methods=(REFINED,)))
    with pytest.raises(ConfigError, match=rf"kept no state \(keep: {keep}\).*keep: state, or name other methods"):
        Stored.of_images(refining.renderer, archive, ["0.png"], REFINED)


def test_what_was_retired_is_refined_again(refining: RefiningDesk) -> None:
    archive, _ = refining.refine()
    run = next(run for run in archive.runs if run.method == REFINED)
    store = refining.laboratory.store
    store.put(f"runs/{run.run_id}/weights/c/0/0", b"damaged")
    assert "lsap run refine" in repair_archive(refining.laboratory.archive).next_commands
    archive, outcomes = refining.refine()
    assert [outcome.by_status for outcome in outcomes] == [{OK: 4}]
    found = archive.sql("select count(distinct image_id) as n from latest where method = $m", m=REFINED).to_pylist()
    assert found == [{"n": 5}] and verify_archive(refining.laboratory.archive).is_sound


def test_what_is_kept_is_told_before(refining: RefiningDesk) -> None:
    told = dry_run(refining.request())
    generator = load_generator(refining.laboratory.generator).generator
    weights = sum(parameter.numel() for parameter in generator.synthesis.parameters())
    codes = generator.config.num_ws * generator.config.w_dim
    assert told["images left by refinement"] == {REFINED: 5} and told["shards left"] == 2
    recorded = len(pti().settings.trace_steps) * len(pti().settings.trace_terms)
    assert told["bytes kept of an image"] == {REFINED: 2 * weights + 4 * codes + 4 * recorded}
    assert told["archive bytes, before compression"] == 5 * told["bytes kept of an image"][REFINED]
    assert told["archive bytes of previews, about"] == 0
    assert dry_run(refining.request(previews=16))["archive bytes of previews, about"] == 5 * 64
    assert open_archive(refining.laboratory.archive).methods == [METHOD]


def test_bad_wishes_are_refused_before_anything_is_written(
    refining: RefiningDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refining.refine()
    before = refining.laboratory.contents()
    with pytest.raises(ArchiveKeyError, match=f"{REFINED} is refined already; wanted inversions: {METHOD}"):
        RefinementStage(refining.request(methods=(REFINED,)))
    with pytest.raises(ArchiveKeyError, match="has no method e4e"):
        RefinementStage(refining.request(methods=("e4e",)))
    with pytest.raises(ConfigError, match=r"batch_size, of pti: .* together take .* of memory at least"):
        RefinementStage(refining.request(batch_size=10**9))
    monkeypatch.setattr(Store, "free_bytes", lambda store: 1000)
    with pytest.raises(ConfigError, match=r"has 0.0 GiB free.*make room, name fewer methods, or refine with keep"):
        RefinementStage(refining.request(pti(num_steps=3)))
    assert refining.laboratory.contents() == before


def test_a_run_of_a_refinement_says_how_it_was_made(refining: RefiningDesk) -> None:
    archive, _ = refining.refine()
    run = next(run for run in archive.runs if run.method == REFINED)
    assert run.subject is not None and run.subject.refiner == "pti" and run.subject.edit is None
    assert run.config["refiner"]["settings"]["num_steps"] == 6 and run.config["title"].endswith(", PTI")
    assert RunWriter.open(refining.laboratory.archive, run.run_id).arrays["weights"].dtype == "float16"
