"""The archive of inversions that data teams read: Zarr for codes, Parquet for rows, one URL for both.

Needs numpy, zarr, pyarrow, duckdb and fsspec; no torch and no cluster. Read with `open_archive`, write with
`ArchiveWriter`, check with `verify_archive`. This module is the door: other packages import from nowhere behind it.
"""

# What can go wrong.
from lsap_archive.errors import (
    ArchiveError,
    ArchiveKeyError,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    CorruptArchiveError,
    IncompleteRunError,
    QueryError,
    StoreRefusedError,
    StoreUnavailableError,
)

# The explorer; what it stands on is imported once it is asked for.
from lsap_archive.explorer.door import explore_archive
from lsap_archive.explorer.live import LiveDirection, LiveRenderer

# What is written: plans, manifests, tables, arrays.
from lsap_archive.format.arrays import RunArray, code_arrays, noise_arrays, trace_arrays
from lsap_archive.format.chunks import expected_bytes, item_bytes
from lsap_archive.format.code_index import IndexInfo
from lsap_archive.format.documents import decode_document, encode_document, sha256_of, typed, utc_now
from lsap_archive.format.evaluations import EvaluationInfo, EvaluationPlan
from lsap_archive.format.layout import FORMAT_VERSION, Geometry, noise_name, report_key, scratch_key
from lsap_archive.format.manifest import Manifest, ShardCommit, StoredObject
from lsap_archive.format.measurements import MEASURED_COLUMNS, MEASUREMENT_SCHEMA
from lsap_archive.format.plan import PlannedRow, RunPlan
from lsap_archive.format.previews import PREVIEW_BYTES, PREVIEW_SIDE, Preview
from lsap_archive.format.provenance import Provenance
from lsap_archive.format.published_list import duckdb_view
from lsap_archive.format.rows import (
    BETWEEN_WORDS,
    DUPLICATE,
    FAILED,
    FITTED,
    IMAGES_SCHEMA,
    OF_READER,
    OK,
    ROW_SCHEMA,
    SCHEMA_VERSION,
    STATUSES,
    UNSETTLED,
    count_alterations,
    hangs_on_fit,
    to_parquet,
)
from lsap_archive.format.style_layers import StyleLayers
from lsap_archive.format.subject import Subject

# Reading, also run by run and what is retired.
from lsap_archive.reading.archive import Archive
from lsap_archive.reading.nearest.answers import about_answer
from lsap_archive.reading.nearest.asked import ask_nearest, image_of_picture, notes_of_answer, read_code
from lsap_archive.reading.nearest.spaces import Metric, Space
from lsap_archive.reading.opening import is_archive, open_archive, read_anchor
from lsap_archive.reading.retirement import retired_of
from lsap_archive.reading.run_info import RunInfo, Trace
from lsap_archive.reading.run_reader import RunReader
from lsap_archive.reading.sets import SET_SCHEMA, ImageSet

# Files behind a URL, also beside archives, and what must not be shown of a URL.
from lsap_archive.stores.credentials import Secrets, credential_in
from lsap_archive.stores.file_systems import (
    open_file_system,
    read_file,
    refuse_special_file,
    scheme_of,
    storage_errors,
)
from lsap_archive.stores.store import Store

# Checking and mending.
from lsap_archive.upkeep.repair import give_up_unfinished, repair_archive
from lsap_archive.upkeep.repair_report import RepairReport
from lsap_archive.upkeep.verify import verify_archive
from lsap_archive.upkeep.verify_report import Problem, VerifyReport

# Writing, and what a planner subtracts.
from lsap_archive.writing.archive_writer import ArchiveWriter
from lsap_archive.writing.code_index import build_index
from lsap_archive.writing.evaluation_writer import EvaluationWriter
from lsap_archive.writing.overlaps import Overlaps
from lsap_archive.writing.planned_images import (
    PlannedImages,
    committed_rows,
    count_open,
    planned_images,
    published_rows,
)
from lsap_archive.writing.run_writer import RunWriter

__all__ = [
    "BETWEEN_WORDS",
    "DUPLICATE",
    "FAILED",
    "FITTED",
    "FORMAT_VERSION",
    "IMAGES_SCHEMA",
    "MEASURED_COLUMNS",
    "MEASUREMENT_SCHEMA",
    "OF_READER",
    "OK",
    "PREVIEW_BYTES",
    "PREVIEW_SIDE",
    "ROW_SCHEMA",
    "SCHEMA_VERSION",
    "SET_SCHEMA",
    "STATUSES",
    "UNSETTLED",
    "Archive",
    "ArchiveError",
    "ArchiveKeyError",
    "ArchiveMismatchError",
    "ArchiveNotFoundError",
    "ArchiveWriter",
    "CorruptArchiveError",
    "EvaluationInfo",
    "EvaluationPlan",
    "EvaluationWriter",
    "Geometry",
    "ImageSet",
    "IncompleteRunError",
    "IndexInfo",
    "LiveDirection",
    "LiveRenderer",
    "Manifest",
    "Metric",
    "Overlaps",
    "PlannedImages",
    "PlannedRow",
    "Preview",
    "Problem",
    "Provenance",
    "QueryError",
    "RepairReport",
    "RunArray",
    "RunInfo",
    "RunPlan",
    "RunReader",
    "RunWriter",
    "Secrets",
    "ShardCommit",
    "Space",
    "Store",
    "StoreRefusedError",
    "StoreUnavailableError",
    "StoredObject",
    "StyleLayers",
    "Subject",
    "Trace",
    "VerifyReport",
    "about_answer",
    "ask_nearest",
    "build_index",
    "code_arrays",
    "committed_rows",
    "count_alterations",
    "count_open",
    "credential_in",
    "decode_document",
    "duckdb_view",
    "encode_document",
    "expected_bytes",
    "explore_archive",
    "give_up_unfinished",
    "hangs_on_fit",
    "image_of_picture",
    "is_archive",
    "item_bytes",
    "noise_arrays",
    "noise_name",
    "notes_of_answer",
    "open_archive",
    "open_file_system",
    "planned_images",
    "published_rows",
    "read_anchor",
    "read_code",
    "read_file",
    "refuse_special_file",
    "repair_archive",
    "report_key",
    "retired_of",
    "scheme_of",
    "scratch_key",
    "sha256_of",
    "storage_errors",
    "to_parquet",
    "trace_arrays",
    "typed",
    "utc_now",
    "verify_archive",
]
