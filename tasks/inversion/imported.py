"""Codes from elsewhere as a run of an archive: edited, measured and queried like those that were found here."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lsap_archive import (
    BETWEEN_WORDS,
    FAILED,
    OK,
    ROW_SCHEMA,
    Archive,
    ArchiveWriter,
    PlannedRow,
    RunPlan,
    code_arrays,
    is_archive,
    open_archive,
    sha256_of,
)
from lsap_core.alignment.anchor import Anchor
from lsap_core.errors import CheckpointError, ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.images import from_uint8, quantize, to_uint8
from lsap_core.presets import METHODS
from tasks.archived.anchors import AnchorOptions, keep_anchor, open_anchor
from tasks.archived.jobs import provenance_of, publish_made
from tasks.archived.opening import geometry_of, open_writer
from tasks.archived.previews import ShardPreviews
from tasks.archived.rendering import CONSTANT_NOISE
from tasks.archived.runs import IMPORTED, config_of
from tasks.digests import digest_of
from tasks.errors import BadImageError
from tasks.inversion.code_files import (
    CodeFile,
    CodeSpace,
    FoundCodes,
    check_ids,
    find_code_files,
    names_of_files,
    read_codes,
)
from tasks.measuring.measures import MEASURES, Batch
from tasks.pictures.decoding import DecodedImage, Fit, decode_image, place_content
from tasks.sources.items import SourceItem
from tasks.sources.source import PlannedImage, Source, digest_bytes, open_source, plan_items
from tasks.weights.devices import module_device, place
from tasks.weights.generators import GeneratorFile, LoadedGenerator

NOT_FINITE = "non_finite_code"

_COMPARED_TOGETHER = 1024  # codes of the archive that are in memory at once

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_COLUMNS = (
    *("image_id", "status", "reason", "message", "duplicate_of", "width", "height", "altered", "noise"),
    *("mse", "sncd", "w_distance"),
)


@dataclass(frozen=True)
class ImportRequest:
    """Which codes become a run of an archive.

    Attributes:
        archive: URL; made if there is none.
        files: paths or URLs with codes, folders of them, or manifests; see `find_code_files`.
        generator: the generator's weights.
        method: what the archive calls whatever has found them.
        space: of the codes, where their shape does not tell; see `read_codes`.
        image_ids: of the images, in the order of the codes; empty for those that the files or the source tell.
        source: the images that the codes are of, or None. Without ids, codes without names are those of its images in
            the order of their ids.
        fit: what is done with images of another shape.
        anchor: the reference of SNCD, where the archive has none of an earlier inversion.
        batch_size: images measured together.
        shard_rows: images of a shard.
        device: "auto", "cpu", "cuda", ...
        previews: pixels of the longer side of the small pictures that are kept; 0 keeps none.
    """

    archive: str
    files: tuple[str, ...]
    generator: GeneratorFile
    method: str
    space: CodeSpace | None = None
    image_ids: tuple[str, ...] = ()
    source: str | None = None
    fit: Fit = "refuse"
    anchor: AnchorOptions = field(default_factory=AnchorOptions)
    batch_size: int = 16
    shard_rows: int = 512
    device: str = "auto"
    previews: int = 0


@dataclass
class Imported:
    """What came of it.

    Attributes:
        run_id: of the new run; None where the archive had all of the codes.
        by_status: rows by status.
        known: codes that the archive had already.
        space: of the codes.
        notes: what whoever asked should know, a sentence each.
    """

    run_id: str | None
    by_status: dict[str, int]
    known: int
    space: CodeSpace
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Code:
    """A code with what is known of its image."""

    image: PlannedImage
    w_plus: Tensor  # [K, D]


def import_codes(request: ImportRequest) -> Imported:
    """Write codes into an archive, as one published run; the same codes again change nothing.

    Raises:
        ConfigError: the method's name is taken or cannot be one.
        CheckpointError, ShapeError: no codes of this generator, or names and images do not go together with them.
        ArchiveMismatchError: the archive belongs to another generator.
        ArchiveKeyError: it has other codes of an image by this method.
        SourceError: the source cannot be read.
    """
    _check_method(request.method)
    loaded = request.generator.load()
    files = find_code_files(request.files)
    found = [_read_file(file, loaded.config, request.space) for file in files]
    space: CodeSpace = "w" if all(one.space == "w" for one in found) else "w_plus"
    notes = [f"{what} of the files were not taken" for what in sorted({what for one in found for what in one.left_out})]
    if notes:
        notes[-1] += ": images are shown with the generator's constant noise"
    codes = _with_images(request, [file.path for file in files], found)
    writer = open_writer(request.archive, loaded)
    writer.store.check_writable()
    generator = place(loaded.generator, module_device(request.device)).freeze()
    anchor = _anchor_of(request, writer, generator, loaded.digest)
    config = {
        "method": request.method,
        "title": request.method,
        "generator": loaded.digest,
        "anchor": anchor,
        "fit": request.fit,
        "noise": CONSTANT_NOISE,
        IMPORTED: {"space": space},
    }
    method_digest = digest_of(config)
    known = _known_already(open_archive(request.archive), method_digest, codes)
    left = [code for code in codes if code.image.image_id not in known]
    if not left:
        return Imported(None, {}, len(known), space, notes)
    config[IMPORTED] = {"space": space, "files": [one.sha256 for one in found]}
    plan = _plan(request, config, method_digest, left, loaded)
    first, repetition = plan.run_id, 1
    while writer.is_taken(plan.run_id):  # its shards were retired
        repetition += 1
        plan = replace(plan, run_id=f"{first}.{repetition}")
    work = _Import(request, generator, open_anchor(request.archive, anchor))
    by_status = work.write(writer, plan, left)
    if work.without_mse:
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(work.without_mse.items()))
        notes.append(f"of these images the originals could not be compared with: {told}")
    return Imported(plan.run_id, by_status, len(known), space, notes)


def _check_method(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"method {name!r} is no usable name; wanted letters, digits and _ . + -, such as e4e_official"
        )
    if name in METHODS:
        raise ConfigError(
            f"method {name} is one that is run here; give imported codes another name, such as {name}_imported"
        )


def _read_file(file: CodeFile, config: GeneratorConfig, space: CodeSpace | None) -> FoundCodes:
    """Its codes, by the name that a manifest gives them.

    Raises:
        CheckpointError: as `read_codes`, or the manifest names one image for several codes.
    """
    found = read_codes(file.path, config, space=space)
    if file.image_id is None:
        return found
    if len(found.w_plus) != 1:
        raise CheckpointError(f"{file.path} holds {len(found.w_plus)} codes; a manifest wants one for {file.image_id}")
    return replace(found, names=(file.image_id,))


def _with_images(request: ImportRequest, paths: Sequence[str], found: Sequence[FoundCodes]) -> list[_Code]:
    """Every code with the image that it is of."""
    codes = [code for one in found for code in one.w_plus]
    told = _told_ids(request, found)
    if request.source is None:
        ids = told if told is not None else _ids_of_files(paths, found)
        check_ids(ids)
        return [
            _Code(PlannedImage(image_id, f"code:{image_id}", f"code:{_digest_of_code(code)}"), code)
            for image_id, code in zip(ids, codes, strict=True)
        ]
    with open_source(request.source) as source:
        items = {item.image_id: item for item in source.items()}
        told = told or _ids_by_file(items, paths, found)
        if told is None and len(items) != len(codes):
            raise CheckpointError(
                f"{request.source} has {len(items)} images, and there are {len(codes)} codes: name the images of the "
                "codes, one id a line (--ids)"
            )
        ids = list(items) if told is None else [_id_in(items, one) for one in told]
        check_ids(ids)
        return _read(source, items, dict(zip(ids, codes, strict=True)))


def _read(source: Source, items: Mapping[str, SourceItem], codes: Mapping[str, Tensor]) -> list[_Code]:
    chosen = [item for image_id, item in items.items() if image_id in codes]
    return [_Code(image, codes[image.image_id]) for image in plan_items(source, chosen)]


def _told_ids(request: ImportRequest, found: Sequence[FoundCodes]) -> list[str] | None:
    """Ids that somebody has said: whoever asks, else the files."""
    count = sum(len(one.w_plus) for one in found)
    if request.image_ids:
        if len(request.image_ids) != count:
            raise CheckpointError(f"{len(request.image_ids)} image ids for {count} codes; wanted one for each")
        return list(request.image_ids)
    names = [one.names for one in found]
    return [name for of_file in names for name in of_file or ()] if all(names) else None


def _ids_of_files(paths: Sequence[str], found: Sequence[FoundCodes]) -> list[str]:
    ids: list[str] = []
    for name, one in zip(names_of_files(paths), found, strict=True):
        count = len(one.w_plus)
        ids += one.names or ([name] if count == 1 else [f"{name}/{index:06d}" for index in range(count)])
    return ids


def _ids_by_file(
    items: Mapping[str, SourceItem], paths: Sequence[str], found: Sequence[FoundCodes]
) -> list[str] | None:
    """Images that many files of one code each are named after; None where their names mean no image at all.

    Where files have the same name, as projected_w.npz and 0.pt in a folder for each image, the folders' count.

    Raises:
        CheckpointError: names of some files mean an image, and those of others none or several.
    """
    if len(paths) < 2 or any(len(one.w_plus) != 1 or one.names for one in found):
        return None
    pure = [PurePosixPath(path) for path in paths]
    alike = Counter(path.stem for path in pure)
    names = [path.stem if alike[path.stem] == 1 else path.parent.name for path in pure]
    bases = {name for image_id in items for name in (image_id.rsplit("/", 1)[-1], _stem(image_id))}
    if not any(name in bases for name in names):
        return None
    return [_id_in(items, name) for name in names]


def _id_in(items: Mapping[str, SourceItem], name: str) -> str:
    """The image of a source that a name means: its id, or the only one that is it but for folder or suffix."""
    if name in items:
        return name
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    fitting = [one for one in items if base in (one.rsplit("/", 1)[-1], _stem(one))]
    if len(fitting) == 1:
        return fitting[0]
    what = "no image" if not fitting else f"{len(fitting)} images ({', '.join(fitting[:3])})"
    raise CheckpointError(f"a code is that of {name!r}, and the source has {what} of that name: pass the ids (--ids)")


def _stem(image_id: str) -> str:
    return image_id.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _digest_of_code(code: Tensor) -> str:
    return sha256_of(code.numpy().tobytes())


def _anchor_of(request: ImportRequest, writer: ArchiveWriter, generator: Generator, digest: str) -> str:
    """The anchor of the archive's newest inversion, so that values of SNCD can be compared; else the one asked for."""
    if is_archive(request.archive):
        for run in reversed(open_archive(request.archive).runs):
            if run.subject is None and (anchor := config_of(run).anchor) is not None and writer.has_anchor(anchor):
                return anchor
    return keep_anchor(writer, generator, digest, request.anchor)


