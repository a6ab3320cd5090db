"""What is measured of inversions and edits: one value for each image, or the reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lsap_core.alignment.anchor import Anchor
from lsap_core.alignment.sncd import SncdLoss
from lsap_core.generators.generator import Generator
from lsap_core.images import from_uint8
from lsap_core.inversion.by_encoder import EncoderEmbedder
from lsap_core.metrics.disalignment import disalignment_of
from lsap_core.metrics.editability import InvertibleEdit, editing_consistency
from lsap_core.metrics.reconstruction import mse, psnr
from lsap_core.metrics.structural_similarity import has_five_scales, ms_ssim
from lsap_core.objectives.terms import mean_code_distance
from lsap_core.spaces.styles import StyleSet
from tasks.measuring.attributes import Attribute
from tasks.measuring.neighbours import RealNeighbours
from tasks.measuring.networks import EvaluationNetworks
from tasks.pictures.saved import read_back, saved_pixels

TOO_SMALL = "too_small"
NO_ORIGINAL = "no_original"
NOT_MEASURABLE = "not_measurable"


class MeasureKey(NamedTuple):
    """Columns `measure` and `by` of the archive's measurements, such as ("lpips", "lpips-alex") or ("mse", None)."""

    measure: str
    by: str | None = None


@dataclass(frozen=True)
class Measured:
    """One measure of a batch.

    Attributes:
        values: one for each image; None where there is none. The PSNR of equal images is inf.
        problems: for each image the code of why there is no value: "too_small" (MS-SSIM), "no_face",
            "not_measurable" (an attribute), "no_original"; None where there is a value.
    """

    values: list[float | None]
    problems: list[str | None]

    @classmethod
    def of(cls, values: Tensor, problems: Sequence[str | None] | None = None) -> Measured:
        """Values [N], NaN where there is none, and the reasons where they are not "not_measurable"."""
        numbers = values.detach().double().tolist()
        given = problems or [None] * len(numbers)
        return cls(
            [None if math.isnan(number) else number for number in numbers],
            [(why or NOT_MEASURABLE) if math.isnan(n) else None for n, why in zip(numbers, given, strict=True)],
        )

    @classmethod
    def none(cls, count: int, problem: str) -> Measured:
        """No value for any image, for the same reason."""
        return cls([None] * count, [problem] * count)


Measurements = dict[MeasureKey, Measured]


@torch.no_grad()
def evaluate_images(
    images: Tensor,
    original: Tensor | None,
    w_plus: Tensor,
    *,
    generator: Generator,
    anchor: Anchor,
    networks: EvaluationNetworks,
    attributes: Sequence[Attribute] = (),
    neighbours: RealNeighbours | None = None,
) -> Measurements:
    """Every measure of a batch of inversions or edited inversions against the photos that they were made from.

    Images are compared as files that were saved and read back, at 256 pixels (`read_back`); attributes are measured
    of the saved files in full size. With the judge: "class_kept" is 1 where it sees the same class as in the original,
    else 0; "class_confidence" is the probability that it gives to the class it sees; "distance_to_real" is measured in
    its embedding.

    Args:
        images: [N, C, R, R] as the generator gave them, unclamped.
        original: [N, C, R, R] in [-1, 1]; None where it is not at hand: what compares has problem "no_original".
        w_plus: codes [N, K, w_dim] of the images.
        generator: its affine layers give the styles of SNCD.
        anchor: the reference of SNCD.
        networks: what looks at the images (`load_evaluation_networks`).
        attributes: measured of the images ("attribute") and of the originals ("attribute_of_original").
        neighbours: real images in the judge's embedding ("distance_to_real"), or None.

    Returns:
        "mse", "psnr", "ms_ssim", "lpips"/network, "identity"/network, "class_kept"/judge, "class_confidence"/judge,
        "sncd", "w_distance", "attribute"/name, "attribute_of_original"/name, "distance_to_real"/judge; every entry has
        N values. What was not asked for (no network, no attribute) is left out.
    """
    box = generator.config.content_box
    seen = read_back(images, content_box=box)
    found = {
        **_compare(seen, None if original is None else read_back(original, content_box=box), networks),
        MeasureKey("sncd"): Measured.of(SncdLoss(generator, anchor)(w_plus)),
        MeasureKey("w_distance"): Measured.of(mean_code_distance(w_plus, anchor.w_avg, anchor.code_deviation)),
    }
    saved = from_uint8(saved_pixels(images)).to(images.device)
    for attribute in attributes:
        found[MeasureKey("attribute", attribute.name)] = Measured.of(attribute.measure(saved))
        found[MeasureKey("attribute_of_original", attribute.name)] = (
            Measured.none(len(images), NO_ORIGINAL) if original is None else Measured.of(attribute.measure(original))
        )
    if networks.judge is not None:
        confidence = networks.judge.probabilities(seen).amax(dim=1)
        found[MeasureKey("class_confidence", networks.judge.name)] = Measured.of(confidence)
    if neighbours is not None:
        found[MeasureKey("distance_to_real", neighbours.judge.name)] = Measured.of(neighbours.distances(seen))
    return found


