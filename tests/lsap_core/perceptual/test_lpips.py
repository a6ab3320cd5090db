"""LPIPS beside the published program and beside the `lpips` package."""

import copy
import functools
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import lpips
import pytest
import torch
from torch import Tensor, nn

from lsap_core.errors import CheckpointError
from lsap_core.images import from_uint8
from lsap_core.perceptual.lpips import LpipsDistance, build_lpips

NETS = ("alex", "vgg")


@pytest.fixture(scope="module")
def lpips_weights(filled: Callable[..., dict[str, Tensor]]) -> Callable[[str], dict[str, Tensor]]:
    """Trunk (`features.*`) and linear layers (`lin*`) made from their names; each time another dict."""
    made = functools.cache(lambda net: filled(f"lpips_{net}", "plain"))
    return lambda net: dict(made(net))


@pytest.fixture(scope="module")
def published(lpips_weights: Callable[[str], dict[str, Tensor]]) -> Iterator[Callable[[str], LpipsDistance]]:
    """The distance with those weights; built once, as a VGG takes its time."""
    kept: dict[str, LpipsDistance] = {}

    def get(net: str) -> LpipsDistance:
        if net not in kept:
            weights = lpips_weights(net)
            linear = {name: value for name, value in weights.items() if name.startswith("lin")}
            kept[net] = build_lpips(net, weights, linear)  # type: ignore[arg-type]
        return kept[net]

    yield get
    kept.clear()


@pytest.fixture(scope="module")
def pair(reference: Callable[[str], Any]) -> tuple[Tensor, Tensor]:
    numbers = reference("lpips_loss")
    return from_uint8(numbers["x"].numpy()), from_uint8(numbers["y"].numpy())


@pytest.mark.parametrize("net", NETS)
def test_distances_are_the_published_ones_layer_by_layer_and_in_total(
    net: str,
    reference: Callable[[str], Any],
    published: Callable[[str], LpipsDistance],
    pair: tuple[Tensor, Tensor],
) -> None:
    numbers, distance = reference("lpips_loss"), published(net)
    with torch.no_grad():
        features, target_features = (distance.features(images) for images in pair)
    numbers.check(f"per_layer_{net}", distance.per_layer(features, target_features))
    total = distance.distance(features, target_features)
    assert total.shape == (2,)
    numbers.check(f"loss_{net}", total.mean())


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_distances_are_those_of_the_lpips_package(
    net: str, pair: tuple[Tensor, Tensor], published: Callable[[str], LpipsDistance]
) -> None:
    if net == "squeeze":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            package = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).eval()
        trunk = {f"features.{name.split('.', 1)[1]}": value for name, value in package.net.state_dict().items()}
        distance = build_lpips("squeeze", trunk)
    else:
        distance = published(net)
        package = distance.network
    with torch.no_grad():
        torch.testing.assert_close(distance(*pair), package(*pair).flatten(), rtol=1e-5, atol=1e-6)
        assert (distance(*pair) > 1e-3).all()


@pytest.mark.parametrize("net", NETS)
def test_maps_of_distances_are_those_of_the_lpips_package(
    net: str, pair: tuple[Tensor, Tensor], published: Callable[[str], LpipsDistance]
) -> None:
    distance = published(net)
    package = copy.copy(distance.network)
    package.spatial = True
    images, target = (one[:, :, :60, :44] for one in pair)
    with torch.no_grad():
        found = distance.spatial(distance.features(images), distance.features(target), (60, 44))
        torch.testing.assert_close(found, package(images, target)[:, 0], rtol=1e-5, atol=1e-6)
    assert found.shape == (2, 60, 44) and found.min() >= 0 and found.std() > 1e-3


def test_equal_images_have_no_distance(published: Callable[[str], LpipsDistance], pair: tuple[Tensor, Tensor]):
    with torch.no_grad():
        assert torch.equal(published("alex")(pair[0], pair[0]), torch.zeros(2))


def test_gray_images_are_colour_images_with_equal_channels(
    published: Callable[[str], LpipsDistance], pair: tuple[Tensor, Tensor]
) -> None:
    distance = published("alex")
    gray, target = pair[0][:, :1], pair[1][:, :1]
    with torch.no_grad():
        assert torch.equal(distance(gray, target), distance(gray.repeat(1, 3, 1, 1), target.repeat(1, 3, 1, 1)))