def _known_already(archive: Archive, method_digest: str, codes: Sequence[_Code]) -> set[str]:
    """Ids of codes that the archive has.

    Raises:
        ConfigError: it has another code of an image.
    """
    runs = {run.run_id for run in archive.runs if run.method_digest == method_digest}
    if not runs:
        return set()
    rows = archive.rows(["run_id", "image_id", "status"], history=True).to_pylist()
    there = {row["image_id"]: row["status"] for row in rows if row["run_id"] in runs}
    asked = [code for code in codes if code.image.image_id in there]
    good = [code for code in asked if there[code.image.image_id] != FAILED]
    for start in range(0, len(good), _COMPARED_TOGETHER):
        part = good[start : start + _COMPARED_TOGETHER]
        kept = archive.codes([code.image.image_id for code in part], method_digest)
        for code, own in zip(part, kept, strict=True):
            if not np.array_equal(code.w_plus.numpy(), own):
                raise ConfigError(
                    f"the archive has another code of {code.image.image_id} that was imported under this name: import "
                    "this one under another (--method)"
                )
    return {code.image.image_id for code in asked}


def _plan(
    request: ImportRequest,
    config: dict[str, Any],
    method_digest: str,
    codes: Sequence[_Code],
    loaded: LoadedGenerator,
) -> RunPlan:
    images = [code.image for code in codes]
    rows = tuple(
        PlannedRow(row, image.image_id, image.uri, image.digest, image.version) for row, image in enumerate(images)
    )
    content = [
        method_digest,
        request.shard_rows,
        [(code.image.image_id, _digest_of_code(code.w_plus)) for code in codes],
    ]
    return RunPlan(
        run_id=f"{request.method}-{digest_of([content, [image.digest for image in images]])[:16]}",
        method=request.method,
        method_digest=method_digest,
        config=config,
        provenance=provenance_of(loaded.digest),
        rows=rows,
        arrays=code_arrays(geometry_of(loaded.config)),
        shard_rows=request.shard_rows,
    )