def _compare(seen: Tensor, wanted: Tensor | None, networks: EvaluationNetworks) -> Measurements:
    """What needs the original, of images that were read back."""
    judge = networks.judge
    keys = [
        *(MeasureKey(name) for name in ("mse", "psnr", "ms_ssim")),
        *(MeasureKey("lpips", name) for name in networks.perceptual),
        *(MeasureKey("identity", name) for name in networks.identity),
        *(() if judge is None else (MeasureKey("class_kept", judge.name),)),
    ]
    if wanted is None:
        return {key: Measured.none(len(seen), NO_ORIGINAL) for key in keys}

    def measure(key: MeasureKey) -> Measured:
        if key.measure == "lpips":
            return Measured.of(networks.perceptual[str(key.by)](seen, wanted))
        if key.measure == "identity":
            return Measured.of(*networks.identity[str(key.by)].similarity(seen, wanted))
        if key.measure == "ms_ssim":
            return Measured.of(ms_ssim(seen, wanted)) if has_five_scales(seen) else Measured.none(len(seen), TOO_SMALL)
        if key.measure == "class_kept":
            assert judge is not None
            classes = judge.probabilities(seen).argmax(dim=1), judge.probabilities(wanted).argmax(dim=1)
            return Measured.of((classes[0] == classes[1]).double())
        return Measured.of((mse if key.measure == "mse" else psnr)(seen, wanted))

    return {key: measure(key) for key in keys}


def evaluate_consistency(
    w_plus: Tensor, *, embedder: EncoderEmbedder, edits: Mapping[str, InvertibleEdit]
) -> Measurements:
    """Latent editing consistency, "lec"/edit name, with the generator's constant noise.

    Args:
        w_plus: codes [N, K, w_dim] as the embedder gave them.
        embedder: its encoder looks at the edited images, its generator makes them.
        edits: by name; each knows its inverse.
    """
    generator = embedder.generator
    return {
        MeasureKey("lec", name): Measured.of(
            editing_consistency(
                w_plus,
                encode=embedder.codes_of_view,
                generate=generator.synthesize,
                edit=edit,
                content_box=generator.config.content_box,
            )
        )
        for name, edit in edits.items()
    }


def evaluate_disalignment(
    w_plus: Tensor, true_codes: Tensor, *, generator: Generator, style_set: StyleSet = "authors"
) -> Measurements:
    """How far predicted codes lie from the true codes of synthetic images (LSAP, table 2).

    Args:
        w_plus: predicted codes [N, K, w_dim].
        true_codes: W codes [N, w_dim] (or W+) of the synthetic images that were encoded.
        generator: its affine layers give S.
        style_set: which style vectors S is made of.

    Returns:
        "disalignment_w", "disalignment_s" (squared distance per layer), "disalignment_s_n" (cosine distance), and of w
        and s the other scales, with "_per_entry" and "_frobenius" at the end of the name.
    """
    distance = disalignment_of(w_plus, true_codes, generator, style_set=style_set)
    found = {MeasureKey("disalignment_s_n"): Measured.of(distance.s_n)}
    for space, squared in (("w", distance.w), ("s", distance.s)):
        found[MeasureKey(f"disalignment_{space}")] = Measured.of(squared.per_layer)
        found[MeasureKey(f"disalignment_{space}_per_entry")] = Measured.of(squared.per_entry)
        found[MeasureKey(f"disalignment_{space}_frobenius")] = Measured.of(squared.frobenius)
    return found
