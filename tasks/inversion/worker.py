"""Embed one shard: read its images, find their codes, measure, write codes and rows to the archive."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import socket
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from lsap_archive import FAILED, ROW_SCHEMA, Archive, RunWriter, count_alterations, open_archive
from lsap_core.encoders.encoder import Encoder
from lsap_core.errors import CheckpointError
from lsap_core.images import as_rgb, from_uint8, to_uint8
from lsap_core.inversion.by_optimization import OptimizationEmbedder, OptimizationSettings
from lsap_core.inversion.inversion import Embedder, EmbeddingSettings, Inversion, Parts
from lsap_core.inversion.kept_noise import as_kept
from lsap_core.presets import Method, encoder_settings, settings_of
from tasks.archived.anchors import open_anchor
from tasks.archived.jobs import outcome_of_committed
from tasks.archived.originals import fit_of
from tasks.archived.previews import ShardPreviews
from tasks.archived.rendering import Preview, Renderer, Stored, kept_noise_of
from tasks.archived.saved_states import SAVE_EVERY_SECONDS, KeptWork
from tasks.errors import OutOfMemoryError, memory_told
from tasks.inversion.batches import batch_that_fits, ran_out, room_of_worker
from tasks.inversion.compiling import Compiling
from tasks.inversion.finding import ShardCodes
from tasks.inversion.reading import READ_TOGETHER, Row, ShardReader
from tasks.inversion.refilling import RefilledRows
from tasks.inversion.request import InversionRequest
from tasks.machine_memory import in_words
from tasks.measuring.of_inversions import measure
from tasks.sources.source import open_source
from tasks.stage import Shard, ShardOutcome
from tasks.weights.devices import memory_held, module_device, place
from tasks.weights.encoders import load_encoder
from tasks.weights.networks import load_networks

logger = logging.getLogger(__name__)

LONGEST_PREVIEW_SIDE = 256
READING = 0.01  # of the work on an image
KEPT_RUNS = 4


class EmbedWorker:
    """Networks loaded once; called with one shard after the other, whichever run it belongs to."""

    def __init__(self, request: InversionRequest, *, save_every_seconds: float = SAVE_EVERY_SECONDS):
        self.request = request
        self.save_every_seconds = save_every_seconds
        self.device = module_device(request.device)
        loaded = request.generator.load()
        self.generator = place(loaded.generator, self.device).freeze()
        self.networks = load_networks(request.networks, self.device)
        self.anchor = open_anchor(request.archive, request.anchor.digest(loaded.digest)).to(self.device)
        self._reader = ShardReader(open_source(request.source), loaded.config)
        self._compiling = Compiling(request.compile, loaded.config, device=self.device.type)
        self._runs: dict[str, RunWriter] = {}  # the last ones: each has all its images
        self._embedders: dict[str, Embedder[Any]] = {}
        self._encoders: dict[tuple[str, str], Encoder] = {}  # the one that the last shard needed: they are large
        self._batch_size = request.batch_size  # of the present shard
        self._progress = self._done = 0.0  # images' worth of work, and images that are settled
        self._spent: defaultdict[str, float] = defaultdict(float)

    def progress(self) -> float:
        """Images' worth of work done on the present shard."""
        return self._progress

    def __call__(self, shard: Shard) -> ShardOutcome:
        """Embed a shard and commit it; one that is committed already is not embedded again."""
        started, began = time.monotonic(), time.time()
        self._progress = self._done = 0.0
        self._spent = defaultdict(float)
        run = self._run(shard.job_id)
        if run.is_committed(shard.index):  # by another command at the same time, or by this one, unheard
            return outcome_of_committed(run, shard, time.monotonic() - started)
        planned = run.planned_rows(shard.index).to_pylist()
        planned = [{**row, "uri": shard.places.get(row["image_id"], row["uri"])} for row in planned]
        image_ids = [row["image_id"] for row in planned]
        self._batch_size = self._batch_size_of(run, shard)
        kept = KeptWork(run, shard.index, every_seconds=self.save_every_seconds)
        previews = ShardPreviews(self.request.previews, self.generator.config.content_box)
        codes = ShardCodes(run, image_ids, kept, self.generator, previews)
        groups = self._reader.read_ahead(
            planned,
            shard.duplicates,
            fit_of(run.plan["config"]),
            known=dict(codes.rows),
            ahead=max(READ_TOGETHER, self._batch_size),
        )
        with contextlib.closing(groups):
            if _ends_early(run):
                self._embed_refilling(groups, codes)
            else:
                while batch := self._next_rows(groups, codes, self._batch_size):
                    self._embed(batch, codes)
        attempt = f"{shard.command}-{uuid.uuid4().hex[:12]}-batch{self._batch_size}"
        rows = [codes.rows[image_id] for image_id in image_ids]
        for row in rows:
            row.follow()
        records = [row.columns for row in rows]
        table = pa.Table.from_pylist(records, schema=_columns_of(rows))
        with self._spending("writing"):
            kept_previews = previews.files(run.rows_of(shard.index), records)
            won = run.write_shard(shard.index, codes.arrays, table, attempt, previews=kept_previews)
            kept.remove()
        return ShardOutcome(
            shard.job_id,
            shard.index,
            won,
            dict(Counter(row.columns["status"] for row in rows)),
            dict(Counter(row.columns["reason"] for row in rows if row.columns["status"] == FAILED)),
            time.monotonic() - started,
            codes.resumed_at,
            dict(self._spent),
            f"{socket.gethostname()}:{os.getpid()}",
            began,
            codes.num_known,
            count_alterations(row.columns for row in rows),
        )

    def preview(self, images_of: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Preview]]:
        """Original, reconstruction and difference of published images, by method and id.

        Args:
            images_of: by name or digest of the method, image_id, uri and digest of each image, and run_id, whose `fit`
                its original is shown with (that of the request where it is not told); an original that this source
                does not have, or not any more with this content, is left out.
        """
        archive = open_archive(self.request.archive)
        previews = {}
        for method, images in images_of.items():
            previews[method] = self._preview(archive, method, images)
        return previews

    def _preview(self, archive: Archive, method: str, images: Sequence[Mapping[str, Any]]) -> dict[str, Preview]:
        fits = {run.run_id: fit_of(run.config) for run in archive.runs}
        renderer, previews = Renderer(self.generator), dict[str, Preview]()
        for image in images:  # one by one: the largest generator leaves room for no more
            row = self._reader.read(image, fits.get(image.get("run_id", ""), self.request.fit))
            if row.image is not None:
                reconstruction = Stored.of_images(renderer, archive, [row.image_id], method).render()
                target = from_uint8(row.pixels[None]).to(self.device)
                pair = (reconstruction.clamp(-1, 1), target)
                # A difference of alpha would be transparent where both agree.
                ours, theirs = map(as_rgb, pair) if target.shape[1] == 4 else pair
                difference = (ours - theirs).abs() - 1  # black where they agree
                pictures = (row.pixels, to_uint8(reconstruction)[0], to_uint8(difference)[0])
                previews[row.image_id] = Preview(*map(_png, pictures))
            self._progress += 1
        return previews

    @contextlib.contextmanager
    def _spending(self, what: str) -> Iterator[None]:
        """Book the time of this block."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._spent[what] += time.monotonic() - started

    def _run(self, run_id: str) -> RunWriter:
        if run_id not in self._runs:
            if len(self._runs) == KEPT_RUNS:
                del self._runs[next(iter(self._runs))]
            self._runs[run_id] = RunWriter.open(self.request.archive, run_id)
        return self._runs[run_id]

    def _next_rows(self, groups: Iterator[list[Row]], codes: ShardCodes, count: int) -> list[Row]:
        """The next images that want codes, at least one; fewer than `count`, or none, at the end of the shard."""
        batch: list[Row] = []
        with self._spending("reading"):
            for rows in groups:
                codes.rows |= {row.image_id: row for row in rows}
                batch += [row for row in rows if row.image is not None]
                settled = sum(1 for row in rows if row.image is None)
                self._done += settled
                self._progress = max(self._progress, self._done + READING * len(batch))
                if len(batch) == count:
                    break
        return batch

    def _embed(self, batch: list[Row], codes: ShardCodes) -> None:
        """Find the codes of some images: together, or where memory runs out in batches half as large, from then on."""
        waiting = deque(batch)
        while waiting:
            some = [waiting[index] for index in range(min(self._batch_size, len(waiting)))]
            try:
                inversion, metrics, seconds = self._found(some, codes)
            except Exception as error:
                if (told := memory_told(error)) is None:
                    raise
                self._halve(codes.run, len(some), told.partition(":")[0], error)
            else:
                codes.fill(some, inversion, metrics, seconds)
                self._done += len(some)
                self._progress = self._done
                for _ in some:
                    waiting.popleft()
                continue
            self._give_memory_back()  # out of the block that holds what was computed so far

    def _embed_refilling(self, groups: Iterator[list[Row]], codes: ShardCodes) -> None:
        """Find the codes of a shard in a batch whose rows are filled again; without memory, in one half as large.

        What is under way then begins again.
        """
        waiting = deque[Row]()
        refilled = self._refilled(codes)
        while True:
            count = max(0, refilled.num_free - len(waiting))
            waiting += self._next_rows(groups, codes, count) if count else []
            coming = [waiting.popleft() for _ in range(min(refilled.num_free, len(waiting)))]
            if not coming and not refilled.under_way:
                return
            try:
                with self._spending("embedding"):
                    refilled.put(coming)
                    rows, inversion, target, seconds = refilled.find()
                inversion, metrics = self._measured(inversion, target, codes)
            except Exception as error:
                if (told := memory_told(error)) is None:
                    raise
                self._halve(codes.run, self._batch_size, told.partition(":")[0], error)
            else:
                codes.fill(rows, inversion, metrics, seconds, others_go_on=bool(refilled.under_way))
                self._done += len(rows)
                continue
            waiting = deque(row for row in codes.rows.values() if row.image is not None)  # what is read and not done
            refilled = self._refilled(codes)
            self._give_memory_back()

    def _refilled(self, codes: ShardCodes) -> RefilledRows:
        embedder = self._embedder(codes.run)
        assert isinstance(embedder, OptimizationEmbedder)

        def tell(images: float) -> None:
            self._progress = self._done + images

        return RefilledRows(embedder, codes, batch_size=self._batch_size, device=self.device, tell=tell)

    def _give_memory_back(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _halve(self, run: RunWriter, tried: int, told: str, error: Exception) -> None:
        """Take fewer images from now on; remembered for whoever comes later.

        Raises:
            OutOfMemoryError: it was one image.
        """
        if (method := self._method_of(run)) is not None:
            ran_out(self.request, method, self.generator.config, tried)
        if tried == 1:
            room = in_words(room_of_worker(self.request, held_bytes=memory_held(self.device)))
            name = run.plan["method"]
            raise OutOfMemoryError(
                f"{name}: not even one image at a time has room ({told}); a worker has room for {room} now"
            ) from error
        self._batch_size = tried // 2
        logger.warning("%s: batches of %d images: with %d %s", run.plan["method"], self._batch_size, tried, told)

    def _batch_size_of(self, run: RunWriter, shard: Shard) -> int:
        if (method := self._method_of(run)) is None:
            return max(1, self.request.batch_size >> shard.halvings)
        held = memory_held(self.device)
        return batch_that_fits(self.request, method, self.generator.config, held_bytes=held, halvings=shard.halvings)

    def _method_of(self, run: RunWriter) -> Method | None:
        """The method of a run as it is asked for; None of one that an earlier command named otherwise."""
        name = run.plan["config"]["method"]
        return next((method for method in self.request.methods if method.name == name), None)

    def _found(self, batch: list[Row], codes: ShardCodes) -> tuple[Inversion, dict[str, list[float]], list[float]]:
        """The inversion of a batch, what is measured of it, and the seconds that each image took."""
        done = self._done

        def tell(share: float) -> None:
            self._progress = done + len(batch) * share

        tell(0.0)
        with self._spending("embedding"):
            inversion, target, seconds = codes.find(self._embedder(codes.run), batch, self.device, tell)
        return *self._measured(inversion, target, codes), seconds

    def _measured(
        self, inversion: Inversion, target: Tensor, codes: ShardCodes
    ) -> tuple[Inversion, dict[str, list[float]]]:
        """The inversion as it will be rendered, and what is measured of it."""
        if self._embedder(codes.run).settings.keeps_noise:  # else it is the generator's already
            inversion = as_kept(inversion, self.generator, kept_noise_of(codes.run.plan["config"]))
        with self._spending("measuring"):
            metrics = measure(
                inversion.reconstruction,
                target,
                inversion.w_plus,
                generator=self.generator,
                anchor=self.anchor,
                networks=self.networks,
            )
        return inversion, metrics

    def _embedder(self, run: RunWriter) -> Embedder[Any]:
        """The method of a run; the last one is kept with what it has found for itself."""
        if run.run_id not in self._embedders:
            self._embedders = {run.run_id: self._built(run)}
        return self._embedders[run.run_id]

    def _built(self, run: RunWriter) -> Embedder[Any]:
        """The method of a run, on the networks of this worker."""
        settings = settings_of(run.plan["config"])
        image_steps = run.num_rows * self._steps_of_all(settings) // self.request.num_workers
        compilation = self._compiling.of(image_steps, batch_size=self._batch_size)
        parts = Parts(self.generator, self.anchor, self.networks.perceptual, compilation=compilation)
        if settings.needs_encoder:
            name, digest = (run.plan["config"]["encoder"][key] for key in ("name", "digest"))
            num_passes = encoder_settings(settings, name).num_passes
            parts = replace(parts, encoder=self._encoder(run.run_id, name, digest), num_passes=num_passes)
        return settings.embedder(parts)

    def _steps_of_all(self, settings: EmbeddingSettings) -> int:
        """Steps that an image takes in all methods of this command: optimizations share what is compiled, encoders
        take next to none."""
        asked = [method.settings for method in self.request.methods]
        together = asked if settings in asked else [settings]  # a run of another command stands for itself
        return sum(each.num_steps for each in together)

    def _encoder(self, run_id: str, name: str, digest: str) -> Encoder:
        """The encoder that a run was planned with.

        Raises:
            CheckpointError: the file holds another one.
        """
        if (name, digest) not in self._encoders:
            loaded = load_encoder(
                self.request.encoders[name],
                generator_config=self.generator.config,
                name=name,
                heads=self.request.heads.get(name),
            )
            if loaded.digest != digest:
                raise CheckpointError(
                    f"{self.request.encoders[name]} holds encoder {loaded.digest}, run {run_id} was planned with "
                    f"{digest}: run the same command again"
                )
            encoder = loaded.encoder.requires_grad_(False)
            self._encoders = {(name, digest): place(encoder, self.device)}
        return self._encoders[name, digest]


def _ends_early(run: RunWriter) -> bool:
    """Whether images of a run may end before their last step, each for itself."""
    settings = settings_of(run.plan["config"])
    return isinstance(settings, OptimizationSettings) and settings.stop_at_lpips is not None


def _columns_of(rows: Sequence[Row]) -> pa.Schema:
    names = {name for row in rows for name in row.columns}
    return pa.schema([column for column in ROW_SCHEMA if column.name in names])


def _png(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((LONGEST_PREVIEW_SIDE, LONGEST_PREVIEW_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
