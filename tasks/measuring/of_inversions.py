"""What is measured of every inversion: one value for each image, on images as they would be saved."""

from __future__ import annotations

import torch
from torch import Tensor

from lsap_core.alignment.anchor import Anchor
from lsap_core.alignment.sncd import SncdLoss
from lsap_core.generators.generator import Generator
from lsap_core.images import comparison_view, quantize
from lsap_core.metrics.reconstruction import mse
from lsap_core.objectives.terms import mean_code_distance
from tasks.weights.networks import Networks


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

    The protocol of LSAP, section 4.1: reconstructions are brought to 8 bits as if saved and read back, cut to the
    content box, and compared at 256 pixels (smaller ones at their own size).

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
    box = generator.config.content_box
    seen = comparison_view(quantize(reconstruction), content_box=box, downsampling="bilinear")
    wanted = comparison_view(target, content_box=box, downsampling="bilinear")
    columns = {
        "mse": mse(seen, wanted),
        "lpips": networks.metric_perceptual(seen, wanted),
        "sncd": SncdLoss(generator, anchor)(w_plus),
        "w_distance": mean_code_distance(w_plus, anchor.w_avg, anchor.code_deviation),
    }
    if networks.judge is not None:
        columns["lpips_judge"] = networks.judge(seen, wanted)
    if networks.identity is not None:
        columns["identity_similarity"] = networks.identity(seen, wanted)
    return {name: values.tolist() for name, values in columns.items()}
