"""Discriminators in the layout of NVlabs/stylegan2-ada-pytorch, which StyleFeatureEditor's files hold too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints.canonical import (
    check_kernels,
    check_tensors,
    config_from_sizes,
    first_size,
    largest_index,
)
from lsap_core.generators.checkpoints.nvlabs import modules_of, records_of
from lsap_core.generators.checkpoints.unpickling import PersistentNode, to_tensor
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.discriminator import STDDEV_GROUP, Discriminator
from lsap_core.generators.resample import fir_kernel

WHAT = "the discriminator"
KERNEL = "resample_filter"
LAST_LAYERS = {"final_conv": "conv", "final_linear": "fc", "logit": "out"}


def from_nvlabs_discriminator_document(document: object) -> Discriminator:
    """The network `D` of an NVlabs snapshot, whose source code stays unread.

    A bound on activations (`conv_clamp`) is left out: it keeps half precision from overflowing, and this network is one
    of float32.

    Args:
        document: what `read_records` found in the file.

    Raises:
        CheckpointError: the file holds no `D`, it is conditional or of another architecture, or the tensors do not fit.
    """
    node = document.get("D") if isinstance(document, Mapping) else None
    if not isinstance(node, PersistentNode):
        raise CheckpointError("wanted a snapshot with the network D; found none: name one that was saved in training")
    options = node.state.get("_init_kwargs")
    options = options if isinstance(options, Mapping) else {}
    epilogue = options.get("epilogue_kwargs")
    epilogue = epilogue if isinstance(epilogue, Mapping) else {}
    for name, value, supported in (
        ("c_dim", options.get("c_dim", 0), 0),
        ("architecture", options.get("architecture", "resnet"), "resnet"),
        ("mbstd_group_size", epilogue.get("mbstd_group_size", STDDEV_GROUP), STDDEV_GROUP),
        ("mbstd_num_channels", epilogue.get("mbstd_num_channels", 1), 1),
    ):
        if value != supported:
            raise CheckpointError(f"{WHAT} has {name} = {str(value)[:60]}; only {supported!r} is supported")
    records = records_of(dict(modules_of(node, "D")), "D")
    return from_nvlabs_discriminator({name: to_tensor(record) for name, record in records})


def from_nvlabs_discriminator(state: Mapping[str, Any]) -> Discriminator:
    """The residual discriminator of parameters and buffers by dotted name: on the CPU, in eval mode, not frozen.

    Numbers pass unchanged, without any flip; every size is read from the shapes. FIR kernels may be left out.

    Args:
        state: `b1024.fromrgb.weight`, ..., `b4.out.bias`.

    Raises:
        CheckpointError: another architecture, or a tensor that is missing, unexpected, of another shape, or not a
            number somewhere.
    """
    config = _read_config(state)
    with torch.device("meta"):
        network = Discriminator(config)
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    expected = {nvlabs_discriminator_name(name, config.resolution): shape for name, shape in own.items()}
    kernels = {str(name): value for name, value in state.items() if str(name).endswith(KERNEL)}
    check_tensors({name: value for name, value in state.items() if name not in kernels}, expected, what=WHAT)
    check_kernels(kernels, gain=1.0, what=WHAT)
    tensors = {}
    for name in own:
        published = nvlabs_discriminator_name(name, config.resolution)
        tensors[name] = state[published].detach().to(device="cpu", dtype=torch.float32, copy=True)
        if not bool(torch.isfinite(torch.stack(torch.aminmax(tensors[name]))).all()):  # one pass, without a copy
            raise CheckpointError(f"{WHAT}: {published} holds values that are not finite; the network is damaged")
    network.load_state_dict(tensors, assign=True)
    for block in network.blocks:
        block.register_buffer("kernel", fir_kernel(), persistent=False)  # it is no part of a state
    return network.requires_grad_(True).eval()


def to_nvlabs_discriminator(discriminator: Discriminator, resolution: int) -> dict[str, Tensor]:
    """The parameters of a discriminator for images of a side, under NVlabs' names."""
    return {
        nvlabs_discriminator_name(name, resolution): tensor.detach().clone()
        for name, tensor in discriminator.state_dict().items()
    }


def nvlabs_discriminator_name(name: str, resolution: int) -> str:
    """NVlabs' name of a tensor of ours.

    Example:
        >>> nvlabs_discriminator_name("blocks.1.conv2.weight", 1024)
        'b512.conv1.weight'
    """
    first, _, rest = name.partition(".")
    if first == "from_rgb":
        return f"b{resolution}.fromrgb.{rest}"
    if match := re.fullmatch(r"blocks\.(\d+)\.(conv1|conv2|skip)\.(.+)", name):
        layer = {"conv1": "conv0", "conv2": "conv1", "skip": "skip"}[match[2]]
        return f"b{resolution >> int(match[1])}.{layer}.{match[3]}"
    return f"b4.{LAST_LAYERS[first]}.{rest}"


def _read_config(state: Mapping[str, Any]) -> GeneratorConfig:
    """The sizes of the generator whose channel table the discriminator has."""
    resolution = largest_index(r"b(\d+)\.", list(state), default=0)
    sides = [8 << power for power in range(max(resolution.bit_length() - 3, 0))]
    return config_from_sizes(
        WHAT,
        resolution=resolution,
        channels=(
            first_size(state, ("b4.conv.weight", 0)),
            *(first_size(state, (f"b{side}.conv0.weight", 0)) for side in sides),
        ),
        image_channels=first_size(state, (f"b{resolution}.fromrgb.weight", 1)),
    )
