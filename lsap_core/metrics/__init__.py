"""What is reported of inversions and of their edits, one value for each image."""

from lsap_core.metrics.disalignment import Disalignment, SquaredDistance, disalignment_of
from lsap_core.metrics.editability import (
    EqualEffect,
    InvertibleEdit,
    batch_means,
    editing_consistency,
    equal_effect,
    trimmed_mean,
)
from lsap_core.metrics.neighbours import distance_to_neighbours
from lsap_core.metrics.reconstruction import mse, psnr
from lsap_core.metrics.structural_similarity import has_five_scales, ms_ssim

__all__ = [
    "Disalignment",
    "EqualEffect",
    "InvertibleEdit",
    "SquaredDistance",
    "batch_means",
    "disalignment_of",
    "distance_to_neighbours",
    "editing_consistency",
    "equal_effect",
    "has_five_scales",
    "ms_ssim",
    "mse",
    "psnr",
    "trimmed_mean",
]
