"""The style layers of an archive's generator, as the archive keeps them."""

from __future__ import annotations

from collections.abc import Mapping

from lsap_archive.errors import HOW_TO_REPAIR, ArchiveMismatchError, ArchiveNotFoundError, CorruptArchiveError
from lsap_archive.format.layout import STYLES_PREFIX, Geometry, styles_key
from lsap_archive.format.style_layers import StyleLayers, style_layers_digest
from lsap_archive.reading.checked import describe
from lsap_archive.stores.store import Store


def read_style_layers(store: Store, generator: Mapping[str, str], geometry: Geometry) -> tuple[str, StyleLayers]:
    """The layers of the archive's generator, and the name that they are kept under.

    Args:
        store: the archive.
        generator: as its header says.
        geometry: sizes of its codes.

    Raises:
        ArchiveNotFoundError: the archive keeps none of this generator.
        CorruptArchiveError: they are damaged, or do not fit the codes.
    """
    for key in store.keys(STYLES_PREFIX):
        layers = read_style_file(store, key, geometry)
        if layers.generator_digest == generator["digest"]:
            return key.rsplit("/", 1)[1].removesuffix(".npz"), layers
    raise ArchiveNotFoundError(
        f"{store.url} keeps no style layers of its generator, without which there is no S^N: any `lsap run invert` "
        "into this archive adds them, also one that finds nothing left to do; W and W+ need none"
    )


def read_style_file(store: Store, key: str, geometry: Geometry | None) -> StyleLayers:
    """A file of style layers, which has to be what its name says and fit the codes, where their sizes are known.

    Raises:
        ArchiveNotFoundError: it is not there.
        CorruptArchiveError: it is damaged, or does not fit.
    """
    data, where = store.get(key), store.join(key)
    if styles_key(style_layers_digest(data)) != key:
        found = describe((len(data), style_layers_digest(data)))
        raise CorruptArchiveError(f"{where} is {found}, its name says other content: {HOW_TO_REPAIR}")
    layers = StyleLayers.decode(data, where)
    try:
        if geometry is not None:
            layers.check_fits(geometry)
    except ArchiveMismatchError as error:
        raise CorruptArchiveError(
            f"{where} does not fit the codes of this archive ({error}): {HOW_TO_REPAIR}"
        ) from error
    return layers
