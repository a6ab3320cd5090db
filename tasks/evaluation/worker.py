"""Measure one shard: images of a run against their originals, or codes of synthetic images against the true ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from lsap_archive import MEASUREMENT_SCHEMA, EvaluationWriter, RunReader
from lsap_archive.format.measurements import OWN_COLUMNS
from lsap_core.alignment.anchor import Anchor
from lsap_core.errors import CheckpointError
from lsap_core.images import ContentBox, comparison_view
from lsap_core.inversion.by_encoder import EncoderEmbedder, EncoderSettings
from lsap_core.spaces.styles import StyleSet
from tasks.archived.anchors import open_anchor
from tasks.archived.originals import Originals
from tasks.archived.rendering import RunPart
from tasks.editing.builder import EditBuilder
from tasks.editing.calibration import CalibrationWork, Calibrator
from tasks.editing.spec import EditSpec
from tasks.editing.worker import ShardResult
from tasks.measuring.attributes import load_attribute
from tasks.measuring.frechet import FrechetState, load_frechet
from tasks.measuring.measures import (
    Measured,
    MeasureKey,
    Measurements,
    evaluate_consistency,
    evaluate_disalignment,
    evaluate_images,
)
from tasks.measuring.neighbours import RealNeighbours
from tasks.measuring.networks import EvaluationChoice, load_evaluation_networks
from tasks.pictures.decoding import Fit
from tasks.pictures.saved import read_back
from tasks.weights.devices import module_device, place
from tasks.weights.encoders import load_encoder
from tasks.weights.generators import load_generator

MEASURED, NOT_MEASURED = "measured", "not_measured"
NO_ORIGINAL = "no_original"


@dataclass(frozen=True)
class EvaluationWorkerSpec:
    """Everything that an evaluating worker is built from; small, so that it travels.

    Attributes:
        archive: URL of the archive.
        generator: path or URL of the weights.
        networks: what looks at images.
        batch_size: images measured together.
        source: where the originals are read from, or None.
        fit: what is done with originals of another shape.
        attributes: measured of images, by name.
        lec: edits of the editing consistency, by name.
        frechet: network of the Fréchet distance, or None.
        reference: source of real images, or None.
        encoders: path or URL of encoders by name.
        device: "auto", "cpu", "cuda", ...
        content_box: rows and columns of the generator's images that carry the picture, or None for what it says.
    """

    archive: str
    generator: str
    networks: EvaluationChoice
    batch_size: int
    source: str | None = None
    fit: Fit = "refuse"
    attributes: tuple[str, ...] = ()
    lec: Mapping[str, EditSpec] = field(default_factory=dict)
    frechet: str | None = None
    reference: str | None = None
    encoders: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    content_box: ContentBox | None = None

    @property
    def backbones(self) -> str | None:
        """Folder of published networks, or None for torch's cache."""
        return self.networks.backbones


@dataclass(frozen=True)
class EvaluationWork:
    """One shard of one evaluation.

    Attributes:
        evaluation_id: the evaluation; its plan says of what.
        shard: number of the shard.
        places: where originals are now that lay elsewhere when they were inverted; None for one that is gone.
    """

    evaluation_id: str
    shard: int
    places: Mapping[str, str | None] = field(default_factory=dict)


