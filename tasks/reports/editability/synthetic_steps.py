"""How far to go along a direction so that the generator's own codes change by a given amount."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from domains.domain import Domain
from lsap_core.editing import Direction, along
from lsap_core.generators.generator import Generator
from lsap_core.metrics.editability import equal_effect
from tasks.measuring.attributes import AnyAttribute, load_attribute
from tasks.weights.directions import load_direction
from tasks.weights.generators import GeneratorFile
from tasks.weights.published import Published

BATCH = 250
BOUNDS = (-20.0, 20.0)
TOLERANCE = 0.005
"""In standard deviations."""


@dataclass(frozen=True)
class SyntheticStep:
    """The unit of an attribute, and the strengths that move synthetic codes by it.

    Attributes:
        deviation: standard deviation of the attribute over synthetic images.
        more: strength of the direction that raises it as far as was asked, in the mean over synthetic codes.
        less: strength that lowers it as far.
    """

    deviation: float
    more: float
    less: float


def synthetic_steps(
    domain: Domain,
    generator: GeneratorFile,
    attributes: Mapping[str, str],
    *,
    changes: Mapping[str, float],
    num_samples: int,
    seed: int,
    published: Published,
) -> dict[str, SyntheticStep]:
    """Steps by name of the attribute.

    Args:
        domain: where directions have names.
        generator: whose codes are moved.
        attributes: name of the direction by name of the attribute.
        changes: by attribute, how far to go, in its standard deviations over synthetic images.
        num_samples: synthetic codes, without truncation, with the constant noise.
        seed: of these codes.
        published: where published networks lie.

    Raises:
        OutOfReachError: a direction does not move its attribute.
    """
    loaded = generator.load()
    network = loaded.generator.freeze()
    z = torch.randn(num_samples, loaded.config.z_dim, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        codes = network.expand(network.map(z))
    steps = {}
    for name, direction_name in attributes.items():
        attribute = load_attribute(name, device=torch.device("cpu"), published=published)
        direction = load_direction(
            domain.directions[direction_name], config=loaded.config, generator_digest=loaded.digest
        )
        steps[name] = _step(network, codes, attribute, direction, changes[name])
    return steps


def _step(
    generator: Generator, codes: Tensor, attribute: AnyAttribute, direction: Direction, change: float
) -> SyntheticStep:
    before = _measured(generator, codes, attribute)
    deviation = before[before.isfinite()].std().item()

    def response(strength: float) -> float:
        moved = (_measured(generator, along(direction, strength)(codes), attribute) - before) / deviation
        return moved[moved.isfinite()].mean().item()

    more, less = (equal_effect(response, target=sign, bounds=BOUNDS, tolerance=TOLERANCE) for sign in (change, -change))
    return SyntheticStep(deviation, more.strength, less.strength)


@torch.no_grad()
def _measured(generator: Generator, codes: Tensor, attribute: AnyAttribute) -> Tensor:
    return torch.cat([attribute.measure(generator.synthesize(batch)) for batch in codes.split(BATCH)])
