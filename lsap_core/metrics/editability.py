"""How well inverse codes can be edited: latent editing consistency, and edits of equal effect."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lsap_core.errors import ConfigError, OutOfReachError, ShapeError
from lsap_core.images import ContentBox, comparison_view

TRIMMED_PERCENTILES = (1, 99)
OUTWARD = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Where an effect is looked for first, from the unedited code to the end of the range, in shares of the range."""
MAX_STEPS = 40
NO_EFFECT = 1e-3
"""Changes below this share of the tolerance are none."""

Point = tuple[float, float]


class InvertibleEdit(Protocol):
    """An edit of W+ codes that can be taken back."""

    def __call__(self, w_plus: Tensor) -> Tensor:
        """The edited codes, of the same shape [N, K, w_dim]."""
        ...

    def inverse(self, w_plus: Tensor) -> Callable[[Tensor], Tensor]:
        """What takes the edited codes of `w_plus` [N, K, w_dim] back to `w_plus`."""
        ...


@torch.no_grad()
def editing_consistency(
    codes: Tensor,
    *,
    encode: Callable[[Tensor], Tensor],
    generate: Callable[[Tensor], Tensor],
    edit: InvertibleEdit,
    content_box: ContentBox | None = None,
) -> Tensor:
    """Latent editing consistency (LEC) of each image: how far edit, render, encode, undo leads away; lower is better.

    LEC = ||p - edit^-1(E(pool(G(edit(p)))))||_F with p = E(x) (Tov et al. 2021, app. on metrics). G's images are
    neither clamped nor brought to 8 bits; pool averages them to 256 pixels and cuts to the content box. It grows with
    the strength of the edit even for a good encoder: compare equal edits only.

    Args:
        codes: p, [N, K, w_dim], as the encoder gave them (with the mean code added).
        encode: images as pooled, [N, C, h, w], to codes [N, K, w_dim].
        generate: codes to images [N, C, R, R], with the same noise at every call.
        edit: knows its inverse; that of an edit that is a projection (GANSpace's) depends on the code.
        content_box: rows and columns that the encoder sees, or None.

    Returns:
        One value for each image, [N], at least 0.

    Raises:
        ShapeError: the encoder gives codes of another shape.
    """
    seen = comparison_view(generate(edit(codes)), content_box=content_box)
    found = encode(seen)
    if found.shape != codes.shape:
        raise ShapeError(
            f"the encoder gives codes {list(found.shape)} for codes {list(codes.shape)}: wanted the encoder that they "
            "come from"
        )
    distance: Tensor = torch.linalg.vector_norm(codes - edit.inverse(codes)(found), dim=(1, 2))
    return distance


def batch_means(values: Tensor, batch_size: int) -> Tensor:
    """Means over consecutive batches, an incomplete last one left out; how the published LEC begins.

    Args:
        values: [N].
        batch_size: at least 1, at most N.

    Returns:
        [N // batch_size].

    Raises:
        ConfigError: there is not even one batch.
    """
    if not 1 <= batch_size <= len(values):
        raise ConfigError(f"batches of {batch_size} from {len(values)} values; wanted 1 to {len(values)}")
    whole = len(values) // batch_size * batch_size
    return values[:whole].view(-1, batch_size).mean(dim=1)


def kept_by_trimming(values: Tensor) -> Tensor:
    """Which values [N] lie from their 1st percentile, rounded down to a value, to their 99th, rounded up: bool [N].

    Both bounds belong to what is kept, so of up to 100 values nothing is dropped (Tov et al. 2021, published code).

    Raises:
        ShapeError: there are no values, or they are not one-dimensional.
        ConfigError: some are not finite.
    """
    if values.ndim != 1 or not len(values):
        raise ShapeError(f"values to trim are {list(values.shape)}; wanted [N] with N at least 1")
    if num_missing := int((~values.isfinite()).sum()):
        raise ConfigError(f"{num_missing} of {len(values)} values to trim are not finite: leave those images out")
    numbers = values.detach().cpu().numpy()
    low, high = TRIMMED_PERCENTILES
    lowest, highest = np.percentile(numbers, low, method="lower"), np.percentile(numbers, high, method="higher")
    return torch.from_numpy((numbers >= lowest) & (numbers <= highest)).to(values.device)


def trimmed_mean(values: Tensor) -> float:
    """Mean of the values [N] that `kept_by_trimming` keeps, summed in float64.

    Per image this is how LEC is reported; `trimmed_mean(batch_means(values, 8))` is the published number.

    Raises:
        ShapeError: there are no values, or they are not one-dimensional.
        ConfigError: some are not finite.

    Example:
        >>> trimmed_mean(torch.tensor([1.0, 2.0, 6.0]))
        3.0
    """
    return values[kept_by_trimming(values)].double().mean().item()


@dataclass(frozen=True)
class EqualEffect:
    """The strength at which an edit has the wanted effect.

    Attributes:
        strength: of the edit.
        response: the mean change of the attribute there.
        evaluations: every (strength, response) that was tried, in order.
    """

    strength: float
    response: float
    evaluations: tuple[tuple[float, float], ...]


