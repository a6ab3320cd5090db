"""Ids and digests of the digits' examples, written down: with another one, what archives hold would be computed again.

Planners know finished work by these names alone. `golden_digests.json` holds them as they were when runs of real
archives were given them, so a value there is not brought up to date: where one differs, what is digested has changed,
and archives that are in use lose their work. A new method or edit adds a line.

Everything is planned from the files of examples/ as the command line plans it, and nothing is computed: the anchor and
the strengths are stand-ins, and so are the codes, which no digest depends on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from domains.domain import load_domain
from flows.parameters.edit import EditRun
from flows.parameters.evaluate import EvaluateRun
from flows.parameters.invert import InvertRun
from lsap_archive import ArchiveWriter, Geometry, RunWriter
from lsap_core.presets import METHODS
from tasks.archived.opening import open_writer
from tasks.editing.chosen import MissingCalibrations
from tasks.editing.plan import EditingStage
from tasks.evaluation.plan import EvaluationStage
from tasks.inversion.methods import plan_method
from tasks.inversion.plan import InversionStage
from tasks.inversion.request import InversionRequest
from tasks.settings import Settings
from tasks.weights.generators import load_generator

EXAMPLES = Path(__file__).parents[2] / "examples"
GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden_digests.json").read_text())

FEW = "source=digits:test[:4]"
STRENGTH = 2.5  # a calibrated one is a measurement, and another on every machine
ENCODER = "0123456789abcdef" * 4  # stands for the digest of one that the digits do not have
SYNTHETIC = ("methods=[psp, e4e, lsap_e]", "synthetic={}", "source=null", "lec={}", "frechet=null", "reference=null")
VARIANTS = (
    "variants.gentle={method: lsap_o_w_plus, sncd_weight: 0.25}",
    "variants.from_e4e={method: lsap_o_w_plus_from_lsap_e, encoder: e4e}",
    f"encoders.second={EXAMPLES.parent}/domains/digits/encoders/e4e.safetensors",
    "methods=[gentle, from_e4e, second, lsap_o_w_plus, e4e]",
    "method_settings.e4e.num_refinements=1",
    "embedding.num_steps=30",
    "seed=7",
    "fit=crop",
    "anchor={num_samples: 1000, style_set: conv, seed: 3}",
)
EVERY_KIND = """edits={
    turned: {direction: slant, strength: -1.5, layers: [2, 7], any_generator: true},
    both: {sequence: [{direction: slant, strength: 1}, {direction: stroke_width, strength: -2}]},
    mixed: {mix_with: test/0001-1, layers: [4, 8]},
    between: {interpolate_to: test/0001-1, weight: 0.5},
    next: {interpolate_to: {test/0000-0: test/0001-1, test/0001-1: test/0002-2, test/0002-2: test/0003-3,
                            test/0003-3: test/0000-0}, weight: 0.25}}"""


def inversion_request(archive: Path, *changes: str) -> InversionRequest:
    run = InvertRun.read(str(EXAMPLES / "digits.yaml"), [f"archive={archive}", *changes])
    return run.resolve(Settings())


def open_demo(archive: Path) -> ArchiveWriter:
    generator = load_domain("digits").generator
    assert generator is not None
    return open_writer(str(archive), load_generator(generator))


def planned_inversions(archive: Path, *changes: str) -> dict[str, Any]:
    """Plan runs in an archive, whose anchor is there already so that it is not estimated."""
    request, writer = inversion_request(archive, *changes), open_demo(archive)
    writer.put_anchor(request.anchor.digest(writer.generator["digest"]), b"stands for one")
    with InversionStage(request) as stage:
        plans = [RunWriter.open(str(archive), job.job_id).plan for job in stage.jobs()]
    return {
        "anchor": stage.facts.anchor,
        "methods": {plan["method"]: plan["method_digest"] for plan in plans},
        "runs": {plan["method"]: plan["run_id"] for plan in plans},
    }


def publish(archive: Path, run_ids: Iterable[str]) -> None:
    """Publish runs with arrays of no meaning."""
    for run_id in run_ids:
        run = RunWriter.open(str(archive), run_id)
        for shard in range(run.num_shards):
            size = len(run.rows_of(shard))
            arrays = {name: np.zeros((size, *each.item_shape), np.float32) for name, each in run.arrays.items()}
            assert run.write_shard(shard, arrays, pa.table({"status": ["ok"] * size}), "none")
        assert run.publish({})


def kept_calibrations(writer: ArchiveWriter, missing: MissingCalibrations) -> dict[str, Any]:
    """Keep a strength for every edit that needs one; under which names that and its unit are kept."""
    for work in missing.strengths:
        writer.keep_calibration(work.digest, {"strength": STRENGTH, "refused": None})
    return {
        "deviations": {f"{one.attribute}, seed {one.options.seed}": one.digest for one in missing.spreads},
        "strengths": {f"{work.method}/{work.spec.name}": work.digest for work in missing.strengths},
    }


def planned_edits(archive: Path, *changes: str) -> dict[str, Any]:
    run = EditRun.read(str(EXAMPLES / "edit_digits.yaml"), [f"archive={archive}", *changes])
    request = run.resolve(Settings())
    stage = EditingStage(request)
    calibrations = kept_calibrations(stage.writer, stage.missing_calibrations())
    plans = [RunWriter.open(str(archive), job.job_id).plan for job in stage.jobs()]
    return {
        "edits": {name: spec.digest for name, spec in request.edits.items()},
        "calibrations": calibrations,
        "methods": stage.digests,
        "runs": {plan["method"]: plan["run_id"] for plan in plans},
    }


def planned_evaluations(archive: Path, *changes: str) -> dict[str, Any]:
    run = EvaluateRun.read(str(EXAMPLES / "evaluate_digits.yaml"), [f"archive={archive}", *changes])
    stage = EvaluationStage(run.resolve(Settings()), start=False)
    missing = stage.missing_calibrations()
    calibrations = kept_calibrations(open_demo(archive), missing)
    assert len(list(stage.jobs())) == len(stage.evaluations)
    return {"calibrations": calibrations, "evaluations": {name: list(ids) for name, ids in stage.evaluations.items()}}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the three examples share: the first digits by every method, and the demo's edits of two methods."""
    return tmp_path_factory.mktemp("golden") / "archive"


