"""Refine one shard: codes of an inversion and their images in, what the refiner found out, into the archive."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lsap_archive import FAILED, OK, ROW_SCHEMA, RunReader, RunWriter, open_archive
from lsap_core.alignment.anchor import Anchor
from lsap_core.generators.generator import Noise
from lsap_core.images import crop, to_uint8
from lsap_core.inversion.inversion import EmbedderState
from lsap_core.presets import refinement_settings_of
from lsap_core.refinement import Embedded, Refinement, RefinementParts, Refiner, as_stored
from lsap_core.refinement.sam import SamRefiner
from lsap_core.refinement.sam_networks import SamNetworks
from tasks.archived.anchors import open_anchor
from tasks.archived.image_seeds import image_seed
from tasks.archived.jobs import outcome_of_committed
from tasks.archived.made_rows import CARRIED_COLUMNS, record_made_of
from tasks.archived.originals import Originals, fit_of
from tasks.archived.previews import ShardPreviews
from tasks.archived.refiners import RefinerOfRun, networks_of, refiner_of
from tasks.archived.rendering import Renderer, RunPart
from tasks.archived.saved_states import SAVE_EVERY_SECONDS, Finished, KeptWork
from tasks.archived.shown_images import Pictures, show_images
from tasks.errors import BadImageError
from tasks.measuring.of_inversions import COLUMNS, measure
from tasks.pictures.saved import png_file
from tasks.refinement.label_maps import LabelMaps
from tasks.refinement.request import RefinementRequest
from tasks.stage import Shard, ShardOutcome
from tasks.weights.devices import module_device, place
from tasks.weights.networks import load_networks
from tasks.weights.segmenters import load_segmenter

BEYOND_STORED = "state_beyond_float16"
_COLUMNS = (*CARRIED_COLUMNS, "num_steps", "seconds", "final_loss", *COLUMNS)


class RefineWorker:
    """Networks loaded once; called with one shard after the other, whichever refinement it belongs to."""

    def __init__(self, request: RefinementRequest, *, save_every_seconds: float = SAVE_EVERY_SECONDS):
        self.request = request
        self.save_every_seconds = save_every_seconds
        self.device = module_device(request.device)
        loaded = request.generator.load()
        self.generator = place(loaded.generator, self.device).freeze()
        self.networks = load_networks(request.networks, self.device)
        self.originals = Originals(request.source, loaded.config, "refuse")
        self.renderer = Renderer(self.generator)
        self._anchors: dict[str, Anchor] = {}
        self._refiners: dict[str, Refiner[Any]] = {}  # the one that the last shard needed: their networks may be large
        self._progress = 0.0

    def progress(self) -> float:
        """Images' worth of work done on the present shard."""
        return self._progress

    def __call__(self, shard: Shard) -> ShardOutcome:
        """Refine a shard and commit it; one that is committed already is not refined again."""
        started, self._progress = time.monotonic(), 0.0
        run = RunWriter.open(self.request.archive, shard.job_id)
        if run.is_committed(shard.index):  # by another command at the same time, or by this one, unheard
            return outcome_of_committed(run, shard, time.monotonic() - started)
        assert run.subject is not None
        part = RunPart(RunReader.open(self.request.archive, run.subject.run_id), run.rows_of(shard.index))
        kept = KeptWork(run, shard.index, every_seconds=self.save_every_seconds)
        previews = ShardPreviews(self.request.previews, self.generator.config.content_box)
        work = _ShardWork.begin(run, shard.index, part, kept, previews)
        known = work.take_up()
        self._progress = float(len(part.records) - len(part.good) + len(known))
        resumed_at = 0
        size = max(1, self.request.batch_size >> shard.halvings)
        for places in part.batches(size, without=known):
            resumed_at = self._refine_batch(work, places, shard.places) or resumed_at
        won = run.write_shard(
            shard.index,
            work.arrays,
            work.table(),
            attempt=f"{shard.command}-{uuid.uuid4().hex[:12]}",
            images=work.images(),
            previews=previews.files(part.rows, work.records),
        )
        kept.remove()
        return ShardOutcome(
            shard.job_id,
            shard.index,
            won,
            dict(Counter(record["status"] for record in work.records)),
            dict(Counter(record["reason"] for record in work.records if record["status"] == FAILED)),
            time.monotonic() - started,
            resumed_at,
            num_known=len(known),
        )

    def preview(self, images: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Pictures:
        """Pictures of published images and their originals; see `show_images`."""
        renderer = Renderer(self.generator, self.request.refiner_networks)
        archive = open_archive(self.request.archive)
        return show_images(renderer, archive, images, names, originals=self.originals, advance=self._advance)

    def _advance(self, num_images: int) -> None:
        self._progress += num_images

    def _refine_batch(self, work: _ShardWork, places: list[int], moved: Mapping[str, str | None]) -> int:
        """Fill arrays and records of a batch, whose images may have moved; returns the step it was resumed at."""
        started, done_before = time.monotonic(), self._progress
        config = work.run.plan["config"]
        about = refiner_of(config)
        assert about is not None, "the run is a refinement"
        records = [work.part.records[at] for at in places]
        now = [{**one, "uri": moved.get(one["image_id"], one["uri"])} for one in records]
        read, problems = self.originals.batch(now, fit_of(config))
        for at, problem in zip(places, problems, strict=True):
            if problem is not None:
                work.records[at] |= {"status": FAILED, "reason": problem, "message": _unread(work.part.records[at])}
        places = [at for at, problem in zip(places, problems, strict=True) if problem is None]
        if read is None:
            self._progress = done_before + len(problems)
            return 0
        target = read.to(self.device)
        refiner, segments = self._refiner(about), None
        if isinstance(refiner, SamRefiner) and about.segmenter is not None and about.segmenter.maps is not None:
            places, target, segments = _with_segments(work, places, target, about.segmenter.maps, refiner)
            if not places:
                self._progress = done_before + len(problems)
                return 0
        stored = work.part.stored(self.renderer, places)
        embedded = Embedded(stored.codes, stored.noise)
        image_ids = [work.part.records[at]["image_id"] for at in places]
        seeds = [image_seed(config["seed"], image_id) for image_id in image_ids]
        if isinstance(refiner, SamRefiner):
            state = refiner.start(embedded, target, seeds, segments=segments)
        else:
            state = refiner.start(embedded, target, seeds)
        num_steps = refiner.settings.num_steps
        resumed_at = work.kept.restore(image_ids, state) if num_steps > 1 else 0  # of one step there is nothing kept

        def after_step(state: EmbedderState) -> None:
            self._progress = done_before + len(places) * state.step / num_steps
            if state.step < num_steps:  # what is finished is kept as such
                work.kept.save_if_due(image_ids, state)

        refiner.advance(state, target, after_step=after_step)
        found = refiner.finish(state)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # else the time would be that of asking
        seconds = (time.monotonic() - started) / len(places)
        self._keep(work, places, refiner, found, stored.noise, target, seconds)
        work.kept.finish(lambda: work.finished(places))
        self._progress = done_before + len(problems)
        return resumed_at

    def _refiner(self, about: RefinerOfRun) -> Refiner[Any]:
        if about.key not in self._refiners:
            networks = networks_of(about, self.request.refiner_networks, self.generator)
            if isinstance(networks, SamNetworks) and about.segmenter is not None:
                segmenter = load_segmenter(about.segmenter, self.request.networks.published)
                networks = SamNetworks(networks.predictor, segmenter).to(self.device)
            parts = RefinementParts(self.generator, self.networks.perceptual, networks)
            self._refiners = {about.key: refinement_settings_of(about.settings).refiner(parts)}
        return self._refiners[about.key]

    def _anchor(self, digest: str) -> Anchor:
        if digest not in self._anchors:
            self._anchors[digest] = open_anchor(self.request.archive, digest).to(self.device)
        return self._anchors[digest]

    @torch.no_grad()
    def _keep(
        self,
        work: _ShardWork,
        places: list[int],
        refiner: Refiner[Any],
        found: Refinement,
        noise: Noise,
        target: Tensor,
        seconds: float,
    ) -> None:
        """Measure and keep what a reader will see: the images of the arrays as they are stored."""
        config = work.run.plan["config"]
        refined = as_stored(refiner, found.refined, noise, dtype=getattr(torch, config["state_type"]))
        kept, images = refined.arrays(), refined.synthesize()
        anchor = self._anchor(config["anchor"])
        measured = measure(
            images, target, refined.w_plus, generator=self.generator, anchor=anchor, networks=self.networks
        )
        is_finite = torch.stack(
            [values.isfinite().flatten(1).all(dim=1) for values in (refined.w_plus, images, *kept.values())]
        ).all(dim=0)
        work.fill(places, {"w_plus": refined.w_plus, "trace": found.trace, **kept})
        if work.previews:
            work.previews.add(places, to_uint8(images))
        if config["refiner"]["keep"] == "images":
            shown = to_uint8(crop(images, self.generator.config.content_box))
            work.files |= {at: png_file(one) for at, one in zip(places, shown, strict=True)}
        for index, at in enumerate(places):
            record = work.records[at]
            record |= {"num_steps": int(found.num_steps[index]), "seconds": seconds}
            if (stopped_at := int(found.stopped_at[index])) >= 0:
                reason, message = refiner.settings.why_stopped(stopped_at)
                record |= {"status": FAILED, "reason": reason, "message": message}
            elif not is_finite[index]:
                record |= {"status": FAILED, "reason": BEYOND_STORED, "message": _beyond(config["state_type"])}
            else:
                record |= {name: values[index] for name, values in measured.items()}
                if found.trace_steps:
                    losses = found.trace[index, :, found.trace_terms.index("loss")]
                    record["final_loss"] = next(iter(losses[losses.isfinite()].flip(0).tolist()), None)


@dataclass
class _ShardWork:
    """A shard on its way to the archive."""

    run: RunWriter
    shard: int
    part: RunPart
    records: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]
    kept: KeptWork
    previews: ShardPreviews
    files: dict[int, bytes] = field(default_factory=dict)  # by place

    @classmethod
    def begin(cls, run: RunWriter, shard: int, part: RunPart, kept: KeptWork, previews: ShardPreviews) -> _ShardWork:
        assert run.subject is not None
        records = [record_made_of(record, run.subject.method) for record in part.records]
        arrays = {
            one.name: np.full((len(records), *one.item_shape), one.fill_value, one.dtype) for one in run.arrays.values()
        }
        return cls(run, shard, part, records, arrays, kept, previews)

    def take_up(self) -> set[int]:
        """Places of the images that an earlier attempt had finished and kept."""
        known: set[int] = set()
        places_of = {record["image_id"]: at for at, record in enumerate(self.part.records)}
        for finished in self.kept.finished():
            places = [places_of[image_id] for image_id in finished.image_ids]
            for at, record in zip(places, finished.records, strict=True):
                self.records[at] = record
            for name, values in finished.arrays.items():
                self.arrays[name][places] = values
            if finished.files:
                self.files |= dict(zip(places, finished.files, strict=True))
            self.previews.take_up(places, finished.previews)
            known.update(places)
        return known

    def finished(self, places: Sequence[int]) -> Finished:
        """What is found of a batch that is done."""
        chosen = list(places)
        arrays = {name: values[chosen] for name, values in self.arrays.items()}
        files = [self.files[at] for at in chosen if at in self.files]
        image_ids = [self.part.records[at]["image_id"] for at in chosen]
        records = [self.records[at] for at in chosen]
        return Finished(image_ids, records, arrays, files, self.previews.of(chosen))

    def fill(self, places: Sequence[int], values: Mapping[str, Tensor]) -> None:
        """Put values of some rows where the run keeps them, if it does."""
        for name, array in self.arrays.items():
            array[list(places)] = values[name].cpu().numpy()

    def images(self) -> list[tuple[int, bytes]]:
        """Row and picture of the images that are ok, where pictures are kept."""
        rows, records = self.part.rows, self.records
        return [(rows[at], file) for at, file in self.files.items() if records[at]["status"] == OK]

    def table(self) -> pa.Table:
        """The rows, without those columns that nothing is known of."""
        names = {name for record in self.records for name in record}
        schema = pa.schema([ROW_SCHEMA.field(name) for name in _COLUMNS if name in names])
        return pa.Table.from_pylist(self.records, schema=schema)


def _with_segments(
    work: _ShardWork, places: list[int], target: Tensor, folder: str, refiner: SamRefiner
) -> tuple[list[int], Tensor, Tensor | None]:
    """Of some images those that have a label map, [n, C, R, R], and their segments; the others' rows say why not."""
    maps, found = LabelMaps(folder), dict[int, Tensor]()
    for index, at in enumerate(places):
        try:
            found[index] = maps.read(work.part.records[at]["image_id"], refiner.segments_size)
        except BadImageError as error:
            work.records[at] |= {"status": FAILED, "reason": error.reason, "message": error.message}
    segments = torch.stack(list(found.values())) if found else None
    return [places[index] for index in found], target[list(found)], segments


def _unread(record: Mapping[str, Any]) -> str:
    return f"{record['image_id']} could not be read again as it was inverted: bring it back, or invert it again"


def _beyond(state_type: str) -> str:
    return f"what was found cannot be kept as {state_type}: refine with state_type: float32"
