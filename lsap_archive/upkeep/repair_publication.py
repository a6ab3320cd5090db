"""What mending a run and an evaluation share: bytes put back, what is lost retired, what is unpublished taken away."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Generic

from lsap_archive.errors import OBJECT_ERRORS, ArchiveNotFoundError
from lsap_archive.format.documents import sha256_of
from lsap_archive.format.layout import COPY_FOLDER, MANIFEST_NAME, RETIRED_FOLDER, copy_name
from lsap_archive.reading.checked import P
from lsap_archive.reading.retirement import Retirement
from lsap_archive.stores.store import Store
from lsap_archive.upkeep.repair_report import RepairReport
from lsap_archive.upkeep.verify_report import Problem
from lsap_archive.writing.publication import Publication

_RETIREMENT = re.compile(rf"{RETIRED_FOLDER}(?:/(\d+|run|twice))?\.json")
_LOST_REASON = "the reason is lost: its document was damaged"


def bytes_or_none(store: Store, key: str) -> bytes | None:
    """An object, or None if there is none."""
    try:
        return store.get(key)
    except ArchiveNotFoundError:
        return None


def is_readable(read: Callable[[], object]) -> bool:
    """Whether a reader finds no fault with what is there now; a missing object is one."""
    try:
        read()
    except OBJECT_ERRORS:
        return False
    return True


class PublicationRepair(ABC, Generic[P]):
    """Mends one run or evaluation, or says in a dry run what it would do.

    Attributes:
        publication: the run or evaluation.
        report: gets what was done.
    """

    def __init__(self, publication: Publication[P], report: RepairReport) -> None:
        self.publication = publication
        self.store = publication.store
        self.report = report

    def restore_manifest(self) -> bool:
        """Give it its damaged or lost manifest back, from the copy; False if there is no sound one."""
        key, name = self.publication.key(MANIFEST_NAME), self.publication.name
        data = bytes_or_none(self.store, self.publication.key(copy_name(MANIFEST_NAME)))
        if data is None or not is_readable(lambda: self.publication.manifest_type.decode(data, key, name)):
            return False
        self.restore(MANIFEST_NAME, data)
        return True

    def mend(self, problems: Sequence[Problem]) -> None:
        """Mend what has a sound manifest, or none yet."""
        damaged: dict[str, list[str]] = {}
        for problem in problems:
            damaged.setdefault(problem.key.removeprefix(f"{self.publication.prefix}/"), []).append(str(problem))
        for name in list(damaged):
            if match := _RETIREMENT.fullmatch(name):  # its presence counts, whatever it holds
                shard = int(match[1]) if (match[1] or "").isdigit() else None
                self.restore(name, Retirement(self.publication.name, shard, (_LOST_REASON,), "").encode())
                del damaged[name]
        if not damaged:
            return
        try:
            manifest = self.publication.manifest()
        except ArchiveNotFoundError:
            self.take_away(damaged.keys())
        else:
            self.mend_published(manifest, damaged)

    def mend_published(self, manifest: P, damaged: Mapping[str, Sequence[str]]) -> list[int | None]:
        """Restore what can be, retire the shards of what cannot.

        Args:
            manifest: of the run or evaluation.
            damaged: what is wrong with each damaged object, by its name.

        Returns:
            The retired shards, or None among them where it is all of it.
        """
        lost: dict[int | None, list[str]] = {}
        for name, sentences in damaged.items():
            data = self.wanted(manifest, name)
            if data is not None:
                self.restore(name, data)
            else:
                lost.setdefault(self.shard_of(manifest, name), []).extend(sentences)
        if None in lost:  # what all of it hangs on
            lost = {None: [sentence for of_shard in lost.values() for sentence in of_shard]}
        shards = sorted(lost, key=lambda shard: -1 if shard is None else shard)
        for shard in shards:
            self.retire(lost[shard], shard)
        return shards

    @abstractmethod
    def take_away(self, damaged: Set[str]) -> None:
        """Take away what is damaged of it while it is not published, so that who goes on makes it again."""

    def shard_of(self, manifest: P, name: str) -> int | None:
        """The shard that goes with an object; None if all does."""
        return None

    def wanted(self, manifest: P, name: str) -> bytes | None:
        """The bytes that should stand there, if they can still be had."""
        if name == copy_name(MANIFEST_NAME):
            return bytes_or_none(self.store, self.publication.key(MANIFEST_NAME))
        original = name.removeprefix(f"{COPY_FOLDER}/")
        for stored in (file for file in manifest.files if file.name == original):
            for data in self.candidates(manifest, original):
                if (len(data), sha256_of(data)) == (stored.size, stored.sha256):
                    return data
        return None

    def candidates(self, manifest: P, name: str) -> Iterator[bytes]:
        """What may be the bytes of an object: itself, or its copy."""
        yield from self.those_at(name, copy_name(name))

    def those_at(self, *names: str) -> Iterator[bytes]:
        """The objects of these names that are there."""
        for name in names:
            data = bytes_or_none(self.store, self.publication.key(name))
            if data is not None:
                yield data

    def restore(self, name: str, data: bytes) -> None:
        """Put the bytes that were written, in the place of damaged ones."""
        self.report.restored.append(self.publication.key(name))
        if not self.report.dry_run:
            self.store.put(self.publication.key(name), data)

    def remove(self, name: str) -> None:
        """Take away an object of what is not published."""
        self.report.removed.append(self.publication.key(name))
        if not self.report.dry_run and not self.publication.is_published:
            self.store.delete(self.publication.key(name))

    def retire(self, problems: Sequence[str], shard: int | None = None) -> None:
        """Hide all of it, or a shard, from readers."""
        prefix = self.publication.prefix
        self.report.retired.append(prefix if shard is None else f"shard {shard} of {prefix}")
        if not self.report.dry_run:
            self.publication.retire(problems, shard)