@pytest.fixture(scope="module")
def inversions(archive: Path) -> dict[str, Any]:
    found = planned_inversions(archive, FEW)
    publish(archive, found["runs"].values())
    return found


@pytest.fixture(scope="module")
def edits(archive: Path, inversions: dict[str, Any]) -> dict[str, Any]:
    found = planned_edits(archive)
    publish(archive, [run_id for name, run_id in found["runs"].items() if name.startswith(("lsap_e/", "stylegan2_w/"))])
    return found


# --- inversions ---------------------------------------------------------------------------------------


def test_the_runs_of_the_demo_keep_their_ids(tmp_path: Path) -> None:
    with InversionStage(inversion_request(tmp_path / "none"), start=False) as stage:
        assert [job.job_id for job in stage.jobs()] == GOLDEN["digits.yaml"]["new runs"]


def test_the_demos_methods_and_anchor_keep_their_digests(inversions: dict[str, Any]) -> None:
    assert inversions == GOLDEN["digits.yaml, 4 images"]


def test_variants_and_what_a_run_may_change_keep_theirs(tmp_path: Path) -> None:
    assert planned_inversions(tmp_path / "archive", FEW, *VARIANTS) == GOLDEN["digits.yaml, changed"]


def test_every_method_of_the_digits_keeps_its_digest(inversions: dict[str, Any], tmp_path: Path) -> None:
    """Those of encoders that the digits do not have, too: with a stand-in for the digest of the encoder."""
    domain = load_domain("digits")
    request = inversion_request(tmp_path / "none")
    generator = request.generator.load().digest
    found = {
        name: plan_method(
            domain.method(name),
            generator_digest=generator,
            anchor=request.anchor.digest(generator),
            networks=request.networks,
            fit=request.fit,
            seed=request.seed,
            geometry=Geometry(8, 64, (4, 8, 8, 16, 16, 32, 32)),
            encoder=ENCODER,
        ).digest
        for name in {**METHODS, **domain.encoders}
    }
    assert found == GOLDEN["domains/digits"]
    without = [name for name in inversions["methods"] if domain.method(name).encoder is None]
    assert len(without) == 5 and all(found[name] == inversions["methods"][name] for name in without)


# --- edits and evaluations ----------------------------------------------------------------------------


def test_edits_their_calibrations_and_their_runs_keep_their_names(edits: dict[str, Any]) -> None:
    assert edits == GOLDEN["edit_digits.yaml, 4 images"]


def test_edits_of_every_kind_keep_theirs(archive: Path, inversions: dict[str, Any]) -> None:
    changes = ("methods=[lsap_e, stylegan2_w]", EVERY_KIND, "keep_images=false")
    assert planned_edits(archive, *changes) == GOLDEN["edit_digits.yaml, every kind"]


def test_evaluations_keep_their_ids(archive: Path, edits: dict[str, Any]) -> None:
    assert planned_evaluations(archive) == GOLDEN["evaluate_digits.yaml, 4 images"]


def test_evaluations_at_equal_effect_without_originals_keep_theirs(archive: Path, inversions: dict[str, Any]) -> None:
    lec = "lec={even: {direction: stroke_width, equal_effect: {attribute: stroke_width, change: 0.5}}}"
    changes = ("methods=[e4e, lsap_e]", lec, "source=null", "frechet=null", "reference=null", "calibration_images=8")
    assert planned_evaluations(archive, *changes) == GOLDEN["evaluate_digits.yaml, equal effect"]


def test_evaluations_of_synthetic_images_keep_theirs(tmp_path: Path) -> None:
    assert planned_evaluations(tmp_path / "archive", *SYNTHETIC) == GOLDEN["evaluate_digits.yaml, synthetic"]
