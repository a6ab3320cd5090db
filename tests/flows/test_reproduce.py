"""The paper's tables from one command, on a few digits: what is written, and that every number is in the archive."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.parameters.reproduce import ReproduceRun
from lsap_archive import ArchiveMismatchError, duckdb_view, open_archive
from tasks.reports.paper.gather import Inverted, current_runs
from tasks.settings import Settings

SMALL = """\
source: digits:test[:4]
domain: digits
parts: [table1, table2, figure3, figure4, figure5]
methods: [e4e, lsap_e]
refined: [e4e/hfgi]
compared: [e4e, lsap_e]
identity: [digits-judge]
frechet: digits-judge
edits: {slant: {edit: {direction: slant}, strength: 1, attribute: slant}}
figure5: {images: 2}
synthetic: {count: 20}
calibration_images: 4
inversion: {anchor: {num_samples: 500}}
workers: {count: 1, device: cpu}
"""


@pytest.mark.ray
@pytest.mark.slow
def test_one_command_inverts_edits_measures_and_writes_a_page_whose_numbers_are_in_the_archive(
    lsap_on_cluster: Any, tmp_path: Path
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(f"{SMALL}archive: {tmp_path / 'archive'}\noutput: {tmp_path / 'out'}\n")

    made = lsap_on_cluster("run", "reproduce", "all", str(config), "--json")
    assert made.code == 0, made.err
    report = json.loads(made.out)

    written = pq.read_table(tmp_path / "out" / "report_tables.parquet").to_pylist()
    assert {row["table"] for row in written} == {"table1", "edit-slant", "fidelity", "table2"}
    connection = duckdb.connect()
    connection.execute(duckdb_view(str(tmp_path / "archive"), "all_measurements", "measurements"))
    asked = [row for row in written if row["measured"] is not None and row["source"].startswith("select")]
    for row in asked:
        mean, _, count, *_ = connection.execute(row["source"]).fetchone()
        assert (mean, count) == (pytest.approx(row["measured"], rel=1e-9), row["n"]), row
    assert len(asked) > 40
    archive = open_archive(str(tmp_path / "archive"))
    (distance,) = (row for row in written if (row["row"], row["column"]) == ("e4e", "frechet"))
    (info,) = (one for one in archive.evaluations if one.evaluation_id == distance["evaluations"][0])
    assert info.summary["fid"]["value"] == distance["measured"]
    moved = {row["row"]: row["measured"] for row in written if row["column"] == "change/equal"}
    assert moved["e4e"] == pytest.approx(moved["lsap_e"], rel=0.05) == pytest.approx(moved["e4e/hfgi"], rel=0.05)
    mse = {row["row"]: row["measured"] for row in written if (row["table"], row["column"]) == ("table1", "mse")}
    assert list(mse) == ["e4e", "lsap_e", "e4e/hfgi"] and mse["e4e/hfgi"] < mse["e4e"]
    assert "HFGI, e4e is closer to the images than e4e" in report["table"]

    html = Path(report["page"]).read_text()
    links = re.findall('<a class="trace" href="#([^"]+)"', html)
    assert len(links) == report["num_numbers"] and all(f'<tr id="{link}">' in html for link in links)
    points = pq.read_table(tmp_path / "out" / "figure4.parquet").to_pylist()
    assert {row["codes"] for row in points} == {"synthetic", "e4e", "LSAP_E"} and len(points) == 3 * 3 * 4
    with Image.open(tmp_path / "out" / "figure5" / "01.png") as sheet:
        assert sheet.width > 4 * 96
    assert html.index('id="figure3"') < html.index('id="figure5"')
    assert html.count("slant, strength 1 by HFGI, e4e") == 4  # an edit of what was refined is rendered, of each image
    assert "| LSAP_E | " in report["table"] and "paper" not in report["table"].split("\n| ---")[0].split("|", 1)[1]

    again = lsap_on_cluster("run", "reproduce", "table4", str(config), "--json")
    assert again.code == 0, again.err
    (lpips,) = (row["measured"] for row in written if (row["row"], row["column"]) == ("e4e", "lpips"))
    assert f"{lpips:.4f}" in json.loads(again.out)["table"]
    assert len(open_archive(str(tmp_path / "archive")).evaluations) == len(archive.evaluations)  # nothing was measured

    # Somebody refines the same archive by other networks: their rows would be edited in the place of these.
    run = ReproduceRun.read(str(config))
    domain, settings = run.resolved_domain(Settings(), ["table4"]), Settings()
    inverted = Inverted.of(run.inversion_run(domain, ("e4e", "lsap_e")).resolve(settings))
    (refinement,) = run.refinement_runs(domain, run.refined)
    others = inverted.with_refinements(refinement.resolve(settings), {"e4e/hfgi": "of other networks"})
    with pytest.raises(ArchiveMismatchError, match="holds newer refinements by e4e/hfgi with other settings"):
        current_runs(open_archive(run.archive), others, ["e4e", "e4e/hfgi"])

    # Somebody edits the same archive under the same name, further: the tables stay those of their own edits.
    other = tmp_path / "other.yaml"
    other.write_text(
        f"archive: {tmp_path / 'archive'}\ndomain: digits\nedits: {{slant: {{direction: slant, strength: 3}}}}\n"
        "workers: {count: 1, device: cpu}\n"
    )
    assert lsap_on_cluster("run", "edit", str(other)).code == 0
    table1 = lsap_on_cluster("run", "reproduce", "table1", str(config), "--json")
    assert table1.code == 0, table1.err
    rows = pq.read_table(tmp_path / "out" / "table1_tables.parquet").to_pylist()
    first = {(row["table"], row["row"], row["column"]): row["measured"] for row in written}
    assert len(rows) > 30 and all(row["measured"] == first[row["table"], row["row"], row["column"]] for row in rows)
