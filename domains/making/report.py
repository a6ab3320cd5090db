"""The quality of a small domain's generator, measured on held-out images beside what the numbers mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from domains.making.generator import draw_samples
from domains.making.networks import accuracy
from domains.making.quality import SampleQuality, judge_samples, look
from domains.making.recipe import Recipe
from domains.network_files import load_generator_file, load_network
from lsap_core.perceptual.features import FeatureNet
from lsap_core.perceptual.judge import JudgeNet

NUM_SAMPLES = 4000
SHEET_SAMPLES, SHEET_COLUMNS = 1000, 20
COLUMNS = ("Fréchet", "class entropy", "rarest class", "confident", "precision", "recall")


@dataclass(frozen=True)
class MeasuredQuality:
    """Quality of samples, beside sets whose quality is known; all against the held-out images.

    Attributes:
        noun: what one image shows.
        rows: by name of the set: the generator's samples, real training images, and two trivial baselines.
        nearest: median pixel distance to the nearest training image, for samples and for held-out images; samples
            that copy training images would lie much closer than held-out ones do.
        accuracy: share of held-out images that each network classifies correctly.
    """

    noun: str
    rows: dict[str, SampleQuality]
    nearest: dict[str, float]
    accuracy: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = {name: quality.as_dict() for name, quality in self.rows.items()}
        return {
            f"against held-out {self.noun}s": rows,
            f"nearest training {self.noun}": self.nearest,
            "accuracy": self.accuracy,
        }

    def table(self) -> str:
        """The same as Markdown."""
        lines = [
            f"| set | {' | '.join(COLUMNS)} |",
            f"| --- |{' ---: |' * len(COLUMNS)}",
        ]
        for name, quality in self.rows.items():
            cells = " | ".join(f"{value:.3g}" for value in quality.as_dict().values())
            lines.append(f"| {name} | {cells} |")
        nearest = ", ".join(f"{name} {value:.4f}" for name, value in self.nearest.items())
        accuracies = ", ".join(f"{name} {value:.1%}" for name, value in self.accuracy.items())
        lines += [
            "",
            f"median pixel distance to the nearest training {self.noun}: {nearest}",
            f"accuracy: {accuracies}",
        ]
        return "\n".join(lines)


def measure_quality(recipe: Recipe, *, sheet: str | None = None) -> MeasuredQuality:
    """Measure the weights in the recipe's folder, and write a sheet of uncurated samples where a path is given."""
    judge = load_network(recipe.folder / "judge.safetensors", JudgeNet)
    features = load_network(recipe.folder / "features.safetensors", FeatureNet)
    generator = load_generator_file(recipe.folder / "generator.safetensors").freeze()
    train, _ = recipe.load("train")
    held_out, labels = recipe.load("test")
    samples = draw_samples(generator, NUM_SAMPLES, torch.Generator().manual_seed(0))
    if sheet is not None:
        write_sample_sheet(judge, samples[:SHEET_SAMPLES], sheet)
    noun = recipe.noun
    sets = {
        "generator samples": samples,
        f"real training {noun}s": train,
        "baseline: Gaussian of pixels": gaussian_images(train, NUM_SAMPLES),
        f"baseline: averages of two {noun}s": averaged_pairs(train, NUM_SAMPLES),
    }
    return MeasuredQuality(
        noun,
        {name: judge_samples(judge, images, held_out) for name, images in sets.items()},
        {
            "samples": nearest_distance(samples[:SHEET_SAMPLES], train),
            f"held-out {noun}s": nearest_distance(held_out, train),
        },
        {"judge": accuracy(judge, held_out, labels), "features": accuracy(features, held_out, labels)},
    )


def gaussian_images(images: Tensor, count: int) -> Tensor:
    """Images drawn from the Gaussian with the mean and covariance of others: right on average only."""
    flat = images.flatten(1).double()
    mean = flat.mean(dim=0)
    _, scale, axes = torch.linalg.svd(flat - mean, full_matrices=False)
    draws = torch.randn(count, len(scale), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn: Tensor = mean + draws * scale / len(flat) ** 0.5 @ axes
    return drawn.float().clamp(-1, 1).reshape(count, *images.shape[1:])


def averaged_pairs(images: Tensor, count: int) -> Tensor:
    """Averages of two random images: what mixing without a model gives."""
    chosen = torch.randint(len(images), (2, count), generator=torch.Generator().manual_seed(0))
    return (images[chosen[0]] + images[chosen[1]]) / 2


def nearest_distance(images: Tensor, among: Tensor) -> float:
    """Median over images of the mean squared pixel difference to the nearest one among others."""
    squared = torch.cdist(images.flatten(1), among.flatten(1)).square().min(dim=1).values
    return (squared / images[0].numel()).median().item()


def write_sample_sheet(judge: JudgeNet, samples: Tensor, path: str) -> None:
    """Uncurated samples as a picture: one row for each class that the judge sees, the first ones of each."""
    classes = look(judge, samples)[1].argmax(axis=1)
    pixels = ((samples + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()  # [N, R, R, C]
    _, side, _, channels = pixels.shape
    num_classes = judge.config.num_classes
    sheet = np.zeros((num_classes * side, SHEET_COLUMNS * side, channels), np.uint8)
    for row in range(num_classes):
        for column, image in enumerate(pixels[classes == row][:SHEET_COLUMNS]):
            sheet[row * side : (row + 1) * side, column * side : (column + 1) * side] = image
    enlarged = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    enlarged.resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Image.Resampling.LANCZOS).save(path)
