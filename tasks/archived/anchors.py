"""What an archive keeps of its generator: the anchor, estimated once and kept by digest, and the style layers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsap_archive import ArchiveWriter, CorruptArchiveError, StyleLayers, read_anchor
from lsap_core.alignment.anchor import EVALUATION_SAMPLES, Anchor, anchor_digest, estimate_anchor
from lsap_core.generators.generator import Generator
from lsap_core.spaces.styles import StyleSet
from tasks.array_files import ArrayFileError, read_npz
from tasks.remembered import remembered_arrays


@dataclass(frozen=True)
class AnchorOptions:
    """What decides an anchor besides the generator's weights.

    Attributes:
        num_samples: codes to sample; LSAP evaluates with 50,000.
        style_set: "authors", "conv" or "full".
        seed: of the sampled codes.
    """

    num_samples: int = EVALUATION_SAMPLES
    style_set: StyleSet = "authors"
    seed: int = 0

    def digest(self, generator_digest: str) -> str:
        """The anchor's name."""
        return anchor_digest(generator_digest, num_samples=self.num_samples, style_set=self.style_set, seed=self.seed)


def keep_style_layers(archive: ArchiveWriter, generator: Generator, generator_digest: str) -> None:
    """Keep the layers that make style vectors in the archive, once, so that its readers know S^N without torch."""
    if archive.has_style_layers():
        return
    synthesis = generator.synthesis
    affines = [layer.affine for layer in (*synthesis.conv_layers(), synthesis.to_rgb_layers()[-1])]  # set "authors"
    archive.put_style_layers(
        StyleLayers(
            generator_digest,
            tuple((affine.weight * affine.weight_gain).detach().float().cpu().numpy() for affine in affines),
            tuple((affine.bias * affine.lr_multiplier).detach().float().cpu().numpy() for affine in affines),
        )
    )


def keep_anchor(archive: ArchiveWriter, generator: Generator, generator_digest: str, options: AnchorOptions) -> str:
    """The digest of the anchor, which is in the archive afterwards; estimated only when it was not.

    So are the style layers of the generator.
    """
    keep_style_layers(archive, generator, generator_digest)
    digest = options.digest(generator_digest)
    if not archive.has_anchor(digest):
        anchor = estimate_anchor(
            generator, num_samples=options.num_samples, style_set=options.style_set, seed=options.seed
        )
        buffer = io.BytesIO()
        arrays: dict[str, Any] = anchor.to_arrays()
        np.savez(buffer, **arrays)
        archive.put_anchor(digest, buffer.getvalue())
    return digest


def open_anchor(archive_url: str, digest: str) -> Anchor:
    """A kept anchor of an archive.

    Raises:
        ArchiveNotFoundError: the archive does not have it.
        CorruptArchiveError: it is altered.
    """
    try:
        return Anchor.from_arrays(read_npz(read_anchor(archive_url, digest)))
    except (ArrayFileError, KeyError, ValueError) as error:
        raise CorruptArchiveError(
            f"the anchor {digest} of {archive_url} cannot be read ({error}): run `lsap archive repair`, "
            "and the next inversion estimates it again"
        ) from error


def remembered_anchor(generator: Generator, generator_digest: str, options: AnchorOptions) -> Anchor:
    """The anchor where there is no archive: estimated once on this machine, and kept in its folder of caches."""

    def estimated() -> dict[str, Any]:
        return estimate_anchor(
            generator, num_samples=options.num_samples, style_set=options.style_set, seed=options.seed
        ).to_arrays()

    return Anchor.from_arrays(dict(remembered_arrays("anchors", options.digest(generator_digest), estimated)))
