"""Directions of a generator, found from samples: InterFaceGAN's boundaries and GANSpace's components."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.svm import SVC, LinearSVC
from torch import Tensor

from lsap_core.editing import Direction, conditional
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.generator import Generator
from lsap_core.images import crop, to_uint8
from tasks.array_files import ArrayFileError, read_npy
from tasks.measuring.attributes import AnyAttribute
from tasks.weights.files import read_bytes

Floats = NDArray[np.float64]

SAMPLE_BATCH = 4096
TRAINING_SHARE = 0.7
LARGEST_KERNEL_FIT = 100_000
"""Beyond as many training codes the kernel machine, whose time grows with their square, gives way to a linear one."""
RESPONSE_SAMPLES = 2_000


@dataclass(frozen=True)
class SampleOptions:
    """Which synthetic codes a direction is found from.

    Attributes:
        num_samples: how many.
        psi: truncation, w = w_avg + psi (w - w_avg); the image and the code that is fitted are both of this w.
        seed: of the random codes, drawn on the CPU whatever the device.
    """

    num_samples: int
    psi: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what gives no codes."""
        if self.num_samples < 2 or not math.isfinite(self.psi) or self.psi <= 0:
            raise ConfigError(f"{self.num_samples} samples with psi {self.psi}; wanted at least 2, and psi above 0")


@dataclass(frozen=True)
class Boundary:
    """A hyperplane between codes with much and with little of an attribute, and how well it divides them.

    Attributes:
        normal: [D], of length 1, towards more of the attribute.
        solver: what fitted it.
        num_positive: codes chosen on each side, for training and validation together.
        validation_accuracy: share of the held-out chosen codes on their side.
        remaining_accuracy: the same of all codes that were not chosen, against the middle of the scores; None without.
        margin: norm of the coefficients, before the normal was made of length 1.
    """

    normal: Floats
    solver: str
    num_positive: int
    validation_accuracy: float
    remaining_accuracy: float | None
    margin: float


@dataclass(frozen=True)
class Response:
    """What one unit of strength does to an attribute.

    Attributes:
        change: mean change of the attribute, in its unit.
        change_in_deviations: the same in standard deviations of the attribute over the samples.
        mean: of the attribute over the samples.
        deviation: its standard deviation.
        num_images: images that it was measured on.
    """

    change: float
    change_in_deviations: float
    mean: float
    deviation: float
    num_images: int


@torch.no_grad()
def sampled_codes(generator: Generator, options: SampleOptions) -> Iterator[Tensor]:
    """Truncated W codes of random z, batch by batch, [n, w_dim], on the generator's device."""
    config, device = generator.config, generator.mapping.w_avg.device
    if options.psi != 1 and not generator.has_w_avg:
        raise ConfigError(f"psi is {options.psi}, and these weights do not hold the mean of W: sample with psi 1")
    stream = torch.Generator().manual_seed(options.seed)
    for start in range(0, options.num_samples, SAMPLE_BATCH):
        z = torch.randn(min(SAMPLE_BATCH, options.num_samples - start), config.z_dim, generator=stream)
        w = generator.map(z.to(device))
        yield w if options.psi == 1 else torch.lerp(generator.mapping.w_avg, w, options.psi)


@torch.no_grad()
def score_codes(generator: Generator, codes: Tensor, attribute: AnyAttribute, *, batch_size: int) -> Tensor:
    """The attribute of the image of each W or W+ code, [N], float32, on the CPU; NaN where it cannot be measured."""
    device = generator.mapping.w_avg.device
    scores = [attribute.measure(generator.synthesize(part.to(device))).cpu() for part in codes.split(batch_size)]
    return torch.cat(scores).float()


