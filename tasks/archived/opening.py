"""The archive of a generator, opened for writing."""

from __future__ import annotations

from lsap_archive import ArchiveWriter, Geometry
from tasks.weights.generators import LoadedGenerator


def open_writer(url: str, loaded: LoadedGenerator) -> ArchiveWriter:
    """The archive of a generator, made if there is none."""
    config = loaded.config
    return ArchiveWriter.open(
        url,
        generator_digest=loaded.digest,
        generator_name=f"stylegan2-{config.resolution}",
        geometry=Geometry(config.num_ws, config.w_dim, config.noise_sides),
    )
