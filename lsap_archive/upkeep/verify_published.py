"""Do the lists for other readers say what is published?"""

from __future__ import annotations

from lsap_archive.errors import OBJECT_ERRORS
from lsap_archive.format.layout import PUBLISHED_PREFIX
from lsap_archive.stores.store import Store
from lsap_archive.upkeep.verify_report import VerifyReport
from lsap_archive.writing.published_lists import stale_lists


def verify_published(store: Store, report: VerifyReport) -> None:
    """Everything below `published/`; not where other damage was found, which decides what there should be.

    Archives that were begun before there were lists have none; who goes by them sees at once that they are not there.
    """
    there = set(store.keys(PUBLISHED_PREFIX))
    report.count("objects", len(there))
    if not report.is_sound:
        return
    try:
        behind = stale_lists(store, anew=True)
    except OBJECT_ERRORS as error:
        report.note(PUBLISHED_PREFIX, str(error), "what can be listed")
        return
    if behind and not there:
        report.information.append(
            f"nothing lies below {PUBLISHED_PREFIX}/, by which other readers go: the next command that publishes "
            "something writes it, or `lsap archive repair`"
        )
        return
    for key in behind:
        found = "another content, or damage" if key in there else "nothing"
        report.note(key, found, "what is published now; while a command publishes, that may take a moment")
