"""Where everything lies in an archive: names, keys, version, geometry.

    archive.json                      the generator and the geometry; create-only
    sequence/0000000001.json          a number that was given to a manifest; create-only, so none is given twice
    anchors/<digest>.npz              kept anchors
    _copy/anchors/<digest>.json       each once more, for repair; its document carries its own digest
    calibrations/<digest>.json        kept strengths of edits of equal effect; create-only
    calibrating/<digest>/<part>.json  what was measured for one that is under way; create-only, removed once it is kept
    seen/<digest>.parquet             what a network saw of some original images; create-only
    sets/<digest>.json                numbers of whole sets of images over states of several evaluations; create-only
    reports/<name>                    reports
    published/...                     what is published, for readers that know only Parquet: `format.published_list`
    versions/<digest>.parquet         images that were read again and had not changed: address, version and digest
    runs/<run_id>/plan.json           what the run works on; create-only, its presence means "may be worked"
    runs/<run_id>/images.parquet      the planned images, one row each
    runs/<run_id>/zarr.json           a Zarr v3 group, sized up front:
        w_plus/                         [N, K, D] float32
        noise_00/ noise_01/ ...         [N, h, w] float32, where the plan declares them
        trace/                          [N, steps, terms] float32, where the plan declares it
        <name>/                         [N, ...], any other array that the plan declares, such as features
        image_id/ step/ term/           what stands along dimensions: ids of the images, steps and terms of a trace
    runs/<run_id>/rows/shard-00000.parquet
    runs/<run_id>/images/00000000.png an edited image by its row, where an edit run keeps them
    runs/<run_id>/previews/shard-00000.parquet    small pictures of the shard's images, where the run keeps them
    runs/<run_id>/_staging/00000/<attempt>/...   what an attempt wrote; removed when the run is published
    runs/<run_id>/_commit/00000.json  which attempt won the shard; create-only
    runs/<run_id>/_manifest.json      the run is published: files, sizes, digests; create-only, last
    runs/<run_id>/_copy/...           once more, for repair: manifest, plan, images, coordinates, every zarr.json
    runs/<run_id>/_retired/00000.json readers see nothing of this shard any more; create-only
    runs/<run_id>/_retired/run.json   nor of the whole run; create-only; so is given up what never was published
    runs/<run_id>/_retired/twice.json rows that older runs have with the same content count there; create-only
    evaluations/<id>/plan.json        what was asked to be measured; create-only
    evaluations/<id>/shards/00000.parquet    what was measured; create-only, its presence is the commit
    evaluations/<id>/states/00000.npz what a set-level number is made from, where one was asked for; create-only
    evaluations/<id>/_manifest.json   the evaluation is published: files, sizes, digests, summary; create-only, last
    evaluations/<id>/_copy/...        once more, for repair: the manifest and plan.json
    evaluations/<id>/_retired.json    readers see nothing of this evaluation any more; create-only

A refinement or an edit is a run like any other, beside the run that it is made of: its plan names that run as
`subject`, its rows and shards are those of the subject, and it keeps no noise maps: they are the inversion's. A
refinement refines an inversion and keeps what it found beside the codes; an edit is of an inversion or of a refinement
and has no trace. One that makes up for retired shards of another has only these shards.

Keys are relative to the archive's root and use "/". N images, K = num_ws, D = w_dim, h x w = size of a noise map.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.format.documents import Size, typed

FORMAT_NAME = "lsap-archive"
FORMAT_VERSION = 7
"""Version 2 has edit runs and evaluations, version 3 retired shards, version 4 arrays that plans and manifests declare,
version 5 refinements and arrays of float16, version 6 compressed arrays and chunks that fit small runs, version 7
previews, coordinates, a name of its own for each dimension, and lists of what is published.

Older archives are read and written further. Every manifest and plan has the version of whoever wrote it, so an archive
may hold several; archive.json has that of its first day.
"""
READABLE_VERSIONS = (1, 2, 3, 4, 5, 6, 7)

ARCHIVE_KEY = "archive.json"
SEQUENCE_PREFIX = "sequence"
RUNS_PREFIX = "runs"
EVALUATIONS_PREFIX = "evaluations"
ANCHORS_PREFIX = "anchors"
CALIBRATIONS_PREFIX = "calibrations"
SEEN_PREFIX = "seen"
CALIBRATING_PREFIX = "calibrating"
SETS_PREFIX = "sets"
VERSIONS_PREFIX = "versions"
PUBLISHED_PREFIX = "published"
W_PLUS = "w_plus"
TRACE = "trace"
INNER_CHUNK_ROWS = 16
"""Rows of one Zarr inner chunk at most, the unit of a read: 16 to 32 measured best for W+ codes."""
INNER_CHUNK_BYTES = 4 * 2**20
"""An inner chunk is no larger, unless one row is: large noise maps have fewer rows in it."""
LARGEST_ITEM_BYTES = 16 * INNER_CHUNK_BYTES
"""One image's part of an array; a reader makes room for no larger chunk."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_FILE = re.compile(r"\w[\w.-]{0,254}(/\w[\w.-]{0,254}){0,15}", re.ASCII)


