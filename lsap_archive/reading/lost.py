"""What was published and is not there any more: without a manifest it would look as if it had never been.

A manifest is put last, so what lies in a folder without one is under way, and no reader sees it. But what follows a
publication tells that there was one: copies for repair, staged objects that are gone, and the number that was given.
A reader that showed less in silence would be wrong; it says what is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lsap_archive.errors import HOW_TO_REPAIR, OBJECT_ERRORS, CorruptArchiveError
from lsap_archive.format.documents import decode_document
from lsap_archive.format.layout import (
    COMMIT_FOLDER,
    COPY_FOLDER,
    EVALUATIONS_PREFIX,
    MANIFEST_NAME,
    PLAN_NAME,
    RUNS_PREFIX,
    SEQUENCE_PREFIX,
    STAGING_FOLDER,
    prefix_of,
    sequence_key,
)
from lsap_archive.reading.retirement import is_retired
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store


def was_published(store: Store, kind: str, name: str) -> str | None:
    """What tells that a run or evaluation without a manifest had one; None if nothing does, or if it is retired.

    Looks at the manifest again at the end: it may have been published while this was asked.

    Args:
        store: the archive.
        kind: "run" or "evaluation".
        name: its id.
    """
    prefix = prefix_of(kind, name)
    told = None
    if store.keys(f"{prefix}/{COPY_FOLDER}"):
        told = f"copies that are made afterwards lie below {prefix}/{COPY_FOLDER}"
    elif kind == "run" and _is_promoted(store, prefix):
        told = "every shard is committed and nothing is staged any more"
    if told is None or is_retired(store, kind, name) or store.exists(f"{prefix}/{MANIFEST_NAME}"):
        return None
    return told


def _is_promoted(store: Store, prefix: str) -> bool:
    """Whether every shard of a run is committed, and nothing is staged as it is until all is published."""
    try:
        plan = decode_document(store.get(f"{prefix}/{PLAN_NAME}"), prefix)
        own = plan.get("shards")
        wanted = plan["num_shards"] if own is None else len(own)
        return len(store.keys(f"{prefix}/{COMMIT_FOLDER}")) >= wanted and not store.keys(f"{prefix}/{STAGING_FOLDER}")
    except (*OBJECT_ERRORS, KeyError, TypeError):
        return False  # of a start that was cut short, or damaged: verify looks at it


def vanished(store: Store, numbers: Collection[int] = ()) -> dict[int, str]:
    """Runs and evaluations that got a number to be published by, and of which no object is there, by that number.

    Args:
        store: the archive.
        numbers: those that need not be looked at, because a manifest has them.
    """
    named = {key: key.rsplit("/", 1)[1].removesuffix(".json") for key in store.keys(SEQUENCE_PREFIX)}
    unknown = [(key, int(name)) for key, name in named.items() if name.isdecimal() and int(name) not in numbers]
    owners = dict(in_threads(lambda one: (one[1], _owner(store, one[0])), unknown))
    # Listed after the numbers: whoever has a number has a folder.
    there = {*store.folders(RUNS_PREFIX), *store.folders(EVALUATIONS_PREFIX)} if owners else set()
    return {number: of for number, of in owners.items() if of is not None and of not in there}


def _owner(store: Store, key: str) -> str | None:
    """Who got a number; None if that cannot be read, which `verify` tells."""
    try:
        of = decode_document(store.get(key), key).get("of")
    except OBJECT_ERRORS:
        return None
    return of if isinstance(of, str) else None


def refuse_lost(store: Store, kind: str, names: Iterable[str]) -> None:
    """Make sure that these, of which there is no manifest, never had one.

    Args:
        store: the archive.
        kind: "run" or "evaluation".
        names: their ids.

    Raises:
        CorruptArchiveError: one was published; the message names it and what tells.
    """
    asked = sorted(names)
    for name, told in zip(asked, in_threads(lambda name: was_published(store, kind, name), asked), strict=True):
        if told is not None:
            raise CorruptArchiveError(
                f"{store.url}/{prefix_of(kind, name)}/{MANIFEST_NAME} is missing, and {kind} {name} was published: "
                f"{told}; {HOW_TO_REPAIR}"
            )


def refuse_vanished(store: Store, numbers: Collection[int]) -> None:
    """Make sure that of whatever was given a number something is there.

    Args:
        store: the archive.
        numbers: those that manifests have.

    Raises:
        CorruptArchiveError: a run or evaluation is gone with its folder; the message names it.
    """
    for number, of in vanished(store, numbers).items():
        raise CorruptArchiveError(
            f"{store.url} has nothing of {of}, a run or evaluation that got number {number} ({sequence_key(number)}) "
            f"when it was published: {HOW_TO_REPAIR}"
        )
