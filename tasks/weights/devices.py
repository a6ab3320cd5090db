"""Which device networks are on, in which memory layout, and what it can hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import psutil
import torch
from torch import nn

from domains.yaml_values import shown
from lsap_core.convolution import fastest_layout
from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from tasks.machine_memory import LARGEST_MEMORY, free_memory_of_machine, in_words, memory_of_machine
from tasks.settings import Settings

Network = TypeVar("Network", bound=nn.Module)

FLOAT_BYTES = 4
KEPT_TENSORS, MADE_TENSORS = 6, 4
"""Of the size of what a convolution gives: 10 and 6 were measured with the digits on a CPU, the rest is to spare."""
MOST_TOGETHER, TOGETHER_BYTES = 64, 2 * 2**30  # images that are made at once, and what they may take
_MANY_DEVICES = 64  # of one kind in one machine, whatever it is


def _num_mps() -> int:
    return int(torch.backends.mps.is_available())


def num_gpus() -> int:
    """GPUs of this machine that CUDA has."""
    return torch.cuda.device_count()


_KINDS: dict[str, Callable[[], int]] = {  # how many of each this machine has
    "cpu": lambda: 1,
    "cuda": num_gpus,
    "mps": _num_mps,
    "xpu": torch.xpu.device_count,
}


def module_device(device: str) -> torch.device:
    """The device of a name; "auto" is the first GPU, or the CPU without one.

    Raises:
        ConfigError: this machine has none of that name.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device, is_here=True)
    return torch.device(device)


def probe_device(device: str) -> torch.device:
    """The device to time a few steps on: that of the name if this machine has it, else what it has.

    Raises:
        ConfigError: work is done here, and this machine has none of that name.
    """
    try:
        return module_device(device)
    except ConfigError:
        if Settings.from_environment().is_alone:
            raise
        return module_device("auto")


def check_device(device: str, is_here: bool) -> None:
    """Make sure that networks can be on a device.

    Args:
        device: "auto" or a name that PyTorch knows.
        is_here: whether this machine has to have it; else its name has to be that of some device.

    Raises:
        ConfigError: it is none.
    """
    if device == "auto":
        return
    try:
        found = torch.device(device)
        kind, index = found.type, found.index or 0
    except RuntimeError:
        kind, index = "", 0
    if kind not in _KINDS or index >= (_KINDS[kind]() if is_here else _MANY_DEVICES):
        here = [f"{name}:{at}" for name, number in _KINDS.items() if name != "cpu" for at in range(number())]
        raise ConfigError(
            f"{shown(device)} is no device{' of this machine' if kind in _KINDS else ''}; wanted auto, cpu"
            f"{''.join(f', {name}' for name in here)}" + ("" if is_here else ", cuda or cuda:0")
        )


def memory_of(device: str) -> int:
    """Bytes that a device of this machine has in all, used or free; of the CPU as many as its container may use.

    Raises:
        ConfigError: this machine has none of that name.
    """
    found = module_device(device)
    if found.type == "cuda":
        return int(torch.cuda.get_device_properties(found).total_memory)
    return memory_of_machine()


def free_memory(device: torch.device) -> int:
    """Bytes of a device of this machine that nobody uses; of the CPU as many as its container may still take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory_of_machine()


def memory_held(device: torch.device) -> int:
    """Bytes of a device's memory that this process has."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    return int(psutil.Process().memory_info().rss)


def bytes_of_image(config: GeneratorConfig, *, goes_back: bool) -> int:
    """What an image takes at the very least while a generator makes it.

    Args:
        config: of the generator.
        goes_back: whether every convolution's values are kept for gradients; else those of the largest one count.
    """
    return FLOAT_BYTES * (KEPT_TENSORS * sum(config.conv_sizes) if goes_back else MADE_TENSORS * max(config.conv_sizes))


def images_together(config: GeneratorConfig) -> int:
    """Images that are made at once: as many as take 2 GiB, at most 64."""
    return max(1, min(MOST_TOGETHER, TOGETHER_BYTES // bytes_of_image(config, goes_back=False)))


def check_room(field: str, number: int, bytes_each: int, device: str) -> None:
    """Make sure that as much can be held at once as is asked for, by what it takes at the very least.

    Args:
        field: what asks for it.
        number: of images or codes that are held together.
        bytes_each: what each takes at least.
        device: which memory; where work is done on a cluster only what no machine has is refused.

    Raises:
        ConfigError: it cannot.
    """
    is_alone = Settings.from_environment().is_alone
    has = memory_of(device) if is_alone else LARGEST_MEMORY
    if number * bytes_each > has:
        place = f"{module_device(device)} of this machine" if is_alone else "no machine"
        wants = in_words(number * bytes_each)
        raise ConfigError(
            f"{field}: {number} together take {wants} of memory at least, and {place} has {in_words(has)}; "
            f"wanted at most {has // bytes_each}, and much less to leave room for the rest"
        )


def place(network: Network, device: torch.device) -> Network:
    """The network on a device in the memory layout that its convolutions are fastest in."""
    return network.to(device).to(memory_format=fastest_layout(network, device))