def test_features_of_a_target_computed_once_give_the_same_distance(
    published: Callable[[str], LpipsDistance], pair: tuple[Tensor, Tensor]
) -> None:
    distance = published("alex")
    with torch.no_grad():
        once = distance.features(pair[1])
        assert torch.equal(distance.distance(distance.features(pair[0]), once), distance(*pair))


@pytest.mark.parametrize("net", NETS)
def test_the_gradient_of_a_constant_black_image_is_finite(
    net: str, published: Callable[[str], LpipsDistance], pair: tuple[Tensor, Tensor]
) -> None:
    black = torch.full((1, 3, 64, 64), -1.0, requires_grad=True)
    published(net)(black, pair[1][:1, :, :, :64]).sum().backward()
    assert black.grad is not None and black.grad.isfinite().all() and black.grad.abs().max() > 0


class PixelsAsFeatures(nn.Module):
    """A trunk without the ReLU that would hide a gradient that is not a number."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = nn.Identity()
        self.lins = nn.ModuleList([nn.Conv2d(3, 1, 1, bias=False)])

    def net(self, images: Tensor) -> list[Tensor]:
        """The pixels."""
        return [images]


def test_the_gradient_is_finite_where_all_features_are_zero() -> None:
    images = torch.zeros(1, 3, 4, 4, requires_grad=True)
    LpipsDistance(PixelsAsFeatures())(images, torch.ones(1, 3, 4, 4)).sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().max() > 0


def test_no_gradient_reaches_the_network(published: Callable[[str], LpipsDistance]) -> None:
    network = published("alex").network
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training


def test_it_is_built_without_a_warning_that_nobody_can_heed(lpips_weights: Callable[[str], dict[str, Tensor]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_lpips("alex", lpips_weights("alex"))


def test_linear_layers_are_those_of_the_package_unless_given(
    lpips_weights: Callable[[str], dict[str, Tensor]], published: Callable[[str], LpipsDistance]
) -> None:
    weights = lpips_weights("alex")
    own = build_lpips("alex", weights)
    package = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for own_linear, package_linear, given in zip(
        own.network.lins, package.lins, published("alex").network.lins, strict=True
    ):
        assert torch.equal(own_linear.model[1].weight, package_linear.model[1].weight)
        assert not torch.equal(own_linear.model[1].weight, given.model[1].weight)
    assert torch.equal(published("alex").network.lin0.model[1].weight, weights["lin0.model.1.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda trunk: trunk.pop("features.6.bias"), r"features\.6\.bias \[384\], found nothing"),
        (
            lambda trunk: trunk.update({"features.0.weight": torch.zeros(64, 3, 3, 3)}),
            r"features\.0\.weight \[64, 3, 11, 11\], found \[64, 3, 3, 3\]",
        ),
        (lambda trunk: trunk.clear(), r"lpips-alex wants features\.0\.weight"),
    ],
)
def test_weights_of_another_trunk_are_refused(
    change: Callable[[dict[str, Tensor]], object],
    message: str,
    lpips_weights: Callable[[str], dict[str, Tensor]],
) -> None:
    trunk = lpips_weights("alex")
    change(trunk)
    with pytest.raises(CheckpointError, match=message):
        build_lpips("alex", trunk)


def test_other_entries_of_a_torchvision_file_are_ignored(lpips_weights: Callable[[str], dict[str, Tensor]]) -> None:
    whole = lpips_weights("alex") | {"classifier.1.weight": torch.zeros(2, 2)}
    found = build_lpips("alex", whole).network.net.state_dict()
    assert torch.equal(found["slice1.0.weight"], whole["features.0.weight"])


def test_building_asks_the_network_for_nothing(
    lpips_weights: Callable[[str], dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError(f"a connection was opened: {args} {kwargs}")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # nor does a file that was downloaded before help
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(AssertionError, match="a connection was opened"):
        socket.create_connection(("127.0.0.1", 9))
    build_lpips("alex", lpips_weights("alex"))
    assert not any(tmp_path.iterdir())