def equal_effect(
    response: Callable[[float], float], *, target: float, bounds: tuple[float, float], tolerance: float
) -> EqualEffect:
    """The smallest strength at which the mean change of an attribute is the target, so that methods compare.

    LSAP compares edits "of the same effect": a code near the edge of W needs another strength for the same change
    than one in its middle. From strength 0 outward the range is searched for the first interval in which the response
    passes the target, on the side that the first steps point to and then on the other; within it the strength is
    found by false position and halving in turn.

    Args:
        response: mean change of the attribute at a strength, against strength 0; NaN where it cannot be measured
            (the search does not go further out there). Should be continuous.
        target: the wanted change, in the units of the response; not 0.
        bounds: smallest and largest strength; 0 lies between them, or is one of them.
        tolerance: how far from the target the response may be; positive, smaller than |target|.

    Returns:
        Strength, response there, and everything that was tried.

    Raises:
        ConfigError: target, bounds or tolerance are not as described.
        OutOfReachError: the attribute does not vary, or the target is out of reach; says the reached range.

    Example:
        >>> equal_effect(lambda strength: 2 * strength, target=1.0, bounds=(0, 4), tolerance=1e-3).strength
        0.5
    """
    _check_question(target, bounds, tolerance)
    tried: list[tuple[float, float]] = []

    def ask(strength: float) -> float:
        tried.append((strength, float(response(strength))))
        return tried[-1][1]

    first = [ask(OUTWARD[0] * end) if end else math.nan for end in bounds]
    sides = sorted((0, 1), key=lambda side: _miss(first[side], target))
    for side in sides:
        bracket = _first_crossing(ask, bounds[side], first[side], target)
        if bracket is not None:
            strength, reached = _within(ask, *bracket, target=target, tolerance=tolerance)
            return EqualEffect(strength, reached, tuple(tried))
    raise OutOfReachError(_refusal(tried, target, bounds, tolerance))


def _check_question(target: float, bounds: tuple[float, float], tolerance: float) -> None:
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low <= 0 <= high and low < high):
        raise ConfigError(f"strengths are searched from {low} to {high}; wanted a range that holds 0, such as 0 to 10")
    if not (math.isfinite(target) and 0 < tolerance < abs(target)):
        raise ConfigError(
            f"the wanted change is {target} within {tolerance}; wanted a change that is not 0, and a smaller tolerance"
        )


def _miss(reached: float, target: float) -> float:
    return abs(reached - target) if math.isfinite(reached) else math.inf


def _first_crossing(
    ask: Callable[[float], float], end: float, first: float, target: float
) -> tuple[Point, Point] | None:
    """The first interval outward on one side in which the response passes the target; None where it never does."""
    inner: Point = (0.0, 0.0)
    for share in OUTWARD:
        if not end:
            return None
        outer = (share * end, first if share == OUTWARD[0] else ask(share * end))
        if not math.isfinite(outer[1]):
            return None
        if (inner[1] - target) * (outer[1] - target) <= 0:
            return inner, outer
        inner = outer
    return None


def _within(ask: Callable[[float], float], a: Point, b: Point, *, target: float, tolerance: float) -> Point:
    """The point between two, on both sides of the target, whose response meets it; false position and halving in turn.

    Raises:
        OutOfReachError: the response jumps over the target, or cannot be measured on the way.
    """
    for step in range(MAX_STEPS):
        best = min(a, b, key=lambda point: _miss(point[1], target))
        if _miss(best[1], target) <= tolerance:
            return best
        share = 0.5 if step % 2 else (target - a[1]) / (b[1] - a[1])
        strength = a[0] + share * (b[0] - a[0])
        middle = (strength, ask(strength))
        if not math.isfinite(middle[1]):
            raise OutOfReachError(f"the attribute cannot be measured at strength {strength:g}: take a smaller change")
        if (a[1] - target) * (middle[1] - target) <= 0:
            b = middle
        else:
            a = middle
    raise OutOfReachError(
        f"the attribute jumps from {a[1]:g} to {b[1]:g} at strength {a[0]:g}, past the wanted change of {target:g}: "
        "take more images, or a larger tolerance"
    )


def _refusal(tried: Sequence[Point], target: float, bounds: tuple[float, float], tolerance: float) -> str:
    reached = [response for _, response in tried if math.isfinite(response)]
    between = f"between strength {bounds[0]:g} and {bounds[1]:g}"
    if not reached:
        return f"the attribute cannot be measured of any image {between}: choose an attribute of these images"
    if max(map(abs, reached)) <= NO_EFFECT * tolerance:
        return f"the attribute does not vary {between}: choose an attribute that this edit changes"
    return (
        f"a change of {target:g} is out of reach: {between} the mean change goes from {min(*reached, 0.0):g} to "
        f"{max(*reached, 0.0):g}; ask for a smaller change, or allow stronger edits"
    )