class EvaluationWorker:
    """Networks loaded once; `evaluate` works on one shard, whichever evaluation it belongs to."""

    def __init__(self, spec: EvaluationWorkerSpec):
        self.spec = spec
        self.device = module_device(spec.device)
        loaded = load_generator(spec.generator, content_box=spec.content_box)
        self.config = loaded.config
        self.generator = place(loaded.generator, self.device).freeze()  # type: ignore[operator]
        self.networks = load_evaluation_networks(spec.networks, self.device)
        self.attributes = [
            load_attribute(name, device=self.device, backbones=spec.backbones) for name in spec.attributes
        ]
        self.originals = None if spec.source is None else Originals(spec.source, self.config, spec.fit)
        self.frechet = None if spec.frechet is None else load_frechet(spec.frechet, spec.backbones, self.device)
        self.neighbours = self._neighbours()
        self.builder = EditBuilder(loaded.config, loaded.digest, archive=spec.archive)
        self.calibrator = Calibrator(
            self.generator, self.builder, archive=spec.archive, batch_size=spec.batch_size, backbones=spec.backbones
        )
        self._anchors: dict[str, Anchor] = {}
        self._encoders: dict[tuple[str, str], EncoderEmbedder] = {}  # the one that was needed last: they are large
        self._progress = 0.0

    def progress(self) -> float:
        """Images' worth of work done on the present shard."""
        return self._progress

    def deviation(self, attribute: str, seed: int) -> dict[str, Any]:
        """Spread of an attribute over synthetic images; see `Calibrator.deviation`."""
        return self.calibrator.deviation(attribute, seed)

    def calibrate(self, work: CalibrationWork) -> dict[str, Any]:
        """The strength of an edit of equal effect; see `Calibrator.calibrate`."""
        return self.calibrator.calibrate(work)

    def evaluate(self, work: EvaluationWork) -> ShardResult:
        """Measure a shard and keep it; a shard measured twice is kept once."""
        started = time.monotonic()
        self._progress = 0.0
        evaluation = EvaluationWriter.open(self.spec.archive, work.evaluation_id)
        rows = evaluation.rows_of(work.shard)
        table = _Table()
        state = None
        if evaluation.plan.subject.get("run_id") is None:
            self._measure_synthetic(evaluation, rows, table)
        else:
            state = self._measure_run(evaluation, rows, work.places, table)
        won = evaluation.write_shard(work.shard, table.to_arrow(), state)
        return ShardResult(
            work.evaluation_id,
            work.shard,
            won,
            {MEASURED: len(table.measured), NOT_MEASURED: len(rows) - len(table.measured)},
            dict(table.problems),
            time.monotonic() - started,
        )

    def _measure_run(
        self, evaluation: EvaluationWriter, rows: range, places: Mapping[str, str | None], table: _Table
    ) -> bytes | None:
        """Fill the table with what is measured of a run's images; returns the sums of the Fréchet distance."""
        plan = evaluation.plan
        part = RunPart(RunReader.open(self.spec.archive, plan.subject["run_id"]), rows)
        state = None if self.frechet is None else FrechetState(self.frechet)
        has_sums = False
        self._progress = float(len(rows) - len(part.good))
        for batch in part.batches(self.spec.batch_size):
            images = part.render(self.generator, batch)
            records = [part.records[at] for at in batch]
            found = [{**one, "uri": places.get(one["image_id"], one["uri"])} for one in records]
            original, problems = (None, [NO_ORIGINAL] * len(batch))
            if self.originals is not None:
                original, problems = self.originals.batch(found)  # type: ignore[assignment]
            for chosen, target in _with_and_without(original, problems):
                measured = self._measure_images(plan.config, part, [batch[at] for at in chosen], images[chosen], target)
                table.add([records[at] for at in chosen], measured, problems=[problems[at] for at in chosen])
                if state is not None and target is not None:
                    box = self.config.content_box
                    state.update(
                        read_back(images[chosen], content_box=box),
                        read_back(target.to(self.device), content_box=box),
                    )
                    has_sums = True
            self._progress += len(batch)
        return state.to_bytes() if state is not None and has_sums else None

    def _measure_images(
        self, config: Mapping[str, Any], part: RunPart, places: list[int], images: Tensor, original: Tensor | None
    ) -> Measurements:
        codes = part.codes[places].to(self.device)
        found = evaluate_images(
            images,
            None if original is None else original.to(self.device),
            codes,
            generator=self.generator,
            anchor=self._anchor(config["anchor"]),
            networks=self.networks,
            attributes=self.attributes,
            neighbours=self.neighbours,
        )
        if config["lec"]:
            edits = {
                name: self.builder.build(
                    self.spec.lec[name],
                    edit["calibrated"],
                    method_digest=part.reader.manifest.method_digest,
                    image_ids=[part.records[at]["image_id"] for at in places],
                )
                for name, edit in config["lec"].items()
            }
            embedder = self._embedder(config["encoder"])
            found |= evaluate_consistency(codes, embedder=embedder, edits=edits)
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
        for start in range(0, len(rows), self.spec.batch_size):
            batch = range(start, min(start + self.spec.batch_size, len(rows)))
            with torch.no_grad():
                w = self.generator.map(z[batch.start : batch.stop].to(self.device))
                if synthetic["psi"] != 1:
                    w = self.generator.mapping.w_avg.lerp(w, synthetic["psi"])
                images = self.generator.synthesize(w)
            view = comparison_view(images, content_box=self.config.content_box)
            measured = evaluate_disalignment(
                embedder.codes_of_view(view), w, generator=self.generator, style_set=style_set
            )
            records = [{"row": rows[at], "image_id": f"synthetic/{synthetic['seed']}/{rows[at]:08d}"} for at in batch]
            table.add(records, measured, problems=[None] * len(batch))
            self._progress += len(batch)

    def _anchor(self, digest: str) -> Anchor:
        if digest not in self._anchors:
            self._anchors[digest] = open_anchor(self.spec.archive, digest).to(self.device)
        return self._anchors[digest]

    def _embedder(self, about: Mapping[str, Any]) -> EncoderEmbedder:
        """The encoder that a plan names.

        Raises:
            CheckpointError: the file holds another one by now.
        """
        name, digest = about["name"], about["digest"]
        if (name, digest) not in self._encoders:
            loaded = load_encoder(self.spec.encoders[name], generator_config=self.config)
            if loaded.digest != digest:
                raise CheckpointError(
                    f"{self.spec.encoders[name]} holds encoder {loaded.digest}, {digest} was planned: put the file "
                    "back, or run the same command again"
                )
            encoder = place(loaded.encoder.requires_grad_(False), self.device)
            settings = EncoderSettings(num_refinements=about["num_refinements"])
            self._encoders = {(name, digest): EncoderEmbedder(self.generator, encoder, settings)}  # type: ignore[arg-type]
        return self._encoders[name, digest]

    def _neighbours(self) -> RealNeighbours | None:
        if self.spec.reference is None:
            return None
        assert self.networks.judge is not None
        real = Originals(self.spec.reference, self.config, self.spec.fit)
        batches = (batch.to(self.device) for batch in real.batches(self.spec.batch_size))
        return RealNeighbours.of(self.networks.judge, batches, content_box=self.config.content_box)


