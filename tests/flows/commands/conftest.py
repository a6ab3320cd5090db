"""What several commands are tried on: the generator of the digits, and an archive of two of them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from lsap_archive import ArchiveWriter, Geometry, PlannedRow, RunPlan, code_arrays
from tasks.editing.fit_direction import SampleOptions, sampled_codes
from tasks.weights.generators import LoadedGenerator, load_generator

GENERATOR = "domains/digits/generator.safetensors"


@pytest.fixture(scope="session")
def digits() -> LoadedGenerator:
    loaded = load_generator(GENERATOR)
    loaded.generator.freeze()
    return loaded


@pytest.fixture(scope="session")
def two_digits(digits: LoadedGenerator, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two synthetic digits, as an encoder would have embedded them."""
    url = str(tmp_path_factory.mktemp("two_digits") / "archive")
    geometry = Geometry(num_ws=digits.config.num_ws, w_dim=digits.config.w_dim, noise_sides=digits.config.noise_sizes)
    writer = ArchiveWriter.open(url, generator_digest=digits.digest, generator_name="digits", geometry=geometry)
    images = (PlannedRow(0, "anna", "/anna.png", "d0"), PlannedRow(1, "bert", "/bert.png", "d1"))
    run = writer.start_run(RunPlan("first", "e4e", "4a", {"noise": "constant"}, {}, images, code_arrays(geometry), 2))
    (w,) = sampled_codes(digits.generator, SampleOptions(2, 0.5))
    codes = digits.generator.expand(w).numpy()
    run.write_shard(0, {"w_plus": codes}, pa.table({"status": ["ok", "ok"]}), attempt="1")
    run.publish({})
    return url
