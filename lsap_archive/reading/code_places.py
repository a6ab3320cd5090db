"""Where the code of an image stands, or why it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lsap_archive.errors import HOW_TO_REPAIR, ArchiveKeyError, CorruptArchiveError
from lsap_archive.format.rows import DUPLICATE, OK
from lsap_archive.reading.originals import last_originals
from lsap_archive.reading.published_runs import PublishedRuns
from lsap_archive.reading.row_table import RowPlace

Place = tuple[int, int]
"""Number of a run, and row in its arrays."""


class CodePlaces:
    """Finds the codes of images, of which the newest counts; a duplicate has that of its original.

    Args:
        runs: of the archive.
    """

    def __init__(self, runs: PublishedRuns) -> None:
        self._runs = runs

    def of_images(self, image_ids: Sequence[str], method: str) -> list[Place]:
        """Where each image's code by a method stands.

        Raises:
            ArchiveKeyError: an unknown method or image, or an image without a code; the message says why.
            CorruptArchiveError: an image is a duplicate of itself.
        """
        runs = self._runs.of_method(method)
        found = self._runs.rows.of_images(image_ids, runs)
        for image_id in image_ids:
            if image_id not in found:
                raise ArchiveKeyError(
                    f"{self._runs.url} has no image {image_id} of method {method}: its table latest has the ids"
                )
        newest = {image_id: rows[-1] for image_id, rows in found.items()}
        originals = last_originals(self._runs.rows, newest.values(), runs)
        places = {image_id: originals[one.place] for image_id, one in newest.items()}
        for image_id, one in places.items():
            if one.status == DUPLICATE:
                self._refuse_duplicate(image_id, one, method, runs)
        for image_id in image_ids:
            if places[image_id].status != OK:
                self._refuse_failed(image_id, places[image_id], method)
        return [(places[image_id].run, places[image_id].row) for image_id in image_ids]

    def inverted(self, image_ids: Sequence[str], method: str) -> list[Place]:
        """Where the inversions stand that a method's images come from.

        Raises:
            ArchiveKeyError, CorruptArchiveError: as `of_images`; the second also where the inversion is gone.
        """
        inversion_of = {one.run_id: one.inversion for one in self._runs.manifests}
        return self._made_of(self.of_images(image_ids, method), inversion_of)

    def refined(self, image_ids: Sequence[str], method: str) -> list[Place]:
        """Where the refinements stand that a method's images come from.

        Raises:
            ArchiveKeyError: as `of_images`, or the images are not refined.
            CorruptArchiveError: as `of_images`, or the refinement is gone.
        """
        refinement_of = {one.run_id: one.refinement for one in self._runs.manifests}
        return self._made_of(self.of_images(image_ids, method), refinement_of)

    def _made_of(self, places: Sequence[Place], by_run: Mapping[str, str | None]) -> list[Place]:
        """The same rows in the runs that theirs are made of, by the id of each run."""
        found = []
        for run, row in places:
            manifest = self._runs.manifests[run]
            made_of = by_run[manifest.run_id]
            if made_of is None:
                raise ArchiveKeyError(f"run {manifest.run_id} of method {manifest.method} is no refinement, nor of one")
            if made_of not in self._runs.numbers:
                raise CorruptArchiveError(
                    f"{self._runs.url}: run {manifest.run_id} is made of run {made_of}, which is gone: {HOW_TO_REPAIR}"
                )
            found.append((self._runs.numbers[made_of], row))
        return found

    def _refuse_duplicate(self, image_id: str, last: RowPlace, method: str, runs: Sequence[int]) -> None:
        if self._runs.rows.of_images([str(last.duplicate_of)], runs):
            raise CorruptArchiveError(f"{self._runs.url}: image {image_id} is a duplicate of itself: run it again")
        raise ArchiveKeyError(
            f"image {last.image_id} is a duplicate of {last.duplicate_of}, of which {self._runs.url} has "
            f"no row of method {method}: run that image"
        )

    def _refuse_failed(self, image_id: str, row: RowPlace, method: str) -> None:
        original = row.image_id if row.duplicate_of is None else row.duplicate_of
        also = "" if original == image_id else f" (it has the content of {original})"
        told = self._runs.rows.at([row.place], ["reason", "message"]).to_pylist()[0]
        sentence = f": {told['message']}" if told["message"] else ""
        raise ArchiveKeyError(
            f"image {image_id}{also} has no code of method {method}: it {row.status} in run "
            f"{self._runs.manifests[row.run].run_id}, reason {told['reason']}{sentence}"
        )
