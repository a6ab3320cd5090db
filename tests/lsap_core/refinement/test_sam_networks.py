"""The predictor of errors beside the published programs, and files of it."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError, ConfigError, ShapeError
from lsap_core.generators import GeneratorConfig
from lsap_core.images import from_uint8
from lsap_core.refinement.network_files import NetworkCheckpoint
from lsap_core.refinement.sam_checkpoints import PREDICTOR, from_released_predictor, is_released_predictor
from lsap_core.refinement.sam_deeplab import DeepLab
from lsap_core.refinement.sam_networks import InvertibilityPredictor, LayerHead, PredictorConfig, SamNetworks

KEYS = Path(__file__).parents[2] / "reference" / "keys"


def table(name: str) -> dict[str, list[int]]:
    keys: dict[str, list[int]] = json.loads((KEYS / f"{name}.json").read_text())["keys"]
    return keys


@pytest.fixture(scope="module")
def released(filled: Callable[..., dict[str, Tensor]], fill: ModuleType) -> dict[str, dict[str, Tensor]]:
    """A released file with weights made from their names."""
    heads = {name: fill.fill_dict(table("sam_layer_head"), "plain", salt=f"{name}:") for name in ("F6", "W+")}
    return {"sd_base": filled("sam_deeplab", "plain"), **heads}


@pytest.fixture(scope="module")
def checkpoint(released: dict[str, dict[str, Tensor]]) -> NetworkCheckpoint[PredictorConfig]:
    return from_released_predictor(released)


@pytest.fixture(scope="module")
def predictor(checkpoint: NetworkCheckpoint[PredictorConfig]) -> InvertibilityPredictor:
    return PREDICTOR.build(checkpoint)


@torch.no_grad()
def test_features_and_error_maps_are_the_published_ones(
    reference: Callable[[str], Any], predictor: InvertibilityPredictor
) -> None:
    published = reference("sam_nets")
    features: list[Tensor] = []
    hook = predictor.base.register_forward_hook(lambda module, inputs, output: features.append(output))
    errors = predictor(from_uint8(published["sam_dev"][None].numpy()))
    hook.remove()
    published.check("deeplab_sub", features[0][:, :, ::4, ::4])
    published.check("deeplab_mean", features[0].mean(dim=(2, 3)))
    assert predictor.spaces == ("W+", "F6")
    for index, name in enumerate(predictor.spaces):
        published.check(f"head_{name}_sub", errors[:, index : index + 1, ::2, ::2])
        published.check(f"head_{name}_mean", errors[:, index].mean())


def test_networks_have_the_released_names() -> None:
    with torch.device("meta"):
        networks = {"sam_deeplab": DeepLab(8), "sam_layer_head": LayerHead()}
    for name, network in networks.items():
        assert {key: list(value.shape) for key, value in network.state_dict().items()} == table(name), name


def test_files_of_our_own_bring_back_the_network_and_notice_damage() -> None:
    config = PredictorConfig("small", ("W+", "F2"), 1)
    state = PREDICTOR.canonical(config, InvertibilityPredictor(config).state_dict(), what="the network")
    checkpoint = NetworkCheckpoint(config, state, layout="safetensors", generator_digest="ab", title="digits")
    metadata = PREDICTOR.metadata(checkpoint)
    again = PREDICTOR.read(checkpoint.state, metadata)
    assert (
        again.config == config
        and again.title == "digits"
        and again.generator_digest == "ab"
        and PREDICTOR.digest(again) == metadata["digest"]
    )
    built = PREDICTOR.build(again)
    assert not built.training and torch.equal(built.state_dict()["heads.F2.m.3.bias"], state["heads.F2.m.3.bias"])
    with pytest.raises(CheckpointError, match="changed or damaged"):
        PREDICTOR.read(state | {"heads.W+.m.3.bias": state["heads.W+.m.3.bias"] + 1}, metadata)
    for name, value in (("kind", "encoder"), ("format_version", "2"), ("config", "{}")):
        with pytest.raises(CheckpointError):
            PREDICTOR.read(state, metadata | {name: value})
    with pytest.raises(CheckpointError, match="not finite"):
        infinite = state | {"heads.W+.m.3.bias": torch.full((1,), torch.inf)}
        PREDICTOR.canonical(config, infinite, what="the file")


def test_other_files_are_refused(released: dict[str, dict[str, Tensor]]) -> None:
    assert is_released_predictor(released) and not is_released_predictor({"sd_base": 1})
    with pytest.raises(CheckpointError, match=r"wanted a predictor of SAM .* found the checkpoint of an encoder"):
        from_released_predictor({"encoder.a": 1, "decoder.b": 2})
    with pytest.raises(CheckpointError, match="an entry F"):
        from_released_predictor(released | {"F": {}})
    with pytest.raises(CheckpointError, match="no space"):
        from_released_predictor({"sd_base": released["sd_base"]})
    with pytest.raises(CheckpointError, match=r"heads\.F8\.m\.0\.weight +missing"):
        from_released_predictor(released | {"F8": {}})
    with pytest.raises(CheckpointError, match=r"base\.another"):
        from_released_predictor(released | {"sd_base": released["sd_base"] | {"another": torch.zeros(1)}})


@pytest.mark.parametrize(("channels", "size"), [(1, (32, 32)), (3, (24, 32)), (3, (9, 17)), (1, (1, 1))])
def test_the_small_base_reads_images_of_any_size(
    channels: int, size: tuple[int, int], numbers: Callable[..., Tensor]
) -> None:
    config = PredictorConfig("small", ("W+", "F2", "F4"), channels)
    predictor = InvertibilityPredictor(config).eval()
    assert sum(parameter.numel() for parameter in predictor.parameters()) < 100_000
    with torch.no_grad():
        images = numbers(2, channels, *size)
        errors = predictor(images)
        assert errors.shape == (2, 3, *size) and errors.min() >= 0
        torch.testing.assert_close(predictor(images[1:]), errors[1:])


def test_new_heads_have_a_gradient_wherever_they_start(numbers: Callable[..., Tensor]) -> None:
    images = numbers(4, 3, 16, 16)
    for seed in range(8):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            predictor = InvertibilityPredictor(PredictorConfig("small", ("W+", "F2", "F4")))
        errors = predictor(images)
        assert (errors > 0).float().mean(dim=(0, 2, 3)).min() > 0.2


@torch.no_grad()
def test_gray_images_are_colours_to_deeplab(predictor: InvertibilityPredictor, numbers: Callable[..., Tensor]) -> None:
    gray = InvertibilityPredictor(PredictorConfig("deeplab", predictor.spaces, 1)).eval()
    gray.load_state_dict(predictor.state_dict())
    images = numbers(1, 1, 32, 48)
    assert torch.equal(gray(images), predictor(images.repeat(1, 3, 1, 1)))
    with pytest.raises(ShapeError, match=r"wanted \[N, 1, h, w\]"):
        gray(images.repeat(1, 3, 1, 1))


def test_configurations_survive_json_and_follow_the_generator() -> None:
    config = PredictorConfig.for_generator(GeneratorConfig.config_f(32, image_channels=1), base="small")
    assert config == PredictorConfig("small", ("W+", "F2", "F4"), 1)
    assert PredictorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base": "vgg"}, "deeplab"),
        ({"spaces": ("W+", "W+")}, "each once"),
        ({"spaces": ("W", "F4")}, "W\\+ or F4"),
        ({"spaces": ()}, "each once"),
        ({"image_channels": 2}, "1, 3 or 4"),
    ],
)
def test_impossible_configurations_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PredictorConfig(**{"base": "small", "spaces": ("W+",), **values})


def test_networks_of_a_refiner_stay_frozen_in_eval_mode() -> None:
    networks = SamNetworks(InvertibilityPredictor(PredictorConfig("small", ("W+",))))
    networks.train()
    assert not any(module.training for module in networks.modules())
    assert not any(parameter.requires_grad for parameter in networks.parameters())
