"""How exactly a step multiplies: float32, TF32 on GPUs that have it, or bfloat16 for convolutions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]


@contextlib.contextmanager
def tensor_cores(precision: Precision) -> Iterator[None]:
    """Let CUDA round the factors of float32 products to TF32 (10 bits of mantissa) for "tf32", and else not.

    Torch's own default differs between convolutions and matrix products; what was set before is set again afterwards.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def convolutions(precision: Precision, device: str) -> contextlib.AbstractContextManager[object]:
    """Compute convolutions on a device ("cpu", "cuda") in bfloat16 for "bfloat16", and else as they are."""
    return torch.autocast(device, torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()
