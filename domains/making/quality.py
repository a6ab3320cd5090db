"""How good samples of a small domain are, by the eyes of a judge network that took part in no training."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from lsap_core.perceptual.judge import JudgeNet

CONFIDENT = 0.85
NEIGHBOURS = 3


@dataclass(frozen=True)
class SampleQuality:
    """Measures of one set of images against a set of real ones.

    Attributes:
        frechet: Fréchet distance in the judge's feature space (lower is closer).
        class_entropy: entropy of the judged classes over its largest value; 1 is even coverage.
        rarest_class: share of the rarest class; with ten, 0.1 is even coverage.
        confident: share of the images that the judge is sure of (probability above 0.85).
        precision: share of the images within the reach of real ones (Kynkäänniemi et al. 2019, k = 3).
        recall: share of real images within the reach of these.
    """

    frechet: float
    class_entropy: float
    rarest_class: float
    confident: float
    precision: float
    recall: float

    def as_dict(self) -> dict[str, float]:
        """The measures, rounded for print."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@torch.no_grad()
def judge_samples(judge: JudgeNet, images: Tensor, real: Tensor) -> SampleQuality:
    """Measure images [N, C, R, R] against real ones [M, C, R, R], both in [-1, 1]."""
    features, probabilities = look(judge, images)
    real_features, _ = look(judge, real)
    num_classes = probabilities.shape[1]
    shares = np.bincount(probabilities.argmax(axis=1), minlength=num_classes) / len(probabilities)
    present = shares[shares > 0]
    subset = min(len(features), len(real_features), 1000)
    precision, recall = precision_recall(features[:subset], real_features[:subset])
    return SampleQuality(
        frechet=frechet_distance(features, real_features),
        class_entropy=float(-(present * np.log(present)).sum() / math.log(num_classes)),
        rarest_class=float(shares.min()),
        confident=float((probabilities.max(axis=1) > CONFIDENT).mean()),
        precision=precision,
        recall=recall,
    )


@torch.no_grad()
def look(judge: JudgeNet, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The judge's features [N, D] (float64) and class probabilities [N, K]."""
    features, probabilities = [], []
    for batch in images.split(500):
        features.append(judge.features(batch))
        probabilities.append(judge(batch).softmax(dim=1))
    return torch.cat(features).double().numpy(), torch.cat(probabilities).numpy()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two sets of features [N, D].

    The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric:
    collapsed samples, or fewer than D of them, have a value too.
    """
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root_a = vectors * np.sqrt(values.clip(0)) @ vectors.T
    root_trace = np.sqrt(np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(0)).sum()
    return float(np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + np.trace(cov_a + cov_b) - 2 * root_trace)


def precision_recall(samples: np.ndarray, real: np.ndarray, *, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Precision and recall by k-nearest-neighbour balls (Kynkäänniemi et al. 2019)."""
    a, b = torch.from_numpy(samples), torch.from_numpy(real)
    across = torch.cdist(a, b)
    reach_a = torch.cdist(a, a).kthvalue(k + 1, dim=1).values
    reach_b = torch.cdist(b, b).kthvalue(k + 1, dim=1).values
    precision = (across <= reach_b[None, :]).any(dim=1).double().mean().item()
    recall = (across <= reach_a[:, None]).any(dim=0).double().mean().item()
    return precision, recall
