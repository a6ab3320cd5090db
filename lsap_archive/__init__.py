"""The archive of inversions that data teams read: Zarr for codes, Parquet for rows, one URL for both.

Needs numpy, zarr, pyarrow, duckdb and fsspec; no torch and no cluster. Read with `open_archive`, write with
`ArchiveWriter`, check with `verify_archive`.
"""

from lsap_archive.errors import (
    ArchiveError,
    ArchiveKeyError,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    CorruptArchiveError,
    IncompleteRunError,
    QueryError,
    StoreUnavailableError,
)
from lsap_archive.format.evaluations import EvaluationInfo, EvaluationPlan
from lsap_archive.format.layout import FORMAT_VERSION, Geometry
from lsap_archive.format.manifest import Manifest, ShardCommit, StoredObject
from lsap_archive.format.measurements import MEASUREMENT_SCHEMA
from lsap_archive.format.plan import PlannedRow, RunPlan
from lsap_archive.format.provenance import Provenance
from lsap_archive.format.rows import IMAGES_SCHEMA, ROW_SCHEMA, SCHEMA_VERSION, STATUSES
from lsap_archive.format.subject import Subject
from lsap_archive.reading.archive import Archive, RunInfo, Trace, open_archive
from lsap_archive.reading.run_reader import RunReader
from lsap_archive.stores.store import Store
from lsap_archive.upkeep.repair import repair_archive
from lsap_archive.upkeep.repair_report import RepairReport
from lsap_archive.upkeep.verify import verify_archive
from lsap_archive.upkeep.verify_report import Problem, VerifyReport
from lsap_archive.writing.archive_writer import ArchiveWriter
from lsap_archive.writing.evaluation_writer import EvaluationWriter
from lsap_archive.writing.run_writer import RunWriter

__all__ = [
    "FORMAT_VERSION",
    "IMAGES_SCHEMA",
    "MEASUREMENT_SCHEMA",
    "ROW_SCHEMA",
    "SCHEMA_VERSION",
    "STATUSES",
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
    "IncompleteRunError",
    "Manifest",
    "PlannedRow",
    "Problem",
    "Provenance",
    "QueryError",
    "RepairReport",
    "RunInfo",
    "RunPlan",
    "RunReader",
    "RunWriter",
    "ShardCommit",
    "Store",
    "StoreUnavailableError",
    "StoredObject",
    "Subject",
    "Trace",
    "VerifyReport",
    "open_archive",
    "repair_archive",
    "verify_archive",
]
