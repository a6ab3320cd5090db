"""Edit one shard: codes of an inversion in, edited codes and perhaps their images out, into the archive."""

from __future__ import annotations

import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from lsap_archive import FAILED, OK, ROW_SCHEMA, RunReader, RunWriter, open_archive
from lsap_core.generators.generator import StyleShift
from lsap_core.images import to_uint8
from tasks.archived.made_rows import CARRIED_COLUMNS, record_made_of
from tasks.archived.originals import Originals
from tasks.archived.previews import ShardPreviews
from tasks.archived.rendering import Renderer, RunPart, shift_of
from tasks.archived.shown_images import Pictures, show_images
from tasks.editing.builder import EditBuilder
from tasks.editing.calibration import Part, Values
from tasks.editing.calibrator import Calibrator
from tasks.editing.request import EditRequest
from tasks.pictures.saved import png_file
from tasks.stage import Shard, ShardOutcome
from tasks.weights.devices import module_device, place

NOT_FINITE = "non_finite_code"
_COLUMNS = (*CARRIED_COLUMNS, "seconds")


class EditWorker:
    """Networks loaded once; called with one shard after the other. `calibrate` works on one edit of one method."""

    def __init__(self, request: EditRequest):
        self.request = request
        device = module_device(request.device)
        loaded = request.generator.load()
        self.generator = place(loaded.generator, device).freeze()
        self.builder = EditBuilder(loaded.config, loaded.digest, archive=request.archive)
        self.renderer = Renderer(self.generator, request.refiners)
        self.calibrator = Calibrator(
            self.renderer,
            self.builder,
            archive=request.archive,
            batch_size=request.batch_size,
            published=request.published,
            advance=self._advance,
        )
        self._progress = 0.0

    def progress(self) -> float:
        """Images' worth of work done on the present shard, or calibration."""
        return self._progress

    def _advance(self, num_images: int) -> None:
        self._progress += num_images

    def measure(self, part: Part) -> Values:
        """What a calibration needs to know of some images; see `Calibrator.measure`."""
        self._progress = 0.0
        return self.calibrator.measure(part)

    def preview(self, images: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Pictures:
        """Pictures of published images, and of their originals where their source is known; see `show_images`."""
        config, source = self.generator.config, self.request.source
        originals = None if source is None else Originals(source, config, "refuse")
        archive = open_archive(self.request.archive)
        return show_images(self.renderer, archive, images, names, originals=originals, advance=self._advance)

    def __call__(self, shard: Shard) -> ShardOutcome:
        """Edit a shard and commit it; a shard edited twice is committed once."""
        started = time.monotonic()
        self._progress = 0.0
        run = RunWriter.open(self.request.archive, shard.job_id)
        assert run.subject is not None
        part = RunPart(RunReader.open(self.request.archive, run.subject.run_id), run.rows_of(shard.index))
        records = [record_made_of(record, run.subject.method) for record in part.records]
        edited = np.full(tuple(part.codes.shape), np.nan, np.float32)
        keeps_images = run.plan["config"]["keep_images"]
        renders = keeps_images or self.request.previews > 0
        self._progress = float(len(records) - len(part.good))
        for places in part.batches(self.request.batch_size):
            began = time.monotonic()
            ids = [part.records[at]["image_id"] for at in places]
            edited[places] = self._edit(run, part, places, ids)
            for at in places:
                records[at]["seconds"] = (time.monotonic() - began) / len(places)
                if not np.isfinite(edited[at]).all():
                    name = run.plan["config"]["edit"]["name"]
                    records[at] |= {"status": FAILED, "reason": NOT_FINITE, "message": _not_finite(name)}
            if not renders:  # which takes far longer
                self._progress += len(places)
        schema = pa.schema([ROW_SCHEMA.field(name) for name in _COLUMNS])
        previews = ShardPreviews(self.request.previews, None)
        rendered = self._rendered(part, edited, shift_of(run.plan["config"]), records, previews)
        if previews and not keeps_images:
            deque(rendered, maxlen=0)
        won = run.write_shard(
            shard.index,
            {"w_plus": edited},
            pa.Table.from_pylist(records, schema=schema),
            attempt=uuid.uuid4().hex[:12],
            images=((part.rows[at], png_file(pixels)) for at, pixels in rendered) if keeps_images else (),
            previews=previews.files(part.rows, records),
        )
        return ShardOutcome(
            shard.job_id,
            shard.index,
            won,
            dict(Counter(record["status"] for record in records)),
            dict(Counter(record["reason"] for record in records if record["status"] == FAILED)),
            time.monotonic() - started,
        )

    def _edit(self, run: RunWriter, part: RunPart, places: list[int], image_ids: list[str]) -> np.ndarray:
        assert run.subject is not None and run.subject.edit is not None, "the run is an edit"
        config = run.plan["config"]
        spec = self.request.edits[run.subject.edit]
        calibrated = run.subject.strength if config["calibration"] is not None else None
        edit = self.builder.build(spec, calibrated, method_digest=run.subject.method_digest, image_ids=image_ids)
        return edit(part.codes[places]).numpy()

    def _rendered(
        self,
        part: RunPart,
        edited: np.ndarray,
        shift: StyleShift,
        records: list[dict[str, Any]],
        previews: ShardPreviews,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Place and pixels of what good edits show, batch by batch: a shard of large ones fits no memory."""
        for places in part.batches(self.request.batch_size):
            images = to_uint8(part.stored(self.renderer, places).show(torch.from_numpy(edited[places]), shift))
            previews.add(places, images)
            for at, one in zip(places, images, strict=True):
                if records[at]["status"] == OK:
                    yield at, one
                self._progress += 1


def _not_finite(edit: str) -> str:
    return f"the code was no longer finite after edit {edit}: take a smaller strength"
