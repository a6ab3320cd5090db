"""Mending one evaluation: what has a copy is restored; else it is retired, and what is sound of it taken over."""

from __future__ import annotations

from collections.abc import Set

from lsap_archive.format.evaluations import EvaluationInfo
from lsap_archive.format.layout import COPY_FOLDER, MANIFEST_NAME
from lsap_archive.upkeep.repair_publication import PublicationRepair, is_readable


class EvaluationRepair(PublicationRepair[EvaluationInfo]):
    """Mends one evaluation; all of it goes with any object that is lost."""

    def restore_manifest(self) -> bool:
        """From the copy, else it is taken away with what tells that there was one, and the next run publishes."""
        if super().restore_manifest():
            return True
        key = self.publication.key(MANIFEST_NAME)
        self.report.removed.append(key)
        if not self.report.dry_run and not is_readable(self.publication.manifest):
            self.store.delete_folder(self.publication.key(COPY_FOLDER))
            self.store.delete(key)
        return False

    def take_away(self, damaged: Set[str]) -> None:
        """Take away what is damaged; with a state its measurements, so that both are made."""
        states = {name for name in damaged if name.startswith("states/")}
        measured = {name.replace("states/", "shards/").replace(".npz", ".parquet") for name in states}
        for name in (*sorted(measured | damaged - states), *sorted(states)):  # without measurements a shard is missing
            self.remove(name)