class _Import:
    """Codes on their way into the archive, shard by shard."""

    def __init__(self, request: ImportRequest, generator: Generator, anchor: Anchor):
        self.generator = generator
        self.device = generator.mapping.w_avg.device
        self.anchor = anchor.to(self.device)
        self.request = request
        self.without_mse: Counter[str] = Counter()

    def write(self, writer: ArchiveWriter, plan: RunPlan, codes: Sequence[_Code]) -> dict[str, int]:
        """Write what is missing of the run and publish it; returns all of its rows by status."""
        run = writer.run(plan.run_id) if writer.is_planned(plan.run_id) else writer.start_run(plan)
        schema = pa.schema([ROW_SCHEMA.field(name) for name in _COLUMNS])
        with contextlib.ExitStack() as opened:
            spec = self.request.source
            source = None if spec is None else opened.enter_context(open_source(spec))
            for shard in run.missing_shards():
                some = [codes[row] for row in run.rows_of(shard)]
                previews = ShardPreviews(self.request.previews, self.generator.config.content_box)
                records = self._records(some, source, previews)
                w_plus = torch.stack([code.w_plus for code in some]).numpy()
                table = pa.Table.from_pylist(records, schema=schema)
                kept = previews.files(run.rows_of(shard), records)
                run.write_shard(shard, {"w_plus": w_plus}, table, f"import-{plan.run_id[-16:]}", previews=kept)
        publish_made(self.request.archive, plan.run_id)
        rows = open_archive(self.request.archive).rows(["run_id", "status"], history=True).to_pylist()
        return dict(Counter(row["status"] for row in rows if row["run_id"] == plan.run_id))

    def _records(self, codes: Sequence[_Code], source: Source | None, previews: ShardPreviews) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        for start in range(0, len(codes), self.request.batch_size):
            records += self._measured(codes[start : start + self.request.batch_size], source, previews, start)
        return records

    @torch.no_grad()
    def _measured(
        self, codes: Sequence[_Code], source: Source | None, previews: ShardPreviews, start: int
    ) -> list[dict[str, Any]]:
        """Rows of some codes, which begin at a place of the shard, each with what can be measured of it."""
        records = [dict.fromkeys(_COLUMNS) | {"image_id": code.image.image_id, "status": OK} for code in codes]
        w_plus = torch.stack([code.w_plus for code in codes]).to(self.device)
        is_finite = w_plus.isfinite().flatten(1).all(dim=1)
        for record, finite in zip(records, is_finite.tolist(), strict=True):
            if finite:
                record["noise"] = CONSTANT_NOISE
            else:
                message = "the code has values that are not finite: take this image out, or embed it here"
                record |= {"status": FAILED, "reason": NOT_FINITE, "message": message}
        good = [at for at, finite in enumerate(is_finite.tolist()) if finite]
        if good:
            batch = Batch(self.generator, w_plus[good], anchor=self.anchor)
            self._fill(records, good, batch, ("sncd", "w_distance"))
        originals = {} if source is None else self._originals(source, codes, records, good)
        if originals:
            places = list(originals)
            target = from_uint8(np.stack([originals[at] for at in places])).to(self.device)
            rendered = self.generator.synthesize(w_plus[places])
            images = quantize(rendered)
            self._fill(records, places, Batch(self.generator, w_plus[places], images, target), ("mse",))
            previews.add([start + at for at in places], to_uint8(rendered), list(originals.values()))
        if previews and (others := [at for at in good if at not in originals]):
            previews.add([start + at for at in others], to_uint8(self.generator.synthesize(w_plus[others])))
        return records

    def _fill(self, records: list[dict[str, Any]], places: list[int], batch: Batch, names: Sequence[str]) -> None:
        for name in names:
            for at, value in zip(places, MEASURES[name].values(batch).tolist(), strict=True):
                records[at][name] = value

    def _originals(
        self, source: Source, codes: Sequence[_Code], records: list[dict[str, Any]], good: Sequence[int]
    ) -> dict[int, np.ndarray]:
        """Pixels of the originals that can be compared with, by place."""
        config, found = self.generator.config, dict[int, np.ndarray]()
        for at in good:
            try:
                image = self._decoded(source, codes[at].image)
            except BadImageError as error:
                self.without_mse[error.reason] += 1
                continue
            notes = BETWEEN_WORDS.join(image.notes)
            records[at] |= {"width": image.width, "height": image.height, "altered": notes}
            found[at] = place_content(image.pixels, size=config.size, content_box=config.content_box)
        return found

    def _decoded(self, source: Source, planned: PlannedImage) -> DecodedImage:
        if planned.problem is not None:
            raise planned.problem
        data = source.read(SourceItem(planned.image_id, planned.uri))
        if digest_bytes(data) != planned.digest:
            raise BadImageError("changed", f"{planned.image_id} has changed since it was listed: import it again")
        config = self.generator.config
        return decode_image(data, size=config.content_size, channels=config.image_channels, fit=self.request.fit)
