"""What is looked at of runs and of evaluations alike: manifest, copies, number, what retires, what nobody names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lsap_archive.errors import OBJECT_ERRORS, ArchiveNotFoundError, CorruptArchiveError
from lsap_archive.format.documents import decode_document
from lsap_archive.format.layout import (
    COMMIT_FOLDER,
    COPY_FOLDER,
    MANIFEST_NAME,
    PLAN_NAME,
    RETIRED_FOLDER,
    STAGING_FOLDER,
    TWICE_NAME,
    copy_name,
    retired_name,
    sequence_key,
)
from lsap_archive.format.manifest import Published
from lsap_archive.format.sequence import sequence_document
from lsap_archive.reading.checked import P, is_vital
from lsap_archive.reading.lost import was_published
from lsap_archive.reading.retirement import Retirement, is_retired
from lsap_archive.upkeep.verify_objects import checked_document, checked_object
from lsap_archive.upkeep.verify_report import VerifyReport
from lsap_archive.writing.publication import Publication

_OWN = (*(f"{folder}/" for folder in (STAGING_FOLDER, COMMIT_FOLDER, RETIRED_FOLDER, COPY_FOLDER)), MANIFEST_NAME)


def verify_retired(publication: Publication[P], report: VerifyReport) -> bool:
    """Whether all of it is retired; then only the document that says why is looked at."""
    if not is_retired(publication.store, publication.kind, publication.name):
        return False
    report.count(f"retired_{publication.kind}s")
    verify_retirements(publication, report)
    return True


def verify_retirements(publication: Publication[P], report: VerifyReport) -> None:
    """The documents that say why it, or shards of it, are retired: damaged ones retire all the same."""
    store, whole = publication.store, publication.key(retired_name(publication.kind))
    folder = publication.key(RETIRED_FOLDER)  # a run has one, as single shards may be retired
    for key in store.keys(folder) if whole.startswith(f"{folder}/") else [whole]:
        try:
            why = Retirement.decode(store.get(key), key)
        except ArchiveNotFoundError:
            continue
        except OBJECT_ERRORS as error:
            report.note(key, str(error), "why this is retired")
            continue
        reasons = "; ".join(why.problems)
        if key == publication.key(TWICE_NAME):
            report.information.append(f"{publication.prefix}: {reasons}")
            continue
        what = publication.prefix if key == whole else f"shard {why.shard} of {publication.prefix}"
        report.information.append(f"{what} is retired: {reasons}")


def verify_manifest(
    publication: Publication[P], verify_unfinished: Callable[[Publication[P], VerifyReport], None], report: VerifyReport
) -> P | None:
    """The manifest of what is published.

    Args:
        publication: what is not retired.
        verify_unfinished: looks at what is not published yet.
        report: gets the problem where the manifest is damaged or lost.

    Raises:
        StoreUnavailableError: the store does not answer or refuses.
    """
    key = publication.key(MANIFEST_NAME)
    try:
        return publication.manifest()
    except ArchiveNotFoundError:
        if told := was_published(publication.store, publication.kind, publication.name):
            report.note(key, "nothing", f"the manifest that it was published with: {told}")
        else:
            verify_unfinished(publication, report)
    except OBJECT_ERRORS as error:
        is_damage = isinstance(error, CorruptArchiveError)  # else of a newer version, or by a hostile hand
        report.note(key, str(error), f"the {publication.kind}'s manifest", is_damage=is_damage)
    return None


def checked_plan(publication: Publication[P], report: VerifyReport) -> dict[str, Any] | None:
    """The plan of what is under way; None if it is missing or damaged, and the problem is noted."""
    key = publication.key(PLAN_NAME)
    try:
        return publication.read_plan()
    except ArchiveNotFoundError:
        report.note(key, "nothing", f"the {publication.kind}'s plan")
    except OBJECT_ERRORS as error:
        report.note(key, str(error), f"the {publication.kind}'s plan")
    return None


def verify_records(publication: Publication[P], manifest: Published, report: VerifyReport) -> None:
    """What is there beside the objects of a manifest: its number, the copies for repair, and what it does not name."""
    store, files = publication.store, {file.name: file for file in manifest.files}
    if manifest.sequence:
        key = sequence_key(manifest.sequence)
        document = checked_document(store, key, f"the number of {publication}", report)
        if document is not None and document != decode_document(sequence_document(manifest.name), key):
            report.note(key, f"the number of {document.get('of')}", f"that of {publication}")
    there = set(store.keys(publication.key(COPY_FOLDER)))
    vital = [name for name in files if is_vital(name)]
    missing = [name for name in (*vital, MANIFEST_NAME) if publication.key(copy_name(name)) not in there]
    for name in vital:
        if name not in missing:
            checked_object(store, publication.key(copy_name(name)), files[name], report)
    key = publication.key(copy_name(MANIFEST_NAME))
    if MANIFEST_NAME not in missing and store.get(key) != store.get(publication.key(MANIFEST_NAME)):
        report.note(key, "another document", "a copy of the manifest")
    if missing:
        report.information.append(
            f"{publication.prefix} has no copy of {len(missing)} objects that all of it hangs on: "
            "`lsap archive repair` makes them"
        )
    for key in store.keys(publication.prefix):
        name = key.removeprefix(f"{publication.prefix}/")
        if name not in files and not name.startswith(_OWN):
            report.information.append(f"{key} is named by no manifest")
