"""What a training may be asked for, what is refused, and what a dry run tells. No server, no Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from domains.domain import load_domain
from flows.commands.cli import main
from flows.parameters.train_encoder import TrainEncoderRun
from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.presets import TRAININGS
from tasks.reports.training import curves_table, sparkline
from tasks.settings import Settings
from tasks.weights.encoders import encode_encoder
from tasks.weights.generators import load_generator

DONE, ASKED_WRONGLY = 0, 2
CONFIG = """\
source: digits:train[:40]
domain: digits
identity: digits-features
training: {batch_size: 4, num_steps: 100, decay_steps: 0, identity_weight: 0.1}
validation_images: 8
workers: {device: cpu}
"""

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """`run train_encoder` into tmp_path/training in this process, with changes; `__` stands for a dot."""
    config = tmp_path / "training.yaml"
    config.write_text(CONFIG)

    def run(*flags: str, **fields: Any) -> tuple[int, str, str]:
        changes = {"output": tmp_path / "training", **fields}
        words = [word for name, value in changes.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]
        code = main(["run", "train_encoder", str(config), *words, *flags])
        return code, *capsys.readouterr()

    return run


WRONG = {
    "unknown field": ({"sorce": "x"}, ["sorce", "no such field"]),
    "unknown method": ({"method": "hfgi"}, ['method: "hfgi"', "lsap_e"]),
    "unknown setting": ({"training__lr": 1}, ["training", "'lr'", "learning_rate"]),
    "setting of another type": ({"training__num_steps": "many"}, ["num_steps", "'many'", "whole number"]),
    "claim that is none": ({"training__is_iterative": 3}, ["is_iterative is 3", "true or false"]),
    "setting out of range": ({"training__learning_rate": 0}, ["learning_rate", "positive"]),
    "unknown precision": ({"training__precision": "half"}, ["precision", '"bfloat16"']),
    "unknown backbone": ({"backbone": "vit"}, ["backbone", "'vit'", "ir_se_50"]),
    "unknown augmentation": ({"augmentation": "cutout"}, ["augmentation", "'flip'"]),
    "unknown network": ({"perceptual": "lpips-resnet"}, ["lpips-resnet", "lpips-alex"]),
    "unknown identity": ({"identity": "facenet"}, ["facenet", "arcface"]),
    "no identity": ({"identity": "none"}, ["identity_weight is 0.1", "arcface", "moco"]),
    "a batch that cannot be shared": ({"workers__count": 3}, ["workers.count: 3", "batch of 4", "divisor"]),
    "two places for a backbone": (
        {"init_from": "a.pt", "backbone_weights": "b.pth"},
        ["backbone_weights", "leave one"],
    ),
    "folder of one process": ({"output": "memory://x"}, ["memory://", "s3://"]),
    "folder with a password": ({"output": "s3://user:secret@bucket/x"}, ["credentials"]),
    "missing source": ({"source": "nowhere/images"}, ["nowhere/images"]),
    "too few images": ({"source": "digits:train[:10]"}, ["2 images besides the 8", "a batch is 4"]),
    "missing generator": ({"generator": "nowhere.pt"}, ["nowhere.pt", "does not exist"]),
    "missing encoder": ({"init_from": "nowhere.pt"}, ["nowhere.pt", "does not exist"]),
    "backbone without weights": ({"backbone_weights": "training.yaml"}, ["training.yaml", "model_ir_se50.pth"]),
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
    assert line.startswith("lsap: ") and "user:secret" not in line
    for word in words:
        assert word in line
    assert set(tmp_path.rglob("*")) == before


def test_a_missing_identity_network_is_named_with_its_place(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSAP_BACKBONES", str(tmp_path / "backbones"))
    code, _, err = train(perceptual="lpips-alex")
    assert code == ASKED_WRONGLY
    for word in ("lpips-alex", str(tmp_path / "backbones"), "LSAP_BACKBONES"):
        assert word in err


@pytest.mark.parametrize("method", TRAININGS)
def test_a_dry_run_tells_the_work_and_writes_nothing(method: str, train: Command, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    code, out, err = train("--dry-run", "--json", method=method, checkpoint_every=30)
    assert (code, err) == (DONE, "")
    told = json.loads(out)
    assert (told["images to train on"], told["images held out"], told["steps left"]) == (32, 8, 100)
    assert (told["epochs left"], told["checkpoints left"]) == (12.5, 4)
    assert told["parameters of the encoder"] > 1e5
    assert told["bytes of a checkpoint"] > 4 * 4 * told["parameters of the encoder"]  # weights, two moments, slow ones
    assert told["hours on this machine, one worker"] > 0
    assert set(tmp_path.rglob("*")) == before


def test_the_domain_gives_what_the_run_leaves_open(tmp_path: Path) -> None:
    config = tmp_path / "training.yaml"
    config.write_text(CONFIG)
    resolved = TrainEncoderRun.read(str(config), ["output=x", "training.sncd_weight=1e-1"]).resolve(Settings())
    spec, presets = resolved.spec, load_domain("digits").encoder_training
    assert (spec.backbone, spec.augmentation, spec.networks.perceptual) == ("small", "digits", "digits-features")
    wanted = presets.method(
        "lsap_e", {"batch_size": 4, "num_steps": 100, "decay_steps": 0, "identity_weight": 0.1, "sncd_weight": 0.1}
    )
    assert spec.method == wanted
    assert (resolved.workers.count, resolved.workers.gpus_each) == (1, 0.0)


def test_the_example_can_be_run() -> None:
    resolved = TrainEncoderRun.read("examples/train_digits.yaml").resolve(Settings())
    assert (resolved.spec.source, resolved.spec.method.title) == ("digits:train", "LSAP_E")


def test_an_encoder_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = load_generator("domains/digits/generator.safetensors")
    encoder = Encoder(EncoderConfig.for_generator(generator.config, heads="offsets", backbone="small"))
    path = tmp_path / "mine.safetensors"
    path.write_bytes(encode_encoder(encoder, generator_digest=generator.digest, title="Mine", options={"step": 7}))
    assert main(["encoder", "describe", str(path), "--json"]) == DONE
    told = json.loads(capsys.readouterr().out)
    assert (told["heads"], told["backbone"], told["title"]) == ("offsets", "small", "Mine")
    assert (told["generator_digest"], told["options"]) == (generator.digest, {"step": 7})
    torch.save({"no": torch.zeros(1)}, tmp_path / "none.pt")
    assert main(["encoder", "describe", str(tmp_path / "none.pt")]) == ASKED_WRONGLY
    assert "none.pt" in capsys.readouterr().err


def test_curves_are_drawn_from_what_is_there() -> None:
    assert sparkline([0.0, 1.0, 2.0, float("nan"), 7.0]) == "▁▂▃ █"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert len(sparkline([float(step) for step in range(1000)])) == 32
    table = curves_table([{"step": 1, "time": 0.0, "loss": 2.0}, {"step": 2, "time": 1.0, "loss": 1.0, "r1": 3.0}], [])
    assert "| loss | 2 | 1 | █▁ |" in table and "| r1 | 3 | 3 | ▁ |" in table and "time" not in table
