"""What runs and evaluations share: planned once, published once by a manifest put last, copied for repair, retired.

Every step may be killed and repeated, by anybody, at any time: plan, manifest, copies and what retires are create-only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic

from lsap_archive.errors import (
    HOW_TO_REPAIR,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    CorruptArchiveError,
    IncompleteRunError,
)
from lsap_archive.format.documents import decode_document, encode_document, utc_now
from lsap_archive.format.layout import (
    COPY_FOLDER,
    FORMAT_VERSION,
    MANIFEST_NAME,
    PLAN_NAME,
    TWICE_NAME,
    copy_name,
    prefix_of,
    retired_name,
)
from lsap_archive.format.manifest import check_version
from lsap_archive.format.plan import first_difference
from lsap_archive.reading.checked import P, is_vital, read_checked, read_manifest
from lsap_archive.reading.retirement import Retirement, is_retired
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store


class Publication(Generic[P]):
    """A run or an evaluation, as a folder of the archive.

    Attributes:
        store: the archive's objects.
        manifest_type: `Manifest` of a run, or `EvaluationInfo`.
        kind: "run" or "evaluation".
        name: its id.
        prefix: its folder.
    """

    def __init__(self, store: Store, manifest_type: type[P], name: str) -> None:
        self.store = store
        self.manifest_type = manifest_type
        self.kind = manifest_type.kind
        self.name = name
        self.prefix = prefix_of(self.kind, name)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    def key(self, name: str) -> str:
        """Key of one of its objects."""
        return f"{self.prefix}/{name}"

    @property
    def is_planned(self) -> bool:
        """Whether it may be worked."""
        return self.store.exists(self.key(PLAN_NAME))

    def put_plan(self, document: Mapping[str, Any]) -> None:
        """Put the plan, if nobody was first."""
        key = self.key(PLAN_NAME)
        values = {**document, "created": utc_now(), "format_version": FORMAT_VERSION}
        self.store.create(key, encode_document(values, key))

    def read_plan(self) -> dict[str, Any]:
        """The plan that was put.

        Raises:
            ArchiveNotFoundError: none was.
            CorruptArchiveError: it is damaged, makes no sense, or is that of another run or evaluation.
            ArchiveMismatchError: a newer version of the format wrote it, or it names files outside its folder.
        """
        where = self.store.join(self.key(PLAN_NAME))
        try:
            plan = decode_document(self.store.get(self.key(PLAN_NAME)), where)
        except ArchiveNotFoundError as error:
            raise ArchiveNotFoundError(
                f"{self.store.url} has no {self}, or no more: run the command that made it again, with its run file"
            ) from error
        if (found := plan.get(f"{self.kind}_id")) != self.name:
            raise CorruptArchiveError(f"{where} is the plan of {self.kind} {found}: {HOW_TO_REPAIR}")
        if "format_version" in plan:  # before version 4 plans did not tell
            check_version(plan, where)
        self.manifest_type.check_plan(plan, where)
        return plan

    def check_plan(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Make sure that it was planned as it is wanted now.

        Raises:
            ArchiveMismatchError: it was planned otherwise.
        """
        if different := first_difference(found, wanted):
            raise ArchiveMismatchError(
                f"{self} in {self.store.url} was planned with another {different}: "
                f"resume it as it was planned or choose another {self.kind} id"
            )

    @property
    def is_published(self) -> bool:
        """Whether readers see it."""
        return self.store.exists(self.key(MANIFEST_NAME))

    def publish(self, make: Callable[[], P]) -> bool:
        """Put the manifest, if nobody did: again from its copy, if it was lost, else what `make` gives.

        Returns:
            Whether it is visible by this call.
        """
        if self.is_published or self._publish_from_copy():
            return False
        try:
            manifest = make()
        except CorruptArchiveError:
            if not self.is_published:  # somebody else may have published and cleaned up meanwhile
                raise
            return False
        return self.store.create(self.key(MANIFEST_NAME), manifest.encode())

    def check_complete(self, missing: Sequence[int], num_shards: int) -> None:
        """Make sure that no shard is missing.

        Raises:
            IncompleteRunError: some are; it names them.
        """
        if missing:
            shown = ", ".join(map(str, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
            raise IncompleteRunError(
                f"{self} lacks {len(missing)} of {num_shards} shards ({shown}): run these shards, then publish"
            )

    def manifest(self) -> P:
        """The manifest.

        Raises:
            ArchiveNotFoundError: it is not published.
        """
        return read_manifest(self.store, self.manifest_type, self.name)

    def _publish_from_copy(self) -> bool:
        """Put back a manifest that was put and lost; whether there was a copy."""
        key = self.key(copy_name(MANIFEST_NAME))
        try:
            data = self.store.get(key)
        except ArchiveNotFoundError:
            return False
        self.manifest_type.decode(data, self.store.join(key), self.name)
        self.store.create(self.key(MANIFEST_NAME), data)
        return True

    @property
    def has_copies(self) -> bool:
        """Whether `keep_copies` came to its end."""
        return self.store.exists(self.key(copy_name(MANIFEST_NAME)))

    def keep_copies(self) -> list[str]:
        """Keep once more what all of it hangs on, where that was not done; it is small beside what it stands for.

        That is manifest and plan, and of a run its images and the metadata of its arrays.

        Returns:
            Names of the objects that were copied.

        Raises:
            CorruptArchiveError: one of them is damaged and has no copy.
        """
        key = self.key(MANIFEST_NAME)
        data = self.store.get(key)
        manifest = self.manifest_type.decode(data, self.store.join(key), self.name)
        there = set(self.store.keys(self.key(COPY_FOLDER)))
        vital = {file.name: file for file in manifest.files if is_vital(file.name)}
        copied = [name for name in vital if self.key(copy_name(name)) not in there]

        def keep(name: str) -> None:
            sound = read_checked(self.store, self.key(name), vital[name])
            self.store.create(self.key(copy_name(name)), sound)

        in_threads(keep, copied)
        if self.store.create(self.key(copy_name(MANIFEST_NAME)), data):
            copied.append(MANIFEST_NAME)
        return copied

    @property
    def is_retired(self) -> bool:
        """Whether no reader sees it, or will."""
        return is_retired(self.store, self.kind, self.name)

    def retire(self, problems: Iterable[str], shard: int | None = None) -> None:
        """Hide it from every reader, or with a number only a shard of a run; whoever did so first says why."""
        self._note_retired(retired_name(self.kind, shard), problems, shard)

    def count_once(self, problems: Iterable[str]) -> None:
        """Let rows of a run count in the older runs that have them with the same content, and not in it."""
        self._note_retired(TWICE_NAME, problems)

    def why_retired(self) -> str:
        """What whoever retired it says."""
        key = self.key(retired_name(self.kind))
        return "; ".join(Retirement.decode(self.store.get(key), self.store.join(key)).problems)

    def remove_work(self, folders: Iterable[str]) -> None:
        """Remove what was made of something that is retired, unless it was published before: readers may be at it.

        Args:
            folders: where that lies, what comes last tells whether all is done.
        """
        if self.is_published:
            return
        for folder in folders:
            self.store.delete_folder(self.key(folder))

    def _note_retired(self, name: str, problems: Iterable[str], shard: int | None = None) -> None:
        retirement = Retirement(self.name, shard, tuple(problems), utc_now())
        self.store.create(self.key(name), retirement.encode())
