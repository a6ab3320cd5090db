"""Which device networks are on, and in which memory layout."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def module_device(device: str) -> torch.device:
    """The device of a name; "auto" is the first GPU, or the CPU without one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def place(network: Network, device: torch.device) -> Network:
    """The network on a device in the memory layout that convolutions are fastest in."""
    return network.to(device).to(memory_format=torch.channels_last)
