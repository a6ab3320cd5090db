"""Measure one shard: images of a run against their originals, or codes of synthetic images against the true ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from lsap_archive import MEASURED_COLUMNS, MEASUREMENT_SCHEMA, EvaluationWriter, RunReader, open_archive
from lsap_core.alignment.anchor import Anchor
from lsap_core.errors import CheckpointError
from lsap_core.images import comparison_view
from lsap_core.inversion.by_encoder import EncoderEmbedder, EncoderSettings
from lsap_core.presets import PASSES
from lsap_core.spaces.styles import StyleSet
from tasks.archived.anchors import open_anchor
from tasks.archived.originals import Originals, fit_of
from tasks.archived.rendering import Renderer, RunPart
from tasks.archived.shown_images import Pictures, show_images
from tasks.editing.builder import EditBuilder
from tasks.editing.calibration import Part, Values
from tasks.editing.calibrator import Calibrator
from tasks.evaluation.request import EvaluationRequest
from tasks.evaluation.seen_before import SeenBefore
from tasks.measuring.attributes import FACES, load_attribute
from tasks.measuring.face_points import FacePoints
from tasks.measuring.frechet import FrechetState, load_frechet
from tasks.measuring.measures import NO_ORIGINAL, Batch, Measured, MeasureKey, Measurements, measure_all
from tasks.measuring.neighbours import RealNeighbours
from tasks.measuring.networks import load_evaluation_networks
from tasks.pictures.decoding import Fit
from tasks.stage import Shard, ShardOutcome
from tasks.weights.devices import module_device, place
from tasks.weights.encoders import load_encoder

MEASURED, NOT_MEASURED = "measured", "not_measured"


class EvaluationWorker:
    """Networks loaded once; called with one shard after the other, whichever evaluation it belongs to."""

    def __init__(self, request: EvaluationRequest):
        self.request = request
        self.device = module_device(request.device)
        loaded = request.generator.load()
        self.config = loaded.config
        self.generator = place(loaded.generator, self.device).freeze()
        self.instruments = self._load_instruments()
        self.originals = None if request.source is None else Originals(request.source, self.config, request.fit)
        self.frechet = (
            None if request.frechet is None else load_frechet(request.frechet, request.published, self.device)
        )
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
        self._anchors: dict[str, Anchor] = {}
        self._encoders: dict[tuple[str, str], EncoderEmbedder] = {}  # the one that was needed last: they are large
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
        archive = open_archive(self.request.archive)
        return show_images(self.renderer, archive, images, names, originals=self.originals, advance=self._advance)

    def __call__(self, shard: Shard) -> ShardOutcome:
        """Measure a shard and keep it; a shard measured twice is kept once."""
        started = time.monotonic()
        self._progress = 0.0
        evaluation = EvaluationWriter.open(self.request.archive, shard.job_id)
        rows = evaluation.rows_of(shard.index)
        table = _Table()
        state = None
        if evaluation.plan.subject.get("run_id") is None:
            self._measure_synthetic(evaluation, rows, table)
        else:
            state = self._measure_run(evaluation, rows, shard.places, table)
        won = evaluation.write_shard(shard.index, table.to_arrow(), state)
        return ShardOutcome(
            shard.job_id,
            shard.index,
            won,
            {MEASURED: len(table.measured), NOT_MEASURED: len(rows) - len(table.measured)},
            dict(table.problems),
            time.monotonic() - started,
        )

    def _measure_run(
        self, evaluation: EvaluationWriter, rows: range, moved: Mapping[str, str | None], table: _Table
    ) -> bytes | None:
        """Fill the table with what is measured of a run's images; returns the sums of the Fréchet distance."""
        plan = evaluation.plan
        part = RunPart(RunReader.open(self.request.archive, plan.subject["run_id"]), rows)
        state = None if self.frechet is None else FrechetState(self.frechet)
        has_sums = False
        self._progress = float(len(rows) - len(part.good))
        batches = part.batches(self.request.batch_size)
        fit = fit_of(plan.config, self.request.fit)
        seen_before = SeenBefore(evaluation, [part.records[at]["digest"] for at in part.good], self._placement(fit))
        originals = self._originals_of([[part.records[at] for at in places] for places in batches], moved, fit)
        for places, (original, problems) in zip(batches, originals, strict=True):
            stored = part.stored(self.renderer, places)
            images, records = stored.render(), [part.records[at] for at in places]
            for chosen, target in _with_and_without(original, problems):
                shown = [records[at] for at in chosen]
                batch = Batch(
                    self.generator,
                    stored.codes[chosen],
                    images=images[chosen],
                    original=target,
                    anchor=self._anchor(plan.config["anchor"]),
                    style_shift=stored.style_shift,
                    embedder=self._embedder(plan.config["encoder"]) if plan.config["lec"] else None,
                    memory=seen_before.of([record["digest"] for record in shown]),
                )
                found = self._measure(batch, plan.config["lec"], part.reader.manifest.method_digest, shown)
                table.add(shown, found, problems=[problems[at] for at in chosen])
                if state is not None and target is not None:
                    state.update_in(batch.compared, batch.original_compared)
                    has_sums = True
            self._progress += len(places)
        seen_before.keep()
        return state.to_bytes() if state is not None and has_sums else None

    def _originals_of(
        self, batches: Sequence[Sequence[Mapping[str, Any]]], moved: Mapping[str, str | None], fit: Fit
    ) -> Iterator[tuple[Tensor | None, list[str | None]]]:
        """Of every batch those that can be read, on the device, and what is wrong with the others."""
        if self.originals is None:
            for records in batches:
                yield None, [NO_ORIGINAL] * len(records)
            return
        now = [[{**one, "uri": moved.get(one["image_id"], one["uri"])} for one in records] for records in batches]
        for original, problems in self.originals.ahead(now, fit):
            yield None if original is None else original.to(self.device), problems

    def _placement(self, fit: Fit) -> dict[str, Any]:
        """How an image becomes a picture of the generator."""
        config = self.config
        box = None if config.content_box is None else list(config.content_box)
        size = config.resolution if config.is_square else list(config.size)
        return {"resolution": size, "channels": config.image_channels, "box": box, "fit": fit}

    def _measure(
        self,
        batch: Batch,
        lec: Mapping[str, Mapping[str, Any]],
        method_digest: str,
        records: Sequence[Mapping[str, Any]],
    ) -> Measurements:
        """Everything that is asked for of a batch, whose codes are a method's and whose rows are these."""
        edits = {
            name: self.builder.build(
                self.request.lec[name],
                edit["calibrated"],
                method_digest=method_digest,
                image_ids=[record["image_id"] for record in records],
            )
            for name, edit in lec.items()
        }
        found = measure_all(batch, {**self.instruments, "edit": edits})
        if self.originals is None:  # nobody asked for a comparison
            found = {key: one for key, one in found.items() if set(one.problems) != {NO_ORIGINAL}}
        return found

    def _measure_synthetic(self, evaluation: EvaluationWriter, rows: range, table: _Table) -> None:
        plan = evaluation.plan
        synthetic = plan.subject["synthetic"]
        random = torch.Generator().manual_seed(synthetic["seed"])  # all are drawn: the same whatever the shards are
        z = torch.randn(synthetic["count"], self.config.z_dim, generator=random)[rows.start : rows.stop]
        embedder = self._embedder(plan.config["encoder"])
        style_set: StyleSet = plan.config["style_set"]
        for start in range(0, len(rows), self.request.batch_size):
            part = range(start, min(start + self.request.batch_size, len(rows)))
            with torch.no_grad():
                w = self.generator.map(z[part.start : part.stop].to(self.device))
                if synthetic["psi"] != 1:
                    w = self.generator.mapping.w_avg.lerp(w, synthetic["psi"])
                images = self.generator.synthesize(w)
            view = comparison_view(images, content_box=self.config.content_box)
            codes = embedder.codes_of_view(view)
            found = measure_all(Batch(self.generator, codes, true_codes=w, style_set=style_set), {})
            records = [{"row": rows[at], "image_id": f"synthetic/{synthetic['seed']}/{rows[at]:08d}"} for at in part]
            table.add(records, found, problems=[None] * len(part))
            self._progress += len(part)

    def _anchor(self, digest: str) -> Anchor:
        if digest not in self._anchors:
            self._anchors[digest] = open_anchor(self.request.archive, digest).to(self.device)
        return self._anchors[digest]

    def _embedder(self, about: Mapping[str, Any]) -> EncoderEmbedder:
        """The encoder that a plan names.

        Raises:
            CheckpointError: the file holds another one by now.
        """
        name, digest = about["name"], about["digest"]
        if (name, digest) not in self._encoders:
            loaded = load_encoder(
                self.request.encoders[name], generator_config=self.config, name=name, heads=self.request.heads.get(name)
            )
            if loaded.digest != digest:
                raise CheckpointError(
                    f"{self.request.encoders[name]} holds encoder {loaded.digest}, {digest} was planned: put the file "
                    "back, or run the same command again"
                )
            encoder = place(loaded.encoder.requires_grad_(False), self.device)
            settings = EncoderSettings(about[PASSES])
            self._encoders = {(name, digest): EncoderEmbedder(self.generator, encoder, settings)}
        return self._encoders[name, digest]

    def _load_instruments(self) -> dict[str, Mapping[str, Any]]:
        """What images are looked at with, by role and name."""
        request = self.request
        names = request.attributes if request.synthetic is None else ()
        wants_faces = any(name in FACES for name in names) or "curricularface" in request.networks.identity
        points = FacePoints.load(request.published, self.device) if wants_faces else None
        networks = load_evaluation_networks(request.networks, self.device, points)
        attributes = {
            name: load_attribute(name, device=self.device, published=request.published, points=points) for name in names
        }
        neighbours = {}
        if request.reference is not None:
            real = Originals(request.reference, self.config, request.fit)
            for name, judge in networks["judge"].items():
                batches = (batch.to(self.device) for batch in real.batches(request.batch_size))
                neighbours[name] = RealNeighbours.of(judge, batches, content_box=self.config.content_box)
        return {**networks, "attribute": attributes, "real": neighbours}


