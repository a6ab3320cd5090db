"""What is measured of every inversion: some measures of the table, as columns of the archive's rows."""

from __future__ import annotations

import torch
from torch import Tensor

from lsap_core.alignment.anchor import Anchor
from lsap_core.generators.generator import Generator
from lsap_core.images import quantize
from tasks.measuring.measures import MEASURES, Batch
from tasks.weights.networks import Networks

COLUMNS: dict[str, tuple[str, str | None]] = {
    "mse": ("mse", None),
    "lpips": ("lpips", "metric_perceptual"),
    "sncd": ("sncd", None),
    "w_distance": ("w_distance", None),
    "lpips_judge": ("lpips", "judge"),
    "identity_similarity": ("identity", "identity"),
}
"""Column -> name of its measure, and which of a run's networks measures it."""


@torch.no_grad()
def measure(
    reconstruction: Tensor,
    target: Tensor,
    w_plus: Tensor,
    *,
    generator: Generator,
    anchor: Anchor,
    networks: Networks,
) -> dict[str, list[float]]:
    """Every metric of a batch, by column of the archive's rows.

    Args:
        reconstruction: images [N, C, R, R], unclamped.
        target: images [N, C, R, R] in [-1, 1].
        w_plus: codes [N, K, w_dim].
        generator: its affine layers give the styles.
        anchor: the reference of SNCD.
        networks: what compares the images.

    Returns:
        For each column one value per image; a network that is not there leaves its column out.
    """
    # Truncated first, as ever: by `saved_pixels`, a value that happens to be a level's to the last bit would keep it.
    batch = Batch(generator, w_plus, quantize(reconstruction), target, anchor)
    columns = {}
    for column, (name, role) in COLUMNS.items():
        network = None if role is None else getattr(networks, role)
        if role is None or network is not None:
            columns[column] = MEASURES[name].values(batch, network).tolist()
    return columns
