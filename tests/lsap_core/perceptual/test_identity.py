"""ArcFace and MoCo beside the published programs, and which files they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError, ShapeError
from lsap_core.perceptual.identity import ArcFaceSimilarity, MocoSimilarity, build_arcface, build_moco

ARCFACE_COUNT = 43_797_696


@pytest.fixture(scope="module")
def arcface_state(filled: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    return filled("arcface_ir_se50", "plain")


@pytest.fixture(scope="module")
def arcface(arcface_state: dict[str, Tensor]) -> ArcFaceSimilarity:
    return build_arcface(arcface_state)


@pytest.fixture(scope="module")
def moco_state(fill: ModuleType) -> dict[str, Tensor]:
    """Names of the file; its numbers were made from the names without the prefix."""
    assert fill.__file__ is not None
    keys = json.loads((Path(fill.__file__).parent / "keys" / "moco_resnet50.json").read_text())["keys"]
    plain = fill.fill_dict({name.removeprefix("module.encoder_q."): shape for name, shape in keys.items()}, "plain")
    return {f"module.encoder_q.{name}": tensor for name, tensor in plain.items()}


@pytest.fixture(scope="module")
def moco(moco_state: dict[str, Tensor]) -> MocoSimilarity:
    return build_moco({"state_dict": moco_state})


@pytest.fixture(scope="module")
def images(fill: ModuleType, reference: Callable[[str], Any]) -> dict[str, Tensor]:
    """Three batches of two pictures, the same for both networks."""
    numbers = reference("id_loss")
    return {
        name: torch.cat([fill.image_to_float(pixels) for pixels in numbers[name].numpy()])
        for name in ("y_hat", "y", "x")
    }


@pytest.mark.parametrize(("name", "numbers_name"), [("arcface", "id_loss"), ("moco", "moco_loss")])
def test_embeddings_and_losses_are_the_published_ones(
    name: str,
    numbers_name: str,
    images: dict[str, Tensor],
    reference: Callable[[str], Any],
    request: pytest.FixtureRequest,
) -> None:
    numbers, network = reference(numbers_name), request.getfixturevalue(name)
    with torch.no_grad():
        y_hat, y, x = (network.embed(images[name]) for name in ("y_hat", "y", "x"))
        similarity = network(images["y_hat"], images["y"])
    for key, embedding in (("y_hat", y_hat), ("y", y), ("x", x)):
        numbers.check(f"feats_{key}", embedding)
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    of_input, of_target = (y_hat * x).sum(dim=1), (y * x).sum(dim=1)
    assert similarity.shape == (2,)
    numbers.check("loss", (1 - similarity).mean())
    numbers.check("sim_improvement", (similarity - of_target).mean())
    numbers.check("logs", torch.stack([similarity, of_input, of_target], dim=1))
    with torch.no_grad():  # a batch of one keeps its axis
        torch.testing.assert_close(network.embed(images["y"][:1]), y[:1], rtol=1e-4, atol=1e-6)


def test_the_face_is_cut_out_and_pooled_as_published(
    arcface: ArcFaceSimilarity, images: dict[str, Tensor], reference: Callable[[str], Any], fill: ModuleType
) -> None:
    numbers = reference("id_loss")
    numbers.check("pooled_y_sub", arcface.faces(images["y"])[:, :, ::8, ::8])
    with torch.no_grad():
        numbers.check("embedding", arcface.network(fill.image_to_float(numbers["aligned"].numpy())))


def test_arcface_has_its_published_size(arcface: ArcFaceSimilarity) -> None:
    assert sum(parameter.numel() for parameter in arcface.parameters()) == ARCFACE_COUNT


def test_larger_faces_are_seen_at_256_pixels(arcface: ArcFaceSimilarity, images: dict[str, Tensor]) -> None:
    large = images["y"].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(arcface.faces(large), arcface.faces(images["y"]))


def test_gray_images_are_colour_images_with_equal_channels(
    arcface: ArcFaceSimilarity, moco: MocoSimilarity, images: dict[str, Tensor]
) -> None:
    gray = images["y"][:1, :1]
    with torch.no_grad():
        for network in (arcface, moco):
            assert torch.equal(network.embed(gray), network.embed(gray.repeat(1, 3, 1, 1)))


def test_moco_sees_any_shape(moco: MocoSimilarity, images: dict[str, Tensor]) -> None:
    with torch.no_grad():
        assert moco.embed(images["y"][:1, :, :192]).shape == (1, 2048)


@pytest.mark.parametrize("shape", [(1, 3, 192, 256), (1, 3, 128, 128), (3, 256, 256)])
def test_arcface_refuses_what_is_no_aligned_face(shape: tuple[int, ...], arcface: ArcFaceSimilarity) -> None:
    with pytest.raises(ShapeError, match=r"ArcFace wants aligned faces \[N, 3, 256, 256\]") as caught:
        arcface.embed(torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)


def test_gradients_reach_the_images_and_not_the_network(arcface: ArcFaceSimilarity, images: dict[str, Tensor]) -> None:
    arcface.train()  # the network stays as it is
    assert not any(module.training for module in arcface.network.modules())
    image = images["y_hat"][:1].clone().requires_grad_()
    arcface(image, images["y"][:1]).sum().backward()
    assert image.grad is not None and image.grad.isfinite().all() and image.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in arcface.parameters())


# --- files -------------------------------------------------------------------------------------------


def test_what_else_is_in_a_moco_file_is_left_alone(moco_state: dict[str, Tensor]) -> None:
    more = {
        "module.encoder_q.fc.0.weight": torch.zeros(2, 2),
        "module.encoder_q.bn1.num_batches_tracked": torch.tensor(5),
        "module.encoder_k.conv1.weight": torch.zeros(64, 3, 7, 7),
        "module.queue": torch.zeros(128, 4),
    }
    build_moco({"epoch": 800, "state_dict": moco_state | more, "optimizer": {}})


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ({"state_dict": {"encoder.body.0": 0, "decoder.input.input": 0}}, "the checkpoint of an encoder of images"),
        ({"state_dict": {"module.encoder_q.conv1.weight": 0}}, "a MoCo checkpoint"),
        (
            {"conv1.weight": 0, "layer1.0.conv1.weight": 0, "fc.weight": 0},
            "the weights of a ResNet trained to classify",
        ),
        ({"input_layer.0.weight": 0, "body.0.res_layer.0.weight": 0}, "a backbone without the head"),
        ({"g_ema": {}, "latent_avg": 0}, r"2 entries \(g_ema, latent_avg\)"),
        ([1, 2], "a single list"),
    ],
)
def test_arcface_refuses_other_files_by_what_they_are(document: object, found: str) -> None:
    with pytest.raises(CheckpointError, match=f"wanted ArcFace .*found {found}.*: put model_ir_se50.pth in its place"):
        build_arcface(document)


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ({"input_layer.0.weight": 0, "body.0": 0, "output_layer.3.weight": 0}, "a face recognition network"),
        (
            {"conv1.weight": 0, "layer1.0.conv1.weight": 0, "fc.weight": 0},
            "the weights of a ResNet trained to classify",
        ),
        (
            {"state_dict": {"conv1.weight": 0, "layer1.0": 0, "fc.weight": 0}},
            "the weights of a ResNet trained to classify",
        ),
        (torch.zeros(2), "a single Tensor"),
    ],
)
def test_moco_refuses_other_files_by_what_they_are(document: object, found: str) -> None:
    with pytest.raises(
        CheckpointError, match=f"wanted MoCo v2 .*found {found}.*: put moco_v2_800ep_pretrain.pth in its"
    ):
        build_moco(document)


def test_missing_and_other_tensors_are_named(arcface_state: dict[str, Tensor], moco_state: dict[str, Tensor]) -> None:
    damaged = {name: tensor for name, tensor in arcface_state.items() if name != "body.7.res_layer.1.weight"}
    with pytest.raises(CheckpointError, match=r"ArcFace.*1 tensors differ[^$]*trunk\.body\.7\.res_layer\.1\.weight"):
        build_arcface(damaged | {"body.7.res_layer.1.num_batches_tracked": torch.tensor(3)})
    with pytest.raises(CheckpointError, match=r"bn1\.weight +\[4\] +\[64\]"):
        build_moco({"state_dict": moco_state | {"module.encoder_q.bn1.weight": torch.zeros(4)}})
