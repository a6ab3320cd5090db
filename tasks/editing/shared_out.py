"""The parts of a calibration on all workers at once, each kept in the archive as soon as it is measured."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from lsap_archive import ArchiveWriter
from tasks.editing.calibration import Part, Values
from tasks.workers.pool import Pool, WorkerLostError

PARTS_TOGETHER = 64  # of one calibration that wait for a worker at the same time

logger = logging.getLogger(__name__)


class SharedOut:
    """Measures the parts of one calibration; what was measured before, by a command that was killed, is not again."""

    def __init__(
        self,
        pool: Pool,
        archive: ArchiveWriter,
        digest: str,
        *,
        retry_after: Sequence[float],
        asked: Callable[[int], None],
        done: Callable[[int], None],
    ) -> None:
        """For one calibration.

        Args:
            pool: the workers.
            archive: where parts are kept.
            digest: of the calibration.
            retry_after: seconds until a part whose worker died is tried again, for each time that it is.
            asked: hears how many images are to be measured, before they are.
            done: hears how many were, part by part.
        """
        self._pool = pool
        self._archive = archive
        self._digest = digest
        self._retry_after = retry_after
        self._asked = asked
        self._done = done

    def __call__(self, parts: Sequence[Part]) -> list[Values]:
        """An attribute of each image of each part.

        Raises:
            WorkerLostError: the worker of a part died once more than it is tried again; other parts are kept.
            NoWorkerLeftError, ArchiveError: there are no workers or no store.
        """
        self._asked(sum(part.num_images for part in parts))
        with ThreadPoolExecutor(min(len(parts), PARTS_TOGETHER), thread_name_prefix="calibrate") as threads:
            return list(threads.map(self._measured, parts))

    def _measured(self, part: Part) -> Values:
        values = self._archive.get_calibration_part(self._digest, part.name)
        if values is None:
            found = self._by_a_worker(part)
            values = self._archive.keep_calibration_part(self._digest, part.name, found)
        self._done(part.num_images)
        return values

    def _by_a_worker(self, part: Part) -> Values:
        about = f"{part.attribute} of {part.num_images} images"
        for seconds in self._retry_after:
            try:
                return self._call(part, about)
            except WorkerLostError as error:
                logger.warning("%s: tried again in %g s: %s", about, seconds, error)
                time.sleep(seconds)
        return self._call(part, about)

    def _call(self, part: Part, about: str) -> Values:
        values: Values = self._pool.call("measure", part, about=about)
        return values
