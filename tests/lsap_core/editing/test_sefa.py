"""SeFa: the published factorization, and what its directions mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.editing import along_component, factorize
from lsap_core.errors import ConfigError
from lsap_core.generators import Generator


def test_the_factorization_is_the_published_one(
    reference: Callable[[str], Any], published_generator: Callable[[int], Generator]
) -> None:
    published = reference("edit_sefa")
    found = factorize(published_generator(64), published["indices"].tolist(), digest="9f")
    published.check("eigenvalues", found.eigenvalues)
    published.check("eigenvectors", found.vectors[:4])
    # The published program edits one row before the one that each convolution reads; here it is the row itself.
    assert found.layers == tuple(layer + 1 for layer in published.expected("layers").tolist())
    assert found.generator == "9f"


def test_an_edit_moves_the_rows_of_the_convolutions_only(
    random_generator: Callable[..., Generator], numbers: Callable[..., Tensor]
) -> None:
    found, codes = factorize(random_generator(), [0, 3]), numbers(2, 8, 24)
    moved = along_component(found, 1, -5.0)(codes) - codes
    torch.testing.assert_close(moved[:, [0, 3]], (-5 * found.vectors[1]).expand(2, 2, -1), rtol=0, atol=1e-5)
    assert not moved[:, [1, 2, 4, 5, 6, 7]].any()
    elsewhere = along_component(found, 1, -5.0, layers=(1, 3))(codes) - codes
    assert elsewhere[:, 1:3].any() and not elsewhere[:, [0, 3]].any()


def test_without_normalization_they_are_the_singular_vectors_of_the_weights(
    random_generator: Callable[..., Generator],
) -> None:
    generator = random_generator()
    layers = generator.synthesis.conv_layers()
    weights = torch.cat([layers[conv].affine.weight for conv in (2, 3, 4, 5)]).double()
    _, singular_values, singular_vectors = torch.linalg.svd(weights)
    found = factorize(generator, normalize=False, num_components=3)
    torch.testing.assert_close(found.eigenvalues, singular_values[:3].square().float())
    similarity = (found.vectors.double() * singular_vectors[:3]).sum(dim=1).abs()
    torch.testing.assert_close(similarity, torch.ones(3, dtype=torch.float64))
    assert (factorize(generator, num_components=3).vectors - found.vectors).abs().max() > 0.05


def test_the_first_direction_moves_the_styles_most(
    random_generator: Callable[..., Generator], numbers: Callable[..., Tensor]
) -> None:
    generator = random_generator()
    found = factorize(generator, [1], normalize=False)
    affine = generator.synthesis.conv_layers()[1].affine.weight
    strongest = (affine @ found.vectors[0]).norm()
    others = numbers(24, 200)
    assert ((affine @ (others / others.norm(dim=0))).norm(dim=0) < strongest).all()
    torch.testing.assert_close(strongest.square(), found.eigenvalues[0])


def test_what_the_generator_does_not_have_is_refused(random_generator: Callable[..., Generator]) -> None:
    generator = random_generator()
    with pytest.raises(ConfigError, match=r"convolutions \[6, 7\] were asked for; wanted some of 0 to 6"):
        factorize(generator, [6, 7])
    with pytest.raises(ConfigError, match="25 components"):
        factorize(generator, num_components=25)
    with pytest.raises(ConfigError, match='needs a mean, and "sefa" has none'):
        along_component(factorize(generator), 0, 1.0, mode="absolute")