def _with_and_without(original: Tensor | None, problems: Sequence[str | None]) -> list[tuple[list[int], Tensor | None]]:
    """Places in a batch that have an original, with it, and those that have none."""
    there = [at for at, problem in enumerate(problems) if problem is None]
    gone = [at for at, problem in enumerate(problems) if problem is not None]
    return [(chosen, target) for chosen, target in ((there, original), (gone, None)) if chosen]


class _Table:
    """Measurements of a shard on their way to the archive."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {name: [] for name in OWN_COLUMNS}
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
        for name, of in zip(OWN_COLUMNS, entry, strict=True):
            self.columns[name].append(of)
        if value is not None:
            self.measured.add(record["row"])

    def to_arrow(self) -> pa.Table:
        """The rows, image by image, so that an image's measures stand together."""
        schema = pa.schema([MEASUREMENT_SCHEMA.field(name) for name in OWN_COLUMNS])
        table = pa.table(self.columns, schema=schema)
        order = sorted(range(table.num_rows), key=self.columns["row"].__getitem__)
        return table.take(pa.array(order, pa.int64()))


def _reasons(measured: Measured, problems: Sequence[str | None]) -> list[str | None]:
    """Why there is no value; where an original is missing, what became of it."""
    pairs = zip(measured.problems, problems, strict=True)
    return [of_original if own == NO_ORIGINAL else own for own, of_original in pairs]
