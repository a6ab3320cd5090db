"""What a training of a refiner's networks may be asked for, what is refused, and what a dry run tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domains.domain import load_domain
from flows.commands.cli import main
from flows.parameters.refine import RefineRun
from flows.parameters.train_refiner import TrainRefinerRun
from lsap_core.inversion.by_encoder import EncoderSettings
from lsap_core.refinement.sam import SamSettings
from tasks.settings import Settings
from tasks.training.predictors import PredictorTrainingSpec
from tasks.training.pti import PtiTrainingSpec
from tasks.training.refiners import RefinerTrainingSpec

DONE, ASKED_WRONGLY = 0, 2
CONFIG = """\
source: digits:train[:40]
domain: digits
training: {batch_size: 4, num_steps: 100, decay_steps: 0}
validation_images: 8
workers: {device: cpu}
"""

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """`run train_refiner` into tmp_path/training in this process, with changes; `__` stands for a dot."""
    config = tmp_path / "training.yaml"
    config.write_text(CONFIG)

    def run(*flags: str, **fields: Any) -> tuple[int, str, str]:
        changes = {"output": tmp_path / "training", **fields}
        words = [word for name, value in changes.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]
        code = main(["run", "train_refiner", str(config), *words, *flags])
        return code, *capsys.readouterr()

    return run


WRONG = {
    "unknown field": ({"method": "hfgi"}, ["method", "no such field"]),
    "unknown refiner": ({"refiner": "pti"}, ['networks of refiner "pti" cannot be trained', "hfgi"]),
    "unknown setting": ({"training__lr": 1}, ["training", "'lr'", "learning_rate"]),
    "setting of another type": (
        {"training__starts_without_effect": 3},
        ["starts_without_effect is 3", "true or false"],
    ),
    "setting out of range": ({"training__widths": "tiny"}, ['widths is "tiny"', "small"]),
    "decay beyond the end": ({"training__decay_steps": 101}, ["decay_steps is 101", "100"]),
    "several workers": ({"workers__count": 2}, ["workers.count: 2", "trained by one worker", "wanted 1"]),
    "no identity": ({"training__identity_weight": 0.1}, ["identity_weight is 0.1", "arcface", "moco"]),
    "unknown encoder": ({"encoder": "mine"}, ['where "mine" lies', "lsap_e", "encoders.mine=..."]),
    "missing encoder": ({"encoders__lsap_e": "nowhere.pt"}, ["nowhere.pt", "does not exist"]),
    "an encoder that is no encoder": ({"encoders__pti": "training.yaml", "encoder": "pti"}, ["training.yaml"]),
    "another view": ({"training__view_side": 64}, ["view_side: 64", "leave view_side out"]),
    "no inverter": ({"refiner": "sfe"}, ["inverter: no file is named", "sfe_inverter"]),
    "an inverter too many": ({"refiner": "hyperstyle", "inverter": "x.pt"}, ["inverter", "starts from no such file"]),
    "an edit without powers": (
        {"refiner": "sfe", "training__edits": "{slant: []}"},
        ["edits is", "wanted lists of numbers by name, such as {smile: [-2, 2]}"],
    ),
    "no archive": ({"refiner": "pti_shared"}, ["archive: none given", "pti_shared is trained on the inversions"]),
    "no such archive": ({"refiner": "pti_shared", "archive": "nowhere"}, ["nowhere"]),
    "archive of one process": ({"refiner": "pti_shared", "archive": "memory://x"}, ["archive: memory://x", "s3://"]),
    "an archive for nothing": ({"archive": "nowhere"}, ["archive: hfgi is trained without; leave it out"]),
    "an encoder for nothing": (
        {"refiner": "pti_shared", "archive": "nowhere", "encoder": "e4e"},
        ["encoder: pti_shared is trained without; leave it out"],
    ),
    "no archive of spaces": (
        {"refiner": "sam", "training": "{}"},
        ["archive: none given", "sam is trained on the inversions of one"],
    ),
    "a space that is none": (
        {"refiner": "sam", "training": "{}", "archive": "a", "inversions": "{F6: lsap_e/f6}"},
        ['inversions: "F6"', "W+, F2, F4"],
    ),
    "no such archive of spaces": ({"refiner": "sam", "training": "{}", "archive": "nowhere"}, ["nowhere"]),
    "folder of one process": ({"output": "memory://x"}, ["memory://", "s3://"]),
    "too few images": ({"source": "digits:train[:10]"}, ["2 images besides the 8", "a batch is 4"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_one_sentence_and_writes_nothing(
    case: str, train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, words = WRONG[case]
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    code, out, err = train(**changes)
    assert (code, out) == (ASKED_WRONGLY, ""), err
    (line,) = err.splitlines()
    assert line.startswith("lsap: ")
    for word in words:
        assert word in line
    assert set(tmp_path.rglob("*")) == before


def test_a_dry_run_tells_the_work_and_writes_nothing(train: Command, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    code, out, err = train("--dry-run", "--json", checkpoint_every=30)
    assert (code, err) == (DONE, "")
    told = json.loads(out)
    assert (told["method"], told["images to train on"], told["steps left"]) == ("HFGI", 32, 100)
    assert (told["epochs left"], told["checkpoints left"]) == (12.5, 4)
    assert 5e4 < told["parameters of the networks"] < 2e5
    assert told["bytes of a checkpoint"] > 4 * 4 * told["parameters of the networks"]
    assert told["hours on this machine, one worker"] > 0
    assert set(tmp_path.rglob("*")) == before


def test_labels_and_heads_of_the_run_reach_the_training(tmp_path: Path) -> None:
    config = tmp_path / "training.yaml"
    config.write_text(CONFIG)
    words = ["output=x", "encoder=mine", "encoders.mine=mine.pt", "heads.mine=single", "label=4"]
    spec = TrainRefinerRun.read(str(config), words).resolve(Settings()).spec
    assert isinstance(spec, RefinerTrainingSpec)
    assert (spec.heads, spec.generator.label) == ("single", 4)


def test_the_domain_gives_what_the_run_leaves_open(tmp_path: Path) -> None:
    config = tmp_path / "training.yaml"
    config.write_text(CONFIG)
    resolved = TrainRefinerRun.read(str(config), ["output=x", "training.distortion=1e-1"]).resolve(Settings())
    spec, digits = resolved.spec, load_domain("digits")
    assert isinstance(spec, RefinerTrainingSpec)
    assert (spec.augmentation, spec.networks.perceptual) == ("digits", "digits-features")
    assert (spec.encoder, spec.encoder_name, spec.embedding) == (digits.encoders["lsap_e"], "lsap_e", EncoderSettings())
    assert spec.method == digits.training_of_refiner(
        "hfgi", {"batch_size": 4, "num_steps": 100, "decay_steps": 0, "distortion": 0.1}
    )
    assert (spec.method.settings.widths, spec.method.settings.starts_without_effect) == ("small", True)


def test_the_phases_of_style_feature_editor_take_what_they_need(tmp_path: Path) -> None:
    config = tmp_path / "training.yaml"
    config.write_text(CONFIG)
    words = ["output=x", "encoder=nobody"]
    first = TrainRefinerRun.read(str(config), [*words, "refiner=sfe_inverter"]).resolve(Settings()).spec
    assert isinstance(first, RefinerTrainingSpec)
    assert (first.encoder, first.files, first.last_key) == (None, {}, "sfe_inverter.safetensors")
    second = TrainRefinerRun.read(str(config), ["output=x", "refiner=sfe", "inverter=a.pt"]).resolve(Settings()).spec
    assert isinstance(second, RefinerTrainingSpec)
    assert (second.files, second.last_key) == ({"inverter": "a.pt"}, "sfe.safetensors")
    assert second.method.settings.edits == {"slant": (-2, -1, 1, 2), "stroke_width": (-2, -1, 1, 2)}
    assert second.encoder == load_domain("digits").encoders["lsap_e"]


def test_pivots_and_images_are_what_an_archive_has(tmp_path: Path) -> None:
    config = tmp_path / "training.yaml"
    config.write_text("source: digits:train[:40]\noutput: x\ndomain: digits\nrefiner: pti_shared\narchive: y\n")
    spec = TrainRefinerRun.read(str(config), ["subject=e4e", "training.num_steps=70"]).resolve(Settings()).spec
    assert isinstance(spec, PtiTrainingSpec) and (spec.archive, spec.subject, spec.augmentation) == ("y", "e4e", "none")
    assert (spec.settings.num_steps, spec.settings.batch_size, spec.settings.weights_type) == (70, 16, "float16")
    assert (spec.networks.perceptual, spec.networks.identity) == ("digits-features", None)


def test_the_examples_can_be_run() -> None:
    """SAM's default names are those that the other example's variants make."""
    resolved = TrainRefinerRun.read("examples/train_refiner_digits.yaml").resolve(Settings())
    assert (resolved.spec.source, resolved.spec.method.title) == ("digits:train", "HFGI")
    resolved = TrainRefinerRun.read("examples/train_refiner_digits_pti.yaml").resolve(Settings())
    assert (resolved.spec.source, resolved.spec.method.title) == ("digits:test[:64]", "PTI")
    spec = TrainRefinerRun.read("examples/train_refiner_digits_sam.yaml").resolve(Settings()).spec
    assert isinstance(spec, PredictorTrainingSpec)
    assert (spec.placement, spec.networks.identity, spec.method.settings.base) == ("block", None, "small")
    refining = RefineRun.read("examples/refine_digits_spaces.yaml").resolve(Settings())
    assert spec.inversions == {
        refiner.settings.only: f"{refining.methods[0]}/{refiner.name}"
        for refiner in refining.refiners
        if isinstance(refiner.settings, SamSettings)
    }
