"""What the digits bring, by the names that runs and `domain.yaml` use."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from domains.digits.data import load_split
from domains.embedded import Attribute, Parts, Quality

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from domains.embedded import NetworkFile

HERE = Path(__file__).parent


def networks() -> Mapping[str, NetworkFile]:
    """What the loss looks with, and the judge that is in no loss."""
    from lsap_core.perceptual.features import FeatureNet
    from lsap_core.perceptual.judge import JudgeNet

    return {
        "digits-features": (HERE / "features.safetensors", FeatureNet),
        "digits-judge": (HERE / "judge.safetensors", JudgeNet),
    }


def attributes() -> Mapping[str, Attribute]:
    """What an edit is meant to change."""
    from domains.digits.attributes import slant, stroke_width

    return {
        "slant": Attribute("slant", "slant", "degrees", slant),
        "stroke_width": Attribute("stroke_width", "stroke width", "pixels", stroke_width),
    }


def turned_and_shifted(image: Tensor, stream: torch.Generator) -> Tensor:
    """An image [C, R, R], changed as little as another hand would: digits have no mirror image."""
    from domains.making.augmentation import random_affine

    amounts = {"rotation_degrees": 10.0, "shift_pixels": 1.5, "scale": 0.08, "shear": 0.1}
    return random_affine(image[None], **amounts, generator=stream)[0]


def quality(sheet: str | None) -> Quality:
    """Measured on held-out digits."""
    from domains.digits.recipe import RECIPE
    from domains.making.report import measure_quality

    return measure_quality(RECIPE, sheet=sheet)


PARTS = Parts(
    sources={"digits:test": partial(load_split, "test"), "digits:train": partial(load_split, "train")},
    networks=networks,
    attributes=attributes,
    augmentations={"digits": turned_and_shifted},
    quality=quality,
)
