"""The page of refinements: paired with their inversions, with pictures from the archive."""

from __future__ import annotations

import pyarrow as pa

from lsap_archive import ArchiveWriter, Geometry, PlannedRow, RunPlan, Subject, code_arrays, open_archive
from tasks.reports.refinement.write import refinement_lines, refinement_table

URL = "memory://refinement-lines"


def test_refinements_are_compared_with_the_same_images_of_their_inversion() -> None:
    """Image c was not refined: it counts on neither side. What the inversion has no value of is a gap, not a shift."""
    geometry = Geometry(num_ws=2, w_dim=3, noise_sides=())
    writer = ArchiveWriter.open(URL, generator_digest="9f", generator_name="tiny", geometry=geometry)
    rows = tuple(PlannedRow(row, name, f"/{name}.png", name) for row, name in enumerate("abc"))
    subject = Subject("first", "e4e", "4a", None, None, refiner="pti")
    plan = RunPlan("first", "e4e", "4a", {}, {}, rows, code_arrays(geometry))
    refined = RunPlan("second", "e4e/pti", "5b", {}, {}, rows, code_arrays(geometry), subject=subject)
    values = {"first": ([0.4, 0.6, 9.0], ["ok"] * 3), "second": ([0.1, 0.2, None], ["ok", "ok", "failed"])}
    for one in (plan, refined):
        mse, status = values[one.run_id]
        run = writer.start_run(one)
        reasons = [None if told == "ok" else "changed" for told in status]
        columns = {"status": status, "reason": reasons, "mse": pa.array(mse, pa.float32())}
        if one is refined:  # codes from elsewhere took nobody here any time
            columns["seconds"] = pa.array([2.0, 4.0, None], pa.float64())
        table = pa.table(columns)
        codes = pa.array([0.0] * 18, pa.float32()).to_numpy(zero_copy_only=False).reshape(3, 2, 3)
        assert run.write_shard(0, {"w_plus": codes}, table, "first") and run.publish({})
    lines = refinement_lines(open_archive(URL), ["e4e/pti"])
    assert [(line.name, line.count, round(line.means["mse"].mean, 6)) for line in lines] == [
        ("e4e", 2, 0.5),
        ("e4e/pti", 2, 0.15),
    ]
    assert round(lines[1].changes["mse"].mean, 6) == -0.35 and lines[0].changes == {}
    head, _, inversion, refinement = refinement_table(lines).split("\n")
    assert head.startswith("| method | images | MSE ↓ | ") and inversion == "| e4e | 2 | 0.5000 | – |"
    assert refinement == "| e4e/pti | 2 | 0.1500 (−0.3500 ± 0.6353) | 3.0000 |"