@dataclass(frozen=True)
class Geometry:
    """Sizes of the generator's inputs, which every run of an archive shares.

    Attributes:
        num_ws: K, rows of a W+ code.
        w_dim: D, width of a row.
        noise_sides: of each noise map, one per convolution, the side, e.g. (4, 8, 8, 16, 16), or height and width where
            they differ, e.g. ((4, 2), (8, 4), (8, 4)); equal ones given as a pair are kept as the side.
    """

    num_ws: Size
    w_dim: Size
    noise_sides: tuple[Size | tuple[Size, Size], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_sides", tuple(map(_sides, self.noise_sides)))
        if self.num_ws < 1 or self.w_dim < 1 or any(min(size) < 1 for size in self.noise_sizes):
            raise ArchiveMismatchError(f"{self}: num_ws, w_dim and every noise side must be at least 1")
        largest = max(self.num_ws * self.w_dim, *(height * width for height, width in self.noise_sizes), 0)
        if 4 * largest > LARGEST_ITEM_BYTES:
            raise ArchiveMismatchError(f"{self}: codes and noise maps of at most {LARGEST_ITEM_BYTES} bytes are wanted")

    @property
    def noise_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each noise map."""
        return tuple((one, one) if isinstance(one, int) else one for one in self.noise_sides)

    def to_dict(self) -> dict[str, Any]:
        """The geometry as JSON values."""
        return {"num_ws": self.num_ws, "w_dim": self.w_dim, "noise_sides": list(self.noise_sides)}

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Geometry:
        """The geometry that `to_dict` wrote.

        Raises:
            CorruptArchiveError, ArchiveMismatchError: it is none, or none that can be; the message begins with where.
        """
        found: Geometry = typed(cls, values, where)
        return found


def _sides(given: int | tuple[int, int]) -> int | tuple[int, int]:
    """The side of a noise map, or its height and width where they differ."""
    if not isinstance(given, tuple):
        return int(given)
    height, width = map(int, given)
    return height if height == width else (height, width)


def checked_name(name: str, what: str) -> str:
    """`name`, if it can be one part of a key.

    Args:
        name: 1 to 200 letters, digits, dots, dashes and underscores, beginning with a letter or digit.
        what: what it names, for the message.

    Raises:
        ArchiveMismatchError: it holds anything else, such as a slash.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ArchiveMismatchError(
            f"{what} {name!r}: 1 to 200 letters, digits, '.', '-', '_' are wanted, first a letter or digit"
        )
    return name


def checked_file_name(name: str, where: str) -> str:
    """`name`, if it can be that of a file inside a run's or evaluation's folder.

    Archives are handed on: what a manifest names is read, copied and exported, so it must lie where it belongs.

    Args:
        name: parts of letters, digits, dots, dashes and underscores, joined by "/", none beginning with a dot or dash.
        where: the document that names it, for the message.

    Raises:
        ArchiveMismatchError: it is anything else, such as "../other" or "/etc/passwd".
    """
    if not isinstance(name, str) or not _FILE.fullmatch(name):
        raise ArchiveMismatchError(
            f"{where} names the file {name!r}, names such as 'w_plus/c/0/0/0' are wanted: "
            "it was not written by lsap_archive; do not use this archive"
        )
    return name


def sequence_key(number: int) -> str:
    """Key that says that a number was given to a manifest."""
    return f"{SEQUENCE_PREFIX}/{number:010d}.json"


def noise_name(index: int) -> str:
    """Name of the array of noise maps of convolution `index`."""
    return f"noise_{index:02d}"


MANIFEST_NAME = "_manifest.json"
PLAN_NAME = "plan.json"
"""Manifest and plan, relative to the folder of a run or evaluation."""


STAGING_FOLDER, COMMIT_FOLDER = "_staging", "_commit"
"""What attempts wrote until the run is published, and which of them won; in the same folder."""
COPY_FOLDER, RETIRED_FOLDER = "_copy", "_retired"
ANCHOR_COPIES_PREFIX = f"{COPY_FOLDER}/{ANCHORS_PREFIX}"
"""Copies for repair, and what says that shards of a run, or all of it, are retired; in the same folder."""


def prefix_of(kind: str, name: str) -> str:
    """Folder of a run or an evaluation.

    Args:
        kind: "run" or "evaluation".
        name: its id.
    """
    return f"{kind}s/{checked_name(name, f'{kind} id')}"


def run_prefix(run_id: str) -> str:
    """Folder of a run."""
    return prefix_of("run", run_id)


def retired_name(kind: str, shard: int | None = None) -> str:
    """What retires a run or evaluation, or a shard of a run, relative to its folder."""
    if kind == "evaluation":
        return "_retired.json"
    return f"{RETIRED_FOLDER}/{'run' if shard is None else f'{shard:05d}'}.json"


TWICE_NAME = f"{RETIRED_FOLDER}/twice.json"
"""What says that rows of a run which older ones have with the same content count there, relative to its folder."""


def rows_of_shard(shard: int, shard_rows: int, num_rows: int) -> range:
    """Rows of a shard; the last one may have fewer."""
    return range(shard * shard_rows, min((shard + 1) * shard_rows, num_rows))


def scratch_key(run_id: str, shard: int, name: str) -> str:
    """Key for what a worker notes while it works at a shard; removed when the run is published."""
    return f"{run_prefix(run_id)}/{STAGING_FOLDER}/{shard:05d}/{name}"


def commit_name(shard: int) -> str:
    """Marker that says which attempt won the shard, relative to the run's folder."""
    return f"{COMMIT_FOLDER}/{shard:05d}.json"


IMAGES_NAME = "images.parquet"
"""The planned images, relative to the run's folder."""


def copy_name(name: str) -> str:
    """Where the copy of an object lies that a whole run hangs on, relative to the run's folder."""
    return f"{COPY_FOLDER}/{name}"


IMAGES_FOLDER = "images"
"""Where the images of an edit run lie, relative to the run's folder."""


ROWS_FOLDER = "rows"
"""Where the rows of a run lie, relative to its folder."""


def rows_name(shard: int) -> str:
    """Parquet file of a shard's rows, relative to the run's folder."""
    return f"{ROWS_FOLDER}/shard-{shard:05d}.parquet"


PREVIEWS_FOLDER = "previews"
"""Where small pictures of a run's images lie, relative to its folder."""


def previews_name(shard: int) -> str:
    """Parquet file of a shard's previews, relative to the run's folder."""
    return f"{PREVIEWS_FOLDER}/shard-{shard:05d}.parquet"


def attempt_name(shard: int, attempt: str) -> str:
    """Folder of one attempt's staged objects, relative to the run's folder."""
    return f"{STAGING_FOLDER}/{shard:05d}/{attempt}"


def chunk_name(array: str, shard: int, num_dimensions: int) -> str:
    """The one Zarr object that a shard owns in an array, relative to the run's folder."""
    return f"{array}/c/{shard}" + "/0" * (num_dimensions - 1)


def image_name(row: int) -> str:
    """PNG file of a row's image, relative to the run's folder."""
    return f"{IMAGES_FOLDER}/{row:08d}.png"


def evaluation_prefix(evaluation_id: str) -> str:
    """Folder of an evaluation."""
    return prefix_of("evaluation", evaluation_id)


def measurements_name(shard: int) -> str:
    """Parquet file of a shard's measurements, relative to the evaluation's folder."""
    return f"shards/{shard:05d}.parquet"


def state_name(shard: int) -> str:
    """Sums of a shard that a set-level number is made from, relative to the evaluation's folder."""
    return f"states/{shard:05d}.npz"


def calibration_key(digest: str) -> str:
    """Key of a kept calibration."""
    return f"{CALIBRATIONS_PREFIX}/{checked_name(digest, 'calibration digest')}.json"


def calibration_parts(digest: str) -> str:
    """Folder of what was measured for a calibration that is under way."""
    return f"{CALIBRATING_PREFIX}/{checked_name(digest, 'calibration digest')}"


def calibration_part_key(digest: str, name: str) -> str:
    """Key of what was measured of some images for a calibration."""
    return f"{calibration_parts(digest)}/{checked_name(name, 'part of a calibration')}.json"


def seen_key(digest: str) -> str:
    """Key of what a network saw of originals, named by the digest of which network, which images and how placed."""
    return f"{SEEN_PREFIX}/{checked_name(digest, 'digest of what was seen')}.parquet"


def set_key(digest: str) -> str:
    """Key of the numbers of a set of images, named by the digest of which states they were made from."""
    return f"{SETS_PREFIX}/{checked_name(digest, 'digest of a set')}.json"


def versions_key(digest: str) -> str:
    """Key of images that were read again, named by the digest of the file."""
    return f"{VERSIONS_PREFIX}/{checked_name(digest, 'digest of versions')}.parquet"


def anchor_key(digest: str) -> str:
    """Key of a kept anchor."""
    return f"{ANCHORS_PREFIX}/{checked_name(digest, 'anchor digest')}.npz"


def anchor_copy_key(digest: str) -> str:
    """Key of the copy of a kept anchor."""
    return f"{ANCHOR_COPIES_PREFIX}/{checked_name(digest, 'anchor digest')}.json"


def report_key(name: str) -> str:
    """Key of a report; its name may hold slashes."""
    return f"reports/{name}"
