"""Backbones that start from trained classifiers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor

from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.encoders.checkpoints import load_backbone
from lsap_core.errors import CheckpointError

FACES = EncoderConfig("single", "ir_se_50", 18, 512, (256, 256), 3)
RESTYLE = EncoderConfig("single", "ir_se_50", 18, 512, (256, 256), 3, is_iterative=True)
RESNET = EncoderConfig("single", "resnet_34", 18, 512, (64, 64), 3)


@pytest.fixture(scope="module")
def arcface_state(filled: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    return filled("arcface_ir_se50", "plain")


@pytest.fixture(scope="module")
def resnet() -> torchvision.models.ResNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision.models.resnet34(weights=None)
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return network.eval()


def test_a_backbone_starts_from_arcface(arcface_state: dict[str, Tensor]) -> None:
    encoder = Encoder(FACES)
    linear = encoder.heads[0].linear.weight.clone()
    assert load_backbone(encoder, arcface_state) == ()
    found = encoder.backbone.state_dict()
    for name in ("input_layer.0.weight", "body.23.res_layer.5.fc2.weight", "body.3.shortcut_layer.1.running_var"):
        assert torch.equal(found[name], arcface_state[name])
    assert torch.equal(encoder.heads[0].linear.weight, linear)
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_an_iterative_backbone_draws_the_channels_of_the_reconstruction(arcface_state: dict[str, Tensor]) -> None:
    first, second = Encoder(RESTYLE), Encoder(RESTYLE)
    notes = load_backbone(first, arcface_state, seed=3)
    load_backbone(second, arcface_state, seed=3)
    weight = first.backbone.state_dict()["input_layer.0.weight"]
    assert torch.equal(weight[:, :3], arcface_state["input_layer.0.weight"])
    assert torch.equal(weight, second.backbone.state_dict()["input_layer.0.weight"])
    assert abs(weight[:, 3:].std() - 1) < 0.1
    assert notes == ("input_layer.0.weight: the channels of the reconstruction were drawn from N(0, 1) with seed 3",)


def test_a_resnet_is_torchvisions_without_pooling(
    resnet: torchvision.models.ResNet, numbers: Callable[..., Tensor]
) -> None:
    encoder, images = Encoder(RESNET).eval(), numbers(2, 3, 64, 64)
    (note,) = load_backbone(encoder, resnet.state_dict())
    assert note.startswith("relu.weight: the slope is not in the file")
    with torch.no_grad():
        features = torch.nn.functional.prelu(resnet.bn1(resnet.conv1(images)), torch.full((64,), 0.25))
        maps = encoder.backbone(images)
        for layer, map_ in zip((resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4), maps, strict=True):
            features = layer(features)
            torch.testing.assert_close(map_, features)
    assert maps[-1].shape == (2, 512, 4, 4)


@pytest.mark.parametrize(
    ("config", "state", "message"),
    [
        (
            FACES,
            {"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)},
            "from model_ir_se50.pth.*found conv1.weight",
        ),
        (RESNET, {"input_layer.0.weight": torch.zeros(1)}, "from torchvision's resnet34.*found input_layer"),
        (FACES, [1], "found list"),
        (EncoderConfig("offsets", "small", 8, 4, (32, 32), 1), {}, 'a "small" backbone has no trained weights'),
    ],
)
def test_weights_of_another_kind_are_refused(config: EncoderConfig, state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_backbone(Encoder(config), state)


def test_a_part_that_is_missing_is_named_and_nothing_changes(arcface_state: dict[str, Tensor]) -> None:
    encoder = Encoder(FACES)
    before = encoder.backbone.state_dict()["input_layer.0.weight"].clone()
    damaged = {name: tensor for name, tensor in arcface_state.items() if name != "body.4.res_layer.1.weight"}
    with pytest.raises(
        CheckpointError, match=r"the ir_se_50 backbone: 2 tensors[^$]*body\.4\.res_layer\.1\.weight +missing"
    ):
        load_backbone(encoder, damaged | {"body.24.res_layer.0.bias": torch.zeros(512)})
    assert torch.equal(encoder.backbone.state_dict()["input_layer.0.weight"], before)


def test_a_gray_encoder_cannot_start_from_colours(arcface_state: dict[str, Tensor]) -> None:
    encoder = Encoder(EncoderConfig("single", "ir_se_50", 18, 512, (256, 256), 1))
    with pytest.raises(CheckpointError, match=r"input_layer\.0\.weight +\[64, 3, 3, 3\] +\[64, 1, 3, 3\]"):
        load_backbone(encoder, arcface_state)
