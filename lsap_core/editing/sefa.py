"""Closed-form factorization of a generator's weights (SeFa, Shen and Zhou 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lsap_core.editing.components import Components
from lsap_core.editing.ganspace import with_positive_peaks
from lsap_core.errors import ConfigError
from lsap_core.generators.generator import Generator

PUBLISHED_CONVS = range(2, 6)
NORM_FLOOR = 1e-12


def factorize(
    generator: Generator,
    convs: Sequence[int] | None = None,
    *,
    normalize: bool = True,
    num_components: int | None = None,
    digest: str | None = None,
) -> Components:
    """The directions of W to which the styles of some convolutions answer most (SeFa, eq. 8).

    Eigenvectors of A^T A, largest eigenvalue first, where the rows of A are those of the convolutions' affine
    matrices. ToRGB layers have no part in it. The components drive the rows of W+ that these convolutions read.

    Args:
        generator: its affine layers are used.
        convs: which style convolutions; None for 2 to 5, as published, as far as the generator has them.
        normalize: rows of A scaled to length 1, as SeFa and e4e do; without, the largest weights count most.
        num_components: how many to keep; all by default.
        digest: of the generator, to keep with the components.

    Raises:
        ConfigError: no such convolution, or too many components.
    """
    sizes = generator.config
    if convs is None:
        convs = [conv for conv in PUBLISHED_CONVS if conv < sizes.num_convs]
    chosen = tuple(sorted(set(convs)))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < sizes.num_convs:
        raise ConfigError(f"convolutions {list(convs)} were asked for; wanted some of 0 to {sizes.num_convs - 1}")
    count = sizes.w_dim if num_components is None else num_components
    if not 1 <= count <= sizes.w_dim:
        raise ConfigError(f"{count} components were asked for; wanted 1 to {sizes.w_dim}, the width of W")
    layers = generator.synthesis.conv_layers()
    rows = torch.cat([layers[conv].affine.weight.detach().cpu().double() for conv in chosen])  # [channels, D]
    if normalize:
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(NORM_FLOOR)
    eigenvalues, vectors = torch.linalg.eigh(rows.T @ rows)  # symmetric, ascending
    return Components(
        "sefa",
        with_positive_peaks(vectors.flip(1)[:, :count].T).float(),
        eigenvalues=eigenvalues.flip(0)[:count].clamp_min(0).float(),
        layers=chosen,
        generator=digest,
        provenance={"convs": list(chosen), "normalize": normalize},
    )
