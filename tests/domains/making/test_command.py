"""Making another domain than the digits: colour, another size, other classes; the command, and what it leaves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import domains.making.report as report
from domains.making.command import make
from domains.making.recipe import GeneratorRecipe, NetworkRecipe, Recipe, Split
from domains.network_files import load_generator_file, load_network
from lsap_core.generators.config import GeneratorConfig
from lsap_core.perceptual.features import FeatureNet, FeatureNetConfig
from lsap_core.perceptual.judge import JudgeNet

NUM_CLASSES = 3


def load(split: Split) -> tuple[Tensor, Tensor]:
    """Images of one colour each: red, green or blue."""
    labels = torch.arange(192 if split == "train" else 96) % NUM_CLASSES
    stream = torch.Generator().manual_seed(len(labels))
    images = torch.eye(NUM_CLASSES)[labels][..., None, None].expand(-1, -1, 16, 16) - 0.5
    return images + 0.1 * torch.randn(images.shape, generator=stream), labels


def network(kind: Any, seed: int) -> NetworkRecipe:
    config = FeatureNetConfig(16, 3, channels=(8, 8), embedding_dim=8, num_classes=NUM_CLASSES)
    amounts = {"rotation_degrees": 5, "shift_pixels": 1, "scale": 0.05}
    return NetworkRecipe(kind, config, seed, num_epochs=3, learning_rate=1e-2, augmentation=amounts, pixel_noise=0.05)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    networks = {"features": network(FeatureNet, 1), "judge": network(JudgeNet, 2)}
    sizes = GeneratorConfig(16, (8, 8, 8), z_dim=4, w_dim=8, num_mapping_layers=2)
    generator = GeneratorRecipe(seed=3, batch_size=8, reconstruction_images=16, adversarial_images=16)
    return Recipe(tmp_path, "colour", load, networks, sizes, generator)


def test_all_parts_are_made_by_one_command_and_measured(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["features"], ["judge"], ["generator", "--style-mixing", "0.5"]):
        monkeypatch.setattr(sys, "argv", ["recipe", *words])
        make(recipe)
    assert "features.safetensors: accuracy 1.0000 on held-out colours" in capsys.readouterr().out
    log = [json.loads(line) for line in (recipe.folder / "training.jsonl").read_text().splitlines()]
    assert log[0]["recipe"]["style_mixing"] == 0.5 and log[-1]["images"] == 32
    assert load_generator_file(recipe.folder / "generator.safetensors").config == recipe.sizes

    monkeypatch.setattr(report, "NUM_SAMPLES", 200)
    measured = report.measure_quality(recipe, sheet=str(recipe.folder / "sheet.png"))
    told = measured.to_dict()
    assert list(told) == ["against held-out colours", "nearest training colour", "accuracy"]
    real, samples = (told["against held-out colours"][name] for name in ("real training colours", "generator samples"))
    assert real["class_entropy"] == pytest.approx(1) and real["frechet"] < samples["frechet"]
    assert "| baseline: averages of two colours |" in measured.table()
    with Image.open(recipe.folder / "sheet.png") as sheet:
        assert (sheet.mode, sheet.size) == ("RGB", (20 * 16 * 2, NUM_CLASSES * 16 * 2))


def test_the_seed_decides(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for name in ("first", "second"):
        path = recipe.folder / f"{name}.safetensors"
        monkeypatch.setattr(sys, "argv", ["recipe", "judge", "--output", str(path)])
        make(recipe)
        states.append(load_network(path, JudgeNet).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
