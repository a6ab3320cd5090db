"""The images of a source with their digests, some thousand at a time; what is known is not read again."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tasks.inversion.known_images import Fact, KnownImages
from tasks.sources.items import SourceItem
from tasks.sources.shards import place_in_shard
from tasks.sources.source import PlannedImage, Source, plan_items

LISTED_TOGETHER = 10_000
UNREADABLE = "unreadable:"
"""The digest of an image that could not be read begins so; a reason follows."""


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image of the source, and what the archive has of it.

    Attributes:
        image: as it enters a plan.
        facts: what runs of the archive say of this id, the newest last.
        was_read: whether its bytes had to be read for the digest.
    """

    image: PlannedImage
    facts: Sequence[Fact]
    was_read: bool


def list_images(source: Source, items: Iterable[SourceItem], known: KnownImages) -> Iterator[list[ListedImage]]:
    """The images in the order of the listing, in lists of at most `LISTED_TOGETHER`.

    An image whose id, address and version a run of the archive has, whichever its method, has the digest that it had
    then. All others are read.

    Args:
        source: to read from.
        items: its items.
        known: what the archive has.

    Raises:
        SourceError: the listing breaks off, or the storage does not answer.
    """
    remaining = iter(items)
    while listed := list(itertools.islice(remaining, LISTED_TOGETHER)):
        facts = [known.of(item.image_id) for item in listed]
        digests = [_digest_of(item, of) for item, of in zip(listed, facts, strict=True)]
        unknown = [item for item, digest in zip(listed, digests, strict=True) if digest is None]
        read = _read_in_place(source, unknown)
        yield [
            ListedImage(read[item.image_id], of, True)
            if digest is None
            else ListedImage(PlannedImage(item.image_id, item.uri, digest, version=item.version), of, False)
            for item, of, digest in zip(listed, facts, digests, strict=True)
        ]


def _read_in_place(source: Source, items: Sequence[SourceItem]) -> dict[str, PlannedImage]:
    """Images by id, read in the order in which they lie where several lie in one file: shards are gone through once."""
    in_place = sorted(items, key=lambda item: place_in_shard(item.uri))
    return {image.image_id: image for image in plan_items(source, in_place)} if in_place else {}


def _digest_of(item: SourceItem, facts: Iterable[Fact]) -> str | None:
    """The digest of an image that lies unchanged where it lay; what was not read, and may be by now, is read again."""
    if item.version is None or item.problem is not None:
        return None
    for fact in facts:
        is_same = fact.version == item.version and fact.uri == item.uri
        if is_same and fact.is_settled and not fact.digest.startswith(UNREADABLE):
            return fact.digest
    return None
