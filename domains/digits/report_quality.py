"""The quality of the committed digits generator, measured on held-out digits beside what the numbers mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from domains.digits.data import NUM_CLASSES
from domains.digits.quality import SampleQuality, judge_samples, look
from domains.digits.train_generator import draw_samples
from domains.digits.train_networks import accuracy, as_tensors
from domains.network_files import load_generator_file, load_network
from lsap_core.generators.generator import Generator
from lsap_core.perceptual.features import FeatureNet
from lsap_core.perceptual.judge import JudgeNet

HERE = Path(__file__).parent
NUM_SAMPLES = 4000
SHEET_COLUMNS = 20
COLUMNS = ("Fréchet", "class entropy", "rarest class", "confident", "precision", "recall")


@dataclass(frozen=True)
class MeasuredQuality:
    """Quality of samples, beside sets whose quality is known; all against the 1,000 held-out digits.

    Attributes:
        rows: by name of the set: the generator's samples, real training digits, and two trivial baselines.
        nearest: median pixel distance to the nearest training digit, for samples and for held-out digits; samples
            that copy training digits would lie much closer than held-out digits do.
        accuracy: share of held-out digits that each network classifies correctly.
    """

    rows: dict[str, SampleQuality]
    nearest: dict[str, float]
    accuracy: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = {name: quality.as_dict() for name, quality in self.rows.items()}
        return {"against held-out digits": rows, "nearest training digit": self.nearest, "accuracy": self.accuracy}

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
        return "\n".join(
            [*lines, "", f"median pixel distance to the nearest training digit: {nearest}", f"accuracy: {accuracies}"]
        )


def measure_quality(*, num_samples: int = NUM_SAMPLES) -> MeasuredQuality:
    """Measure the committed assets; about a minute on one core."""
    judge = load_network(HERE / "judge.safetensors", JudgeNet)
    features = load_network(HERE / "features.safetensors", FeatureNet)
    train, _ = as_tensors("train")
    held_out, labels = as_tensors("test")
    samples = draw_samples(load_digits_generator(), num_samples, torch.Generator().manual_seed(0))
    sets = {
        "generator samples": samples,
        "real training digits": train,
        "baseline: Gaussian of pixels": gaussian_images(train, num_samples),
        "baseline: averages of two digits": averaged_pairs(train, num_samples),
    }
    return MeasuredQuality(
        {name: judge_samples(judge, images, held_out) for name, images in sets.items()},
        {
            "samples": nearest_distance(samples[:1000], train),
            "held-out digits": nearest_distance(held_out, train),
        },
        {"judge": accuracy(judge, held_out, labels), "features": accuracy(features, held_out, labels)},
    )


def load_digits_generator() -> Generator:
    """The committed generator, frozen."""
    return load_generator_file(HERE / "generator.safetensors").freeze()


def gaussian_images(images: Tensor, count: int) -> Tensor:
    """Images drawn from the Gaussian with the mean and covariance of the given ones: right on average, no digits."""
    flat = images.flatten(1).double()
    mean = flat.mean(dim=0)
    _, scale, axes = torch.linalg.svd(flat - mean, full_matrices=False)
    draws = torch.randn(count, len(scale), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = mean + draws * scale / len(flat) ** 0.5 @ axes
    return drawn.float().clamp(-1, 1).unflatten(1, images.shape[1:])


def averaged_pairs(images: Tensor, count: int) -> Tensor:
    """Averages of two random images: what mixing without a model gives."""
    chosen = torch.randint(len(images), (2, count), generator=torch.Generator().manual_seed(0))
    return (images[chosen[0]] + images[chosen[1]]) / 2


def nearest_distance(images: Tensor, among: Tensor) -> float:
    """Median over images of the mean squared pixel difference to the nearest one among others."""
    squared = torch.cdist(images.flatten(1), among.flatten(1)).square().min(dim=1).values
    return (squared / images[0].numel()).median().item()


def write_sample_sheet(path: str) -> None:
    """Uncurated samples as a picture: one row for each class that the judge sees, the first ones of each."""
    judge = load_network(HERE / "judge.safetensors", JudgeNet)
    samples = draw_samples(load_digits_generator(), 1000, torch.Generator().manual_seed(0))
    classes = look(judge, samples)[1].argmax(axis=1)
    pixels = ((samples[:, 0] + 1) * 127.5).byte().numpy()
    side = pixels.shape[1]
    sheet = np.zeros((NUM_CLASSES * side, SHEET_COLUMNS * side), np.uint8)
    for digit in range(NUM_CLASSES):
        for column, image in enumerate(pixels[classes == digit][:SHEET_COLUMNS]):
            sheet[digit * side : (digit + 1) * side, column * side : (column + 1) * side] = image
    enlarged = Image.fromarray(sheet)
    enlarged.resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Image.Resampling.LANCZOS).save(path)
