"""3x3 convolutions by Winograd's form, beside the direct one."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core import convolution
from lsap_core.convolution import (
    LEAST_CHANNELS,
    LEAST_SIDE,
    Convolution3x3,
    convolve_3x3,
    fastest_layout,
    with_winograd,
)
from lsap_core.generators import Generator, GeneratorConfig


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def operands() -> tuple[Tensor, Tensor, Tensor]:
    """Features whose sides are no multiples of a tile, weight and bias, large enough for Winograd's form."""
    return drawn(3, LEAST_CHANNELS, 35, LEAST_SIDE), drawn(72, LEAST_CHANNELS, 3, 3, seed=1), drawn(72, seed=2)


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Features that Winograd's form was asked for."""
    asked: list[Tensor] = []
    winograd = convolution._winograd

    def noted(features: Tensor, *others: Tensor | None) -> Tensor:
        asked.append(features)
        return winograd(features, *others)  # type: ignore[no-any-return]

    monkeypatch.setattr(convolution, "_winograd", noted)
    return asked


has_nnpack = pytest.mark.skipif(not convolution._HAS_NNPACK, reason="this torch has no NNPACK for this processor")


@has_nnpack
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_result_and_gradient_are_those_of_the_direct_form(
    operands: tuple[Tensor, ...], has_bias: bool, layout: torch.memory_format, calls: list[Tensor]
) -> None:
    features, weight, bias = operands
    features = features.contiguous(memory_format=layout).requires_grad_(True)
    found = convolve_3x3(features, weight, bias if has_bias else None)
    wanted = F.conv2d(features.double(), weight.double(), bias.double() if has_bias else None, padding=1)
    upstream = drawn(*found.shape, seed=3)
    (gradient,) = torch.autograd.grad((found * upstream).sum(), features)
    (wanted_gradient,) = torch.autograd.grad((wanted * upstream).sum(), features)
    assert (found.double() - wanted).norm() < 1e-5 * wanted.norm()
    assert (gradient.double() - wanted_gradient).norm() < 1e-5 * wanted_gradient.norm()
    assert len(calls) == 2  # forward and backward


@has_nnpack
def test_an_image_does_not_depend_on_its_neighbours(operands: tuple[Tensor, ...], calls: list[Tensor]) -> None:
    features, weight, bias = operands
    together = convolve_3x3(features, weight, bias)
    alone = [convolve_3x3(image[None], weight, bias)[0] for image in features]
    assert torch.equal(together, torch.stack(alone))
    assert calls


@pytest.mark.parametrize(
    ("channels", "side", "dtype", "has_gradient"),
    [
        (LEAST_CHANNELS - 1, LEAST_SIDE, torch.float32, False),
        (LEAST_CHANNELS, LEAST_SIDE - 1, torch.float32, False),
        (LEAST_CHANNELS, LEAST_SIDE, torch.float64, False),
        (LEAST_CHANNELS, LEAST_SIDE, torch.float32, True),
    ],
)
def test_small_exact_and_trained_ones_are_direct(
    channels: int, side: int, dtype: torch.dtype, has_gradient: bool, calls: list[Tensor]
) -> None:
    features = drawn(1, channels, side, side).to(dtype)
    weight = drawn(channels, channels, 3, 3, seed=1).to(dtype).requires_grad_(has_gradient)
    assert torch.equal(convolve_3x3(features, weight), F.conv2d(features, weight, padding=1))
    assert not calls


@has_nnpack
def test_second_derivatives_are_there(operands: tuple[Tensor, ...]) -> None:
    features, weight = operands[0][:1].requires_grad_(True), operands[1]
    grads = []
    for form in (convolve_3x3, lambda values, kernel: F.conv2d(values, kernel, padding=1)):
        (slope,) = torch.autograd.grad(form(features, weight).square().sum(), features, create_graph=True)
        grads.append(torch.autograd.grad(slope.square().sum(), features)[0])
    assert (grads[0] - grads[1]).norm() < 1e-5 * grads[1].norm()


def test_a_networks_convolutions_are_replaced_where_they_can_be(calls: list[Tensor]) -> None:
    wide = LEAST_CHANNELS
    network = nn.Sequential(
        nn.Conv2d(wide, wide, 3, padding=1),
        nn.ModuleDict({"strided": nn.Conv2d(wide, wide, 3, padding=1, stride=2), "small": nn.Conv2d(wide, wide, 1)}),
    )
    state, first = network.state_dict(), network[0]
    with_winograd(network)
    assert isinstance(network[0], Convolution3x3) and network[0].weight is first.weight
    assert all(type(layer) is nn.Conv2d for layer in network[1].values())  # type: ignore[operator]
    assert list(network.state_dict()) == list(state)


@has_nnpack
def test_it_compiles(operands: tuple[Tensor, ...]) -> None:
    features, weight, bias = operands
    features.requires_grad_(True)

    def loss(values: Tensor) -> Tensor:
        return convolve_3x3(values * 2, weight, bias).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(features), features)[0]
    assert torch.equal(found, torch.autograd.grad(loss(features), features)[0])


@has_nnpack
def test_networks_lie_channels_first_where_winograds_form_has_a_part() -> None:
    cpu, wide = torch.device("cpu"), LEAST_CHANNELS
    assert fastest_layout(nn.Sequential(Convolution3x3(wide, wide)), cpu) == torch.contiguous_format
    assert fastest_layout(nn.Sequential(Convolution3x3(wide, wide - 1)), cpu) == torch.channels_last
    assert fastest_layout(nn.Sequential(Convolution3x3(wide, wide)), torch.device("meta")) == torch.channels_last
    for side, layout in ((LEAST_SIDE // 2, torch.channels_last), (LEAST_SIDE, torch.contiguous_format)):
        assert (
            fastest_layout(Generator(GeneratorConfig(side, (wide,) * (side.bit_length() - 2), w_dim=8)), cpu) == layout
        )


@has_nnpack
@pytest.mark.parametrize("in_dims", [(0, None, None), (1, None, None), (0, 0, 0), (None, 0, None)])
def test_it_is_mapped_over_images_and_weights(operands: tuple[Tensor, ...], in_dims: tuple[int | None, ...]) -> None:
    """Refiners that tune weights map one image and its weights over a batch."""
    given = [
        torch.stack([each, 2 * each], dim=dim or 0) if dim is not None else each
        for each, dim in zip(operands, in_dims, strict=True)
    ]
    found = torch.vmap(convolve_3x3, in_dims)(*given)
    wanted = torch.vmap(lambda *each: F.conv2d(*each, padding=1), in_dims)(*given)
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
