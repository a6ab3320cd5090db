"""The small network of small domains."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.perceptual.features import EmbeddingSimilarity, FeatureDistance, FeatureNet, FeatureNetConfig


@pytest.fixture(scope="module")
def network() -> FeatureNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FeatureNet(FeatureNetConfig(16, 1, channels=(4, 6, 8), embedding_dim=5, num_classes=3))
        for norm in network.norms:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    return network.eval()


@pytest.fixture(scope="module")
def images(numbers: Callable[..., Tensor]) -> Tensor:
    return numbers(3, 1, 16, 16).clamp(-1, 1)


def test_taps_halve_the_side_at_every_stage(network: FeatureNet, images: Tensor) -> None:
    assert [tuple(tap.shape) for tap in network.taps(images)] == [(3, 4, 16, 16), (3, 6, 8, 8), (3, 8, 4, 4)]
    assert all((tap >= 0).all() for tap in network.taps(images))


def test_embedding_and_classes_have_their_configured_widths(network: FeatureNet, images: Tensor) -> None:
    assert network.embed(images).shape == (3, 5) and network(images).shape == (3, 3)


@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 3, 16, 16), (2, 1, 8, 8)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...], network: FeatureNet) -> None:
    with pytest.raises(ShapeError, match=r"wants \[N, 1, 16, 16\]") as caught:
        network(torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)


def test_the_configuration_survives_json(network: FeatureNet) -> None:
    assert FeatureNetConfig.from_dict(json.loads(json.dumps(network.config.to_dict()))) == network.config


def test_distance_is_zero_for_equal_images_positive_otherwise_and_symmetric(
    network: FeatureNet, images: Tensor
) -> None:
    distance = FeatureDistance(network)
    assert torch.equal(distance(images, images), torch.zeros(3))
    assert (distance(images, images.flip(0))[[0, 2]] > 0.01).all()
    torch.testing.assert_close(distance(images, images.flip(0)), distance(images.flip(0), images))


def test_distance_is_the_squared_difference_of_normalized_features(network: FeatureNet, images: Tensor) -> None:
    target = images.roll(1, 0)
    terms = []
    for a, b in zip(network.taps(images), network.taps(target), strict=True):
        a, b = (tap / torch.sqrt((tap**2).sum(dim=1, keepdim=True) + 1e-2) for tap in (a, b))
        terms.append(((a - b) ** 2).sum(dim=1).mean(dim=(1, 2)))
    torch.testing.assert_close(FeatureDistance(network)(images, target), sum(terms) / 3)


def test_maps_of_distances_are_the_taps_interpolated_to_every_pixel(network: FeatureNet, images: Tensor) -> None:
    distance, target = FeatureDistance(network), images.roll(1, 0)
    features, target_features = distance.features(images), distance.features(target)
    expected = torch.zeros(3, 20, 12)
    for a, b in zip(features, target_features, strict=True):
        difference = ((a - b) ** 2).sum(dim=1, keepdim=True)
        expected += torch.nn.functional.interpolate(difference, (20, 12), mode="bilinear")[:, 0] / 3
    torch.testing.assert_close(distance.spatial(features, target_features, (20, 12)), expected)
    maps = distance.spatial(features, target_features, (16, 16))  # 2x2 and 4x4 pixels of a tap weigh nearly the same
    torch.testing.assert_close(maps.mean(dim=(1, 2)), distance(images, target), rtol=0.05, atol=1e-3)


def test_features_of_a_target_computed_once_give_the_same_distance(network: FeatureNet, images: Tensor) -> None:
    distance, target = FeatureDistance(network), images.roll(1, 0)
    once = distance.features(target)
    assert torch.equal(distance.distance(distance.features(images), once), distance(images, target))


def test_each_image_is_compared_by_itself(network: FeatureNet, images: Tensor) -> None:
    distance, target = FeatureDistance(network), images.roll(1, 0)
    alone = torch.cat([distance(images[row : row + 1], target[row : row + 1]) for row in range(3)])
    torch.testing.assert_close(distance(images, target), alone)


def test_the_gradient_is_finite_where_no_feature_is_active(network: FeatureNet, images: Tensor) -> None:
    black = torch.full((1, 1, 16, 16), -1.0, requires_grad=True)
    FeatureDistance(network)(black, images[:1]).sum().backward()
    assert black.grad is not None and black.grad.isfinite().all()


def test_identity_similarity_is_the_cosine_of_embeddings(network: FeatureNet, images: Tensor) -> None:
    similarity, target = EmbeddingSimilarity(network), images.roll(1, 0)
    torch.testing.assert_close(similarity(images, images), torch.ones(3))
    torch.testing.assert_close(similarity.embed(images).norm(dim=1), torch.ones(3))
    a, b = network.embed(images), network.embed(target)
    expected = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))
    torch.testing.assert_close(similarity(images, target), expected)
