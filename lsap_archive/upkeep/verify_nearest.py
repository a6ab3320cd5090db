"""What nearest codes are found with: the style layers of the generator, and indexes; both can be made again."""

from __future__ import annotations

from lsap_archive.errors import OBJECT_ERRORS
from lsap_archive.format.code_index import CodeIndex
from lsap_archive.format.layout import INDEXES_PREFIX, STYLES_PREFIX, Geometry
from lsap_archive.reading.style_layers import read_style_file
from lsap_archive.stores.store import Store
from lsap_archive.upkeep.verify_report import VerifyReport


def verify_nearest(store: Store, geometry: Geometry | None, report: VerifyReport) -> None:
    """Style layers are those of their name and fit the codes; indexes hold what they say."""
    for key in store.keys(STYLES_PREFIX):
        report.count("objects")
        try:
            read_style_file(store, key, geometry)
        except OBJECT_ERRORS as error:
            report.note(key, str(error), "the style layers that it is named by")
    for key in store.keys(INDEXES_PREFIX):
        report.count("objects")
        try:
            CodeIndex.decode(store.get(key), key.rsplit("/", 1)[1].removesuffix(".npz"), store.join(key))
        except OBJECT_ERRORS as error:
            report.note(key, str(error), "an index of codes")
