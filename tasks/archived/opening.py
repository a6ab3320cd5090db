"""The archive of a generator, opened for writing."""

from __future__ import annotations

from lsap_archive import ArchiveWriter, Geometry
from lsap_core.generators.config import GeneratorConfig
from tasks.weights.generators import LoadedGenerator


def geometry_of(config: GeneratorConfig) -> Geometry:
    """Sizes of a generator's inputs, as its archive has them."""
    return Geometry(config.num_ws, config.w_dim, config.noise_sizes)


def open_writer(url: str, loaded: LoadedGenerator) -> ArchiveWriter:
    """The archive of a generator, made if there is none."""
    return ArchiveWriter.open(
        url,
        generator_digest=loaded.digest,
        generator_name=f"stylegan2-{loaded.config.shown_size.replace(' ', '')}",
        geometry=geometry_of(loaded.config),
    )