def save_samples(generator: Generator, options: SampleOptions, folder: Path, *, batch_size: int) -> None:
    """Write codes.npy, W codes [N, D], and their images as images/000000.png, ..., to be scored elsewhere.

    Raises:
        ConfigError: the folder exists already.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists already: remove it or name another folder")
    (folder / "images").mkdir(parents=True)
    codes = torch.cat(list(sampled_codes(generator, options)))
    np.save(folder / "codes.npy", codes.cpu().numpy())
    number = 0
    for part in codes.split(batch_size):
        with torch.no_grad():
            images = crop(generator.synthesize(part), generator.config.content_box)
        for pixels in to_uint8(images):
            image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
            image.save(folder / "images" / f"{number:06d}.png")
            number += 1


def fit_boundary(codes: Tensor, scores: Tensor, *, ratio: float = 0.02, seed: int = 0) -> Boundary:
    """The hyperplane between the codes with the highest and the lowest scores (InterFaceGAN, section 3.2).

    The chosen are split into 70 % for training and the rest for validation. The classifier is a linear support vector
    machine with C = 1 on the codes as they are; its intercept is dropped.

    Args:
        codes: W codes [N, D].
        scores: [N]; codes without a score (NaN) are left out.
        ratio: share of the codes chosen on each side, or, above 1, their number; at most half of them.
        seed: of the split.

    Raises:
        ConfigError: too few codes, or scores that do not vary.
        ShapeError: another number of scores than of codes.
    """
    if codes.ndim != 2 or scores.shape != codes.shape[:1]:
        raise ShapeError(f"codes are {list(codes.shape)} and scores {list(scores.shape)}; wanted [N, D] and [N]")
    is_scored = torch.isfinite(scores)
    values = scores[is_scored].double().numpy()
    order = np.argsort(-values, kind="stable")
    sorted_codes, values = codes.detach().cpu().double().numpy()[is_scored.numpy()][order], values[order]
    count = _number_chosen(len(values), ratio)
    if values[count - 1] <= values[-count]:
        raise ConfigError(
            f"the scores do not vary enough: the {count} highest end at {values[count - 1]:.6g} and the {count} lowest "
            f"begin at {values[-count]:.6g}; choose an attribute that differs between the samples, or more of them"
        )
    positive, negative = sorted_codes[:count], sorted_codes[-count:]
    random = np.random.default_rng(seed)
    positive, negative = random.permutation(positive), random.permutation(negative)
    num_training = int(TRAINING_SHARE * count)
    classifier = _classifier(2 * num_training, seed)
    classifier.fit(np.concatenate([positive[:num_training], negative[:num_training]]), _labels(num_training))
    held_out = np.concatenate([positive[num_training:], negative[num_training:]])
    remaining, middle = sorted_codes[count:-count], (values[0] + values[-1]) / 2
    normal = classifier.coef_[0].astype(np.float64)
    margin = float(np.linalg.norm(normal))
    return Boundary(
        normal=normal / margin,
        solver=type(classifier).__name__,
        num_positive=count,
        validation_accuracy=float(classifier.score(held_out, _labels(count - num_training))),
        remaining_accuracy=float(classifier.score(remaining, values[count:-count] >= middle))
        if len(remaining)
        else None,
        margin=margin,
    )


def direction_of(
    boundary: Boundary,
    *,
    name: str,
    generator_digest: str,
    provenance: dict[str, Any],
    conditions: Sequence[Direction] = (),
) -> Direction:
    """The direction of a boundary, made orthogonal to others where there are conditions.

    Raises:
        ConfigError: it lies in the span of the conditions.
    """
    vectors = torch.from_numpy(boundary.normal).float()[None]
    about = {name: value for name, value in asdict(boundary).items() if name != "normal"}
    direction = Direction(name, vectors, generator_digest, "w", {**provenance, **about})
    return conditional(direction, conditions) if conditions else direction


@torch.no_grad()
def measure_response(
    generator: Generator,
    direction: Direction,
    codes: Tensor,
    scores: Tensor,
    attribute: AnyAttribute,
    *,
    batch_size: int,
) -> Response:
    """What one unit of strength along a direction of W does to the attribute of the images of these codes.

    Args:
        generator: makes the images.
        direction: of W.
        codes: W codes [N, D]; the first 2,000 are moved.
        scores: the attribute of their images, [N].
        attribute: what is measured again after the step.
        batch_size: images made together.
    """
    first = codes[:RESPONSE_SAMPLES]
    moved = score_codes(generator, first + direction.vectors.to(first), attribute, batch_size=batch_size)
    changes = moved - scores[:RESPONSE_SAMPLES]
    is_known = torch.isfinite(changes)
    known = scores[torch.isfinite(scores)].double()
    change, deviation = changes[is_known].double().mean().item(), known.std().item()
    return Response(change, change / deviation, known.mean().item(), deviation, int(is_known.sum()))


def read_scores(location: str) -> Tensor:
    """Scores of a file, [N]: a .npy array [N] or [N, 1], or a .csv with a column "score" (or only one column).

    An empty field, or NaN, stands for a code without a score.

    Raises:
        CheckpointError: no such file.
        ConfigError: it holds no scores.
    """
    data = read_bytes(location, None, wanted="scores as .npy or .csv")
    try:
        scores = read_array(location, data) if data.startswith(b"\x93NUMPY") else _scores_of_csv(data)
    except (ValueError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{location} holds no scores: {error}") from error
    if scores.ndim == 2 and scores.shape[1] == 1:
        scores = scores[:, 0]
    if scores.ndim != 1:
        raise ConfigError(f"{location} holds numbers {list(scores.shape)}; wanted one score for each code, [N]")
    return scores


def read_codes(location: str, w_dim: int) -> Tensor:
    """W codes of a .npy file, [N, w_dim].

    Raises:
        CheckpointError: no such file.
        ConfigError: it holds something else.
    """
    codes = read_array(location, read_bytes(location, None, wanted="codes as .npy"))
    if codes.ndim != 2 or codes.shape[1] != w_dim or not bool(torch.isfinite(codes).all()):
        raise ConfigError(f"{location} holds {list(codes.shape)}; wanted finite W codes [N, {w_dim}]")
    return codes


def read_array(location: str, data: bytes) -> Tensor:
    """Numbers of a .npy file, float32.

    Raises:
        ConfigError: it holds something else.
    """
    try:
        return torch.from_numpy(read_npy(data).astype(np.float32))
    except (ArrayFileError, ValueError, TypeError) as error:  # also texts, dates and records, which are no numbers
        raise ConfigError(f"{location} is no .npy file of numbers: {error}") from error


def _scores_of_csv(data: bytes) -> Tensor:
    rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if row]
    if not rows:
        raise ValueError("it is empty")
    column, first = 0, 0
    if "score" in rows[0]:
        column, first = rows[0].index("score"), 1
    elif len(rows[0]) != 1:
        raise ValueError(f'its columns are {", ".join(rows[0])}; wanted one named "score"')
    return torch.tensor([float(row[column].strip() or "nan") for row in rows[first:]])


def _number_chosen(num_codes: int, ratio: float) -> int:
    if not math.isfinite(ratio) or ratio <= 0:
        raise ConfigError(f"ratio is {ratio}; wanted a share above 0 and at most 1, or a number of codes")
    count = min(int(num_codes * ratio) if ratio <= 1 else int(ratio), num_codes // 2)
    if count < 2:  # one to train with and one to validate with
        raise ConfigError(
            f"ratio {ratio} of {num_codes} scored codes chooses {count} on each side; wanted at least 2: "
            "take more samples"
        )
    return count


def _labels(count: int) -> NDArray[np.bool_]:
    return np.repeat([True, False], count)


def _classifier(num_training: int, seed: int) -> SVC | LinearSVC:
    if num_training <= LARGEST_KERNEL_FIT:
        return SVC(kernel="linear", C=1.0)
    return LinearSVC(C=1.0, dual=False, random_state=seed % 2**32)
