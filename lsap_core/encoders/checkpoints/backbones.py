"""Trained weights that the backbone of a new encoder starts from."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lsap_core.encoders.backbone import RESNET_34_BLOCKS
from lsap_core.encoders.encoder import Encoder
from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints.canonical import check_tensors
from lsap_core.generators.checkpoints.networks import COUNTER

FILES = {"ir_se_50": "model_ir_se50.pth (ArcFace)", "resnet_34": "torchvision's resnet34 (.pth)"}
FIRST_LAYERS = {"ir_se_50": "input_layer.0.weight", "resnet_34": "conv1.weight"}
LAST_LAYERS = {"ir_se_50": "output_layer.", "resnet_34": "fc."}
SLOPE = "relu.weight"


def load_backbone(encoder: Encoder, state: Mapping[str, Tensor], *, seed: int = 0) -> tuple[str, ...]:
    """Start an encoder's backbone from a trained classifier: ArcFace's IR-SE-50, or torchvision's ResNet-34.

    The classifier's last layer is ignored; everything else has to fit. An iterative encoder (ReStyle) reads
    twice as many channels as the classifier: the first come from the file, the others are drawn from N(0, 1).

    Args:
        encoder: changed in place; its pyramid, heads and `w_avg` stay.
        state: the weights under their published names.
        seed: of the numbers that are drawn.

    Returns:
        Sentences about what the file did not hold.

    Raises:
        CheckpointError: the weights are another network's; missing and unexpected ones are named.
    """
    config = encoder.config
    return load_trunk(
        encoder.backbone,
        state,
        backbone=config.backbone,
        image_channels=config.image_channels,
        reads_pairs=config.is_iterative,
        seed=seed,
    )


def load_trunk(
    trunk: nn.Module,
    state: Mapping[str, Tensor],
    *,
    backbone: str,
    image_channels: int,
    reads_pairs: bool,
    seed: int = 0,
) -> tuple[str, ...]:
    """`load_backbone` for a backbone that stands alone, as that of a hypernetwork.

    Args:
        trunk: changed in place.
        state: the weights under their published names.
        backbone: its name.
        image_channels: of one image.
        reads_pairs: whether it reads an image and its reconstruction.
        seed: of the numbers that are drawn.

    Returns:
        Sentences about what the file did not hold.

    Raises:
        CheckpointError: the weights are another network's; missing and unexpected ones are named.
    """
    if backbone not in FILES:
        raise CheckpointError(f'a "{backbone}" backbone has no trained weights to start from: leave them out')
    first = FIRST_LAYERS[backbone]
    if not isinstance(state, Mapping) or not isinstance(state.get(first), Tensor):
        found = ", ".join(map(str, list(state)[:4])) if isinstance(state, Mapping) else type(state).__name__
        raise CheckpointError(f"a {backbone} backbone starts from {FILES[backbone]} with {first}; found {found}, ...")
    found_state = {
        _in_one_list(name): tensor
        for name, tensor in state.items()
        if not name.startswith(LAST_LAYERS[backbone]) and not name.endswith(COUNTER)
    }
    own = {name: tensor for name, tensor in trunk.state_dict().items() if not name.endswith(COUNTER)}
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items() if name != SLOPE}
    shapes[first] = (shapes[first][0], image_channels, *shapes[first][2:])
    check_tensors(found_state, shapes, what=f"the {backbone} backbone")
    notes = []
    with torch.no_grad():
        for name in shapes:
            target, source = own[name], found_state[name].detach()
            if name == first and reads_pairs:
                target[:, image_channels:] = _draw(target[:, image_channels:], seed)
                target = target[:, :image_channels]
                notes.append(f"{first}: the channels of the reconstruction were drawn from N(0, 1) with seed {seed}")
            target.copy_(source)
    if SLOPE in own:
        notes.append(f"{SLOPE}: the slope is not in the file; it starts as PyTorch's PReLU does")
    return tuple(notes)


def _draw(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)


def _in_one_list(name: str) -> str:
    """torchvision's `layer2.0.conv1.weight` -> `body.3.conv1.weight`; other names stay."""
    match = re.match(r"layer([1-4])\.(\d+)\.(.+)", name)
    if match is None:
        return name
    before = list(itertools.accumulate(RESNET_34_BLOCKS, initial=0))[int(match[1]) - 1]
    return f"body.{before + int(match[2])}.{match[3]}"