def _with_and_without(original: Tensor | None, problems: Sequence[str | None]) -> list[tuple[list[int], Tensor | None]]:
    """Places in a batch that have an original, with it, and those that have none."""
    there = [at for at, problem in enumerate(problems) if problem is None]
    gone = [at for at, problem in enumerate(problems) if problem is not None]
    return [(chosen, target) for chosen, target in ((there, original), (gone, None)) if chosen]


class _Table:
    """Measurements of a shard on their way to the archive."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {name: [] for name in MEASURED_COLUMNS}
        self.measured: set[int] = set()
        self.problems: Counter[str] = Counter()

    def add(self, records: Sequence[Mapping[str, Any]], found: Measurements, *, problems: Sequence[str | None]) -> None:
        """Add what was measured of some images, whose originals had these problems."""
        for key, measured in found.items():
            one = replace(measured, problems=_reasons(measured, problems))
            for record, value, problem in zip(records, one.values, one.problems, strict=True):
                self._add_one(record, key, value, problem)
        self.problems.update(problem for problem in problems if problem not in (None, NO_ORIGINAL))

    def _add_one(self, record: Mapping[str, Any], key: MeasureKey, value: float | None, problem: str | None) -> None:
        entry = (record["row"], record["image_id"], key.measure, key.by, value, problem)
        for name, of in zip(MEASURED_COLUMNS, entry, strict=True):
            self.columns[name].append(of)
        if value is not None:
            self.measured.add(record["row"])

    def to_arrow(self) -> pa.Table:
        """The rows, image by image, so that an image's measures stand together."""
        schema = pa.schema([MEASUREMENT_SCHEMA.field(name) for name in MEASURED_COLUMNS])
        table = pa.table(self.columns, schema=schema)
        order = sorted(range(table.num_rows), key=self.columns["row"].__getitem__)
        return table.take(pa.array(order, pa.int64()))


def _reasons(measured: Measured, problems: Sequence[str | None]) -> list[str | None]:
    """Why there is no value; where an original is missing, what became of it."""
    pairs = zip(measured.problems, problems, strict=True)
    return [of_original if own == NO_ORIGINAL else own for own, of_original in pairs]
