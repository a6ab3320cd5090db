"""The hypernetwork of HyperStyle, beside the published one, and its files."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.encoders.backbone import ResNet34Trunk
from lsap_core.encoders.checkpoints import load_trunk
from lsap_core.errors import CheckpointError, ConfigError, ShapeError
from lsap_core.generators import GeneratorConfig
from lsap_core.refinement.hyperstyle import HyperStyleSettings
from lsap_core.refinement.hyperstyle_checkpoint import from_hyperstyle_document, is_hyperstyle_document
from lsap_core.refinement.hyperstyle_networks import (
    SIZES,
    CodeHead,
    HyperNetwork,
    HyperStyleConfig,
    OffsetHead,
    SharedMatrices,
    TunedLayer,
)

KEYS = Path(__file__).parents[2] / "reference" / "keys"
ALL_CONVS = (0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18, 20, 21, 23, 24)
FACES = GeneratorConfig.config_f(1024)
WIDTHS = GeneratorConfig(16, (8, 8, 6), image_channels=3)

Keys = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def published_keys() -> Keys:
    """Names and shapes of a published hypernetwork."""
    return lambda table: json.loads((KEYS / f"hyperstyle_hypernet_{table}_1024.json").read_text())["keys"]


def document(keys: dict[str, Any], **entries: Any) -> dict[str, Any]:
    """A checkpoint whose tensors are zeros that take no memory until they are written to."""
    state = {f"hypernet.{name}": torch.zeros(shape) for name, shape in keys.items() if ".hypernet." not in name}
    for name in keys:
        if ".hypernet." in name:
            shared = f"hypernet.shared_weight_hypernet.{name.rpartition('.')[2]}"
            state[f"hypernet.{name}"] = state[shared]
    return {"state_dict": state, **entries}


def with_layers(keys: dict[str, Any], layers: set[int]) -> dict[str, Any]:
    """The names of a hypernetwork that changes fewer layers."""
    return {
        name: shape
        for name, shape in keys.items()
        if not name.startswith("refinement_blocks.") or int(name.split(".")[1]) in layers
    }


def published_state(shapes: dict[str, Any], fill: Any, salt: str = "") -> dict[str, Tensor]:
    """Weights from names, scaled as the reference numbers say."""
    state = fill.fill_dict({name: tuple(shape) for name, shape in shapes.items()}, "plain", salt)
    scaled = {
        name: value * 0.1 for name, value in state.items() if name.startswith("output.") and name.endswith(".weight")
    }
    return state | scaled


# --- the published network -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kernel_side"), [("shared_full", 3), ("shared_per_channel", 1)])
def test_shared_matrices_are_the_published_ones(
    name: str, kernel_side: int, reference: Callable[[str], Any], fill: Any
) -> None:
    numbers = reference("hyperstyle_blocks")
    matrices = SharedMatrices(24, in_channels=12, out_channels=20, kernel_side=kernel_side)
    state = {key: tuple(value.shape) for key, value in matrices.state_dict().items()}
    matrices.load_state_dict(
        {key: torch.from_numpy(fill.array(f"{name}.{key}", shape, 0.2)) for key, shape in state.items()}
    )
    numbers.check(name, matrices(numbers["z"]).expand(-1, -1, -1, 3, 3))


def test_heads_are_the_published_ones(reference: Callable[[str], Any], fill: Any) -> None:
    numbers, sizes = reference("hyperstyle_blocks"), SIZES["resnet_34"]
    features = torch.from_numpy(fill.array("in/hyperstyle_blocks/features", (2, 512, 16, 16)))

    head = CodeHead(sizes)
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    head.load_state_dict(fill.fill_dict(shapes, "plain", "head:"))
    matrices = SharedMatrices(512, in_channels=8, out_channels=8, kernel_side=3)
    shapes = {name: tuple(value.shape) for name, value in matrices.state_dict().items()}
    matrices.load_state_dict(
        {name: torch.from_numpy(fill.array(f"head.hypernet.{name}", shape, 0.025)) for name, shape in shapes.items()}
    )
    code = head(features)
    numbers.check("head_code", code)
    numbers.check("head_offsets", matrices(code))

    for layer, output, name in (
        (TunedLayer(24, "convs.16.weight", 32, 32, is_to_rgb=False), "output.1", "conv_offsets"),
        (TunedLayer(22, "to_rgbs.7.weight", 3, 64, is_to_rgb=True), "output.0", "to_rgb_offsets"),
    ):
        own = OffsetHead(layer, sizes)
        names = {key.replace("output", output): key for key in own.state_dict()}
        shapes = {key: tuple(own.state_dict()[ours].shape) for key, ours in names.items()}
        state = published_state(shapes, fill, f"block{layer.index}:")
        own.load_state_dict({names[key]: value for key, value in state.items()})
        offsets = own(features)
        numbers.check(name, offsets if layer.is_to_rgb else offsets[..., 0, 0])

    separable = OffsetHead(TunedLayer(24, "convs.16.weight", 32, 32, is_to_rgb=False), SIZES["resnet_34_separable"])
    names = {key.replace("output", "output.0"): key for key in separable.state_dict()}
    shapes = {key: tuple(separable.state_dict()[ours].shape) for key, ours in names.items()}
    state = fill.fill_dict(shapes, "plain", "separable24:")
    separable.load_state_dict({names[key]: value for key, value in state.items()})
    numbers.check("separable_offsets_sub", separable(features)[:, ::2, ::2])


@pytest.mark.parametrize(
    ("resolution", "backbone", "layers", "count"),
    [
        (1024, "resnet_34", None, 327_007_808),
        (1024, "resnet_34", ALL_CONVS, 332_664_896),
        (1024, "resnet_34", range(26), 369_205_472),
        (512, "resnet_34", ALL_CONVS[:-2], 325_188_672),
        (256, "resnet_34", ALL_CONVS[:-4], 312_984_640),
        (1024, "resnet_34_separable", ALL_CONVS, 215_123_456),
        (1024, "resnet_34_separable", None, 209_466_368),
    ],
)
def test_it_has_as_many_parameters_as_published(resolution: int, backbone: Any, layers: Any, count: int) -> None:
    config = HyperStyleConfig.for_generator(GeneratorConfig.config_f(resolution), backbone=backbone, layers=layers)
    with torch.device("meta"):
        network = HyperNetwork(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_offsets_have_the_published_sizes() -> None:
    config = HyperStyleConfig.for_generator(FACES)
    kept = [torch.Size(config.offset_shape(layer)).numel() for layer in config.tuned_layers]
    assert config.layers == ALL_CONVS[3:]
    assert kept[:6] == [512 * 512 * 9] * 6
    assert sum(kept[6:]) == 512 * 256 + 256**2 + 256 * 128 + 128**2 + 128 * 64 + 64**2 + 64 * 32 + 32**2


# --- published files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "layers"), [("all_convs", ALL_CONVS), ("medium_fine", ALL_CONVS[3:])])
def test_published_names_are_read_strictly(table: str, layers: tuple[int, ...], published_keys: Keys) -> None:
    file = document(published_keys(table), latent_avg=torch.ones(18, 512))
    assert is_hyperstyle_document(file)
    found = from_hyperstyle_document(file, generator_config=FACES)
    assert found.network.config.layers == layers
    assert found.network.config.input_size == (256, 256)
    assert not found.network.training and found.decoder is None and found.notes == ()
    assert found.w_avg is not None and found.w_avg.shape == (18, 512)


@pytest.fixture
def short(published_keys: Keys) -> dict[str, Any]:
    """Names of a small part of the published network: two layers with heads of their own."""
    keys = with_layers(published_keys("all_convs"), {21, 24})
    return {name: shape for name, shape in keys.items() if not name.startswith("shared_")}


def test_a_tensor_too_many_or_too_few_is_named(short: dict[str, Any]) -> None:
    file = document(short)
    file["state_dict"]["hypernet.extra.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"backbone\.extra\.weight"):
        from_hyperstyle_document(file, generator_config=FACES)
    del file["state_dict"]["hypernet.extra.weight"]
    del file["state_dict"]["hypernet.refinement_blocks.24.output.1.bias"]
    with pytest.raises(CheckpointError, match=r"heads\.24\.output\.bias"):
        from_hyperstyle_document(file, generator_config=FACES)


@pytest.mark.parametrize("options", [{}, {"opts": {"encoder_type": "SharedWeightsHyperNetResNetSeparable"}}])
def test_the_separable_variant_is_read(short: dict[str, Any], options: dict[str, Any]) -> None:
    keys = {name: shape for name, shape in short.items() if name.split(".")[1] != "21" and ".output." not in name}
    head = "refinement_blocks.24"
    keys |= {f"{head}.convs.4.weight": [256, 256, 3, 3], f"{head}.convs.4.bias": [256]}
    keys |= {f"{head}.convs.6.weight": [512, 256, 3, 3], f"{head}.convs.6.bias": [512]}
    for name, sizes in (("make_kernel_in", (288, 512)), ("make_kernel_out", (288, 512))):
        keys |= {f"{head}.output.0.{name}.weight": list(sizes), f"{head}.output.0.{name}.bias": [sizes[0]]}
    for name in ("kernel_linear_in", "kernel_linear_out"):
        keys |= {f"{head}.output.0.{name}.weight": [32, 32], f"{head}.output.0.{name}.bias": [32]}
    network = from_hyperstyle_document(document(keys, **options), generator_config=FACES).network
    assert (network.config.backbone, network.config.layers) == ("resnet_34_separable", (24,))
    (layer,) = network.config.tuned_layers
    found = network(torch.zeros(1, 6, 256, 256))[24]
    assert tuple(found.shape[1:]) == network.config.offset_shape(layer) == (32, 32, 3, 3)
    kept = HyperStyleSettings(layers=(24,), backbone="resnet_34_separable").state_arrays(FACES)
    assert [array.shape for array in kept] == [(32, 32, 3, 3)]


def test_a_damaged_file_is_refused(short: dict[str, Any]) -> None:
    file = document(short)
    file["state_dict"]["hypernet.refinement_blocks.24.output.1.bias"][3] = torch.inf
    with pytest.raises(CheckpointError, match=r"heads\.24\.output\.bias holds values that are not finite"):
        from_hyperstyle_document(file, generator_config=FACES)


def test_a_generator_that_is_too_small_or_too_narrow_is_refused(short: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"layers are \(21, 24\); wanted some of 0 to 22"):
        from_hyperstyle_document(document(short), generator_config=GeneratorConfig.config_f(512))
    with pytest.raises(CheckpointError, match=r"heads\.24\.output\.weight"):
        from_hyperstyle_document(document(short), generator_config=GeneratorConfig.config_e(1024))
    with pytest.raises(CheckpointError, match="name the generator too"):
        from_hyperstyle_document(document(short))


def test_copies_of_the_shared_matrices_must_be_equal(published_keys: Keys) -> None:
    file = document(with_layers(published_keys("all_convs"), {12}))
    name = "hypernet.refinement_blocks.12.hypernet.b1"
    file["state_dict"][name] = file["state_dict"][name].clone()
    found = from_hyperstyle_document(file, generator_config=FACES)
    assert found.network.shared is not None
    file["state_dict"][name][7] = 1.0
    with pytest.raises(CheckpointError, match=r"refinement_blocks\.12\.hypernet\.b1 differs"):
        from_hyperstyle_document(file, generator_config=FACES)


def test_shared_matrices_that_no_layer_uses_are_left_alone(published_keys: Keys) -> None:
    file = document(with_layers(published_keys("all_convs"), {24}), opts=SimpleNamespace(dataset_type="cars_encode"))
    found = from_hyperstyle_document(file, generator_config=FACES)
    assert found.network.shared is None and found.w_avg is None
    assert found.network.config.input_size == (192, 256)
    assert "left alone" in found.notes[0]


def test_other_files_are_refused_with_what_they_are(short: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="found the checkpoint of an encoder"):
        from_hyperstyle_document({"state_dict": {"encoder.a": torch.zeros(1), "decoder.b": torch.zeros(1)}})
    told = document(short, opts={"encoder_type": "SharedWeightsHyperNetResNetSeparable"})
    with pytest.raises(CheckpointError, match=r"heads\.21\.output\.make_kernel_in\.weight +missing"):
        from_hyperstyle_document(told, generator_config=FACES)
    with pytest.raises(CheckpointError, match=r"latent_avg is \[3, 512\]"):
        from_hyperstyle_document(document(short, latent_avg=torch.zeros(3, 512)), generator_config=FACES)


def test_its_backbone_starts_from_a_trained_classifier() -> None:
    with torch.device("meta"):
        names = ResNet34Trunk(in_channels=3).state_dict()
    names = {name: value for name, value in names.items() if "num_batches" not in name and name != "relu.weight"}
    state = {name: torch.full(value.shape, 0.5) for name, value in names.items()}
    network = HyperNetwork(HyperStyleConfig.for_generator(WIDTHS, layers=(5,)))
    notes = load_trunk(network.backbone, state, backbone="resnet_34", image_channels=3, reads_pairs=True)
    first = network.get_parameter("backbone.conv1.weight")
    assert (first[:, :3] == 0.5).all() and 0.95 < first[:, 3:].std() < 1.05
    assert (network.get_parameter("backbone.body.15.conv2.weight") == 0.5).all()
    assert len(notes) == 2


# --- other sizes -----------------------------------------------------------------------------------------------


def test_the_small_one_is_small() -> None:
    digits = GeneratorConfig(32, (64, 64, 32, 16), w_dim=64, z_dim=12, image_channels=1)
    network = HyperNetwork(HyperStyleConfig.for_generator(digits, backbone="small"))
    assert sum(parameter.numel() for parameter in network.parameters()) < 150_000


def test_a_new_small_one_changes_nothing_and_learns_to() -> None:
    network = HyperNetwork(HyperStyleConfig.for_generator(WIDTHS, backbone="small", layers=(0, 1, 5)))
    found = network(torch.rand(2, 6, 16, 16))
    assert not any(offsets.any() for offsets in found.values())
    torch.stack([(offsets - 1).square().sum() for offsets in found.values()]).sum().backward()
    last = (network.get_parameter("heads.1.output.weight"), network.get_parameter("shared.w1"))
    assert all(weight.grad is not None and weight.grad.any() for weight in last)


@pytest.mark.parametrize("backbone", ["small", "resnet_34"])
def test_every_layer_of_any_generator(backbone: Any) -> None:
    config = GeneratorConfig(64, (8, 8, 6, 4, 2), image_channels=1, content_box=(8, 56, 0, 64))
    sizes = HyperStyleConfig.for_generator(config, backbone=backbone, layers=range(14))
    assert sizes.input_size == (48, 64)
    assert [layer.index for layer in sizes.shared_layers] == [0, 2, 3]
    assert HyperStyleConfig.from_dict(json.loads(json.dumps(sizes.to_dict()))) == sizes
    if backbone == "small":
        network = HyperNetwork(sizes).eval()
        found = network(torch.zeros(2, 2, 48, 64))
        shapes = {layer.index: (2, *sizes.offset_shape(layer)) for layer in sizes.tuned_layers}
        assert {index: tuple(offsets.shape) for index, offsets in found.items()} == shapes
        with pytest.raises(ShapeError, match=r"reads \[N, 2, 48, 64\]"):
            network(torch.zeros(2, 2, 64, 64))


@pytest.mark.parametrize("layers", [(), (5, 3), (5, 5), (8,), (-1,)])
def test_layers_that_do_not_exist_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"wanted some of 0 to 7, in order"):
        HyperStyleConfig.for_generator(WIDTHS, layers=layers)
