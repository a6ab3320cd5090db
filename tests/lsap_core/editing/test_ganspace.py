"""GANSpace: the published edits, and principal components from pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from lsap_core.editing import Components, CovarianceSum, along_component, fit_pca
from lsap_core.errors import ConfigError, ShapeError

Numbers = Callable[..., Tensor]


@pytest.fixture(scope="module")
def published(reference: Callable[[str], Any]) -> Any:
    return reference("edit_linear")


@pytest.fixture(scope="module")
def published_components(published: Any) -> Components:
    vectors = published["comp"][:, 0]
    return Components("pca", vectors, deviations=published["std"], mean=published["mean"][0])


@pytest.mark.parametrize("row", [0, 1])
def test_an_absolute_edit_is_that_of_the_published_programs(
    published: Any, published_components: Components, row: int
) -> None:
    component, first, end, strength = published["edits"][row].tolist()
    edit = along_component(published_components, component, strength, layers=(first, end))
    published.check(f"ganspace_{row}", edit(published["latent"]))


@pytest.fixture(scope="module")
def orthonormal(numbers: Numbers) -> Components:
    """As fitted ones are; the published numbers were computed with vectors of other lengths."""
    vectors = torch.linalg.qr(numbers(24, 4)).Q.T
    return Components("pca", vectors, deviations=numbers(4, seed=1).abs() + 0.5, mean=numbers(24, seed=2))


def test_an_absolute_strength_is_the_coordinate_of_row_0(orthonormal: Components, numbers: Numbers) -> None:
    codes = numbers(2, 8, 24, seed=3)
    for strength in (0.0, 2.5):
        edited = along_component(orthonormal, 3, strength)(codes)
        coordinate = (edited[:, 0] - orthonormal.mean) @ orthonormal.vectors[3] / orthonormal.deviations[3]
        torch.testing.assert_close(coordinate, torch.full((2,), strength), rtol=0, atol=1e-5)
        assert not torch.equal(edited, codes)
        torch.testing.assert_close(edited - codes, (edited - codes)[:, :1].expand_as(codes), rtol=0, atol=1e-5)


def test_an_inverted_absolute_edit_sets_the_coordinate_back(orthonormal: Components, numbers: Numbers) -> None:
    """Also of codes that are only near the edited ones, as an encoder finds them again."""
    codes, component = numbers(2, 8, 24, seed=3), orthonormal.vectors[2]
    edit = along_component(orthonormal, 2, 4.0)
    back = edit.inverse(codes)(edit(codes) + 0.1 * numbers(2, 8, 24, seed=4))
    torch.testing.assert_close(back[:, 0] @ component, codes[:, 0] @ component, rtol=0, atol=1e-5)


def test_an_offset_moves_by_standard_deviations(published: Any, published_components: Components) -> None:
    codes = published["latent"]
    moved = along_component(published_components, 1, 3.0, layers=(2, 5), mode="offset")(codes) - codes
    step = 3.0 * published["std"][1] * published["comp"][1, 0]
    torch.testing.assert_close(moved[:, 2:5], step.expand(2, 3, -1), rtol=0, atol=1e-5)
    assert not moved[:, [0, 1, *range(5, 18)]].any()


def test_components_are_those_of_scikit_learn(numbers: Numbers) -> None:
    codes = (numbers(400, 6) * torch.tensor([3.0, 2.0, 1.5, 1.0, 0.5, 0.1]) + 4) @ numbers(6, 6, seed=1)
    found, pca = fit_pca([codes], num_components=4, generator="9f"), PCA(4).fit(codes.double().numpy())
    torch.testing.assert_close(found.deviations, torch.from_numpy(pca.explained_variance_**0.5).float())
    torch.testing.assert_close(found.mean, torch.from_numpy(pca.mean_).float())
    similarity = (found.vectors @ torch.from_numpy(pca.components_).float().T).abs()
    torch.testing.assert_close(similarity, torch.eye(4), rtol=0, atol=1e-5)
    assert (found.vectors.gather(1, found.vectors.abs().argmax(dim=1, keepdim=True)) > 0).all()
    assert found.provenance["num_codes"] == 400 and found.generator == "9f"


def test_pieces_in_any_order_are_the_whole(numbers: Numbers) -> None:
    codes = numbers(300, 6) + 10
    pieces = [CovarianceSum.empty(6) for _ in range(3)]
    for piece, part in zip(pieces, codes.split([250, 49, 1]), strict=True):
        piece.update(part)
    merged = pieces[2].merge(pieces[0]).merge(pieces[1])
    assert merged.count == 300
    torch.testing.assert_close(merged.covariance(), torch.cov(codes.double().T))
    whole, streamed = fit_pca([codes], num_components=6), fit_pca(codes.split(7), num_components=6)
    torch.testing.assert_close(whole.vectors, streamed.vectors)
    torch.testing.assert_close(whole.vectors, merged.components(6).vectors)


def test_what_cannot_be_fitted_is_refused(numbers: Numbers) -> None:
    with pytest.raises(ConfigError, match="7 components were asked for; wanted 1 to 6"):
        fit_pca([numbers(10, 6)], num_components=7)
    with pytest.raises(ConfigError, match="1 codes for a covariance; wanted at least 2"):
        fit_pca([numbers(1, 6)], num_components=2)
    with pytest.raises(ConfigError, match="no codes"):
        fit_pca([], num_components=2)
    with pytest.raises(ShapeError, match=r"\[5, 4\]; wanted \[N, 6\]"):
        fit_pca([numbers(5, 6), numbers(5, 4)], num_components=2)


def test_an_edit_that_the_components_do_not_have_is_refused(published_components: Components) -> None:
    with pytest.raises(ConfigError, match="component 6 was asked for; there are 0 to 5"):
        along_component(published_components, 6, 1.0)
    with pytest.raises(ConfigError, match='mode is "relative"'):
        along_component(published_components, 0, 1.0, mode="relative")


def test_components_without_what_their_kind_needs_are_refused(numbers: Numbers) -> None:
    with pytest.raises(ConfigError, match='kind "pca" have no deviations'):
        Components("pca", numbers(3, 6))
    with pytest.raises(ShapeError, match=r"mean are \[5\]; wanted \[6\]"):
        Components("pca", numbers(3, 6), deviations=torch.ones(3), mean=torch.ones(5))
    with pytest.raises(ConfigError, match="drive no layer"):
        Components("sefa", numbers(3, 6), eigenvalues=torch.ones(3), layers=())
