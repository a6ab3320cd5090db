"""The paper's tables: a number is the mean of the rows that its query names, and the paper's stand where they may."""

import io
import math
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import ttest_1samp

from lsap_archive import MEASUREMENT_SCHEMA
from tasks.reports.paper.claims import decide, examine
from tasks.reports.paper.claims_of_refinement import decide_equal, examine_refinements
from tasks.reports.paper.page import tables_markdown
from tasks.reports.paper.published import BENCHMARK, PAPER_IMAGES, TABLE_1, TABLE_2, TABLE_3, TABLE_4, paper_problem
from tasks.reports.paper.tables import (
    Evidence,
    ShownEdit,
    edit_table,
    fidelity_table,
    table_1,
    table_2,
    table_3,
    table_4,
)
from tasks.reports.paper.traced_numbers import asking
from tasks.reports.statistics import Number
from tasks.reports.tables import TABLES_SCHEMA, table_markdown, tables_parquet

TITLES = {"psp": "pSp", "e4e": "e4e", "lsap_e": "LSAP_E"}
SLANT = ShownEdit("slant", "slant", "slant_equal", "slant", "degrees", strength=2.0, change=1.0)
IMAGES = [f"o'hara/{index}" for index in range(12)]
PROBLEM = 'the paper has no domain "digits"'


def records(method: str, measure: str, values, by=None, *, edit=None, strength=None, evaluation=None) -> list[dict]:
    """One row for each value; None is a value that is missing."""
    name = method if edit is None else f"{method}/{edit}"
    return [
        {
            "evaluation_id": evaluation or f"of {name}",
            "run_id": name,
            "row": row,
            "image_id": image_id,
            "method": name,
            "edit": edit,
            "strength": strength,
            "measure": measure,
            "by": by,
            "value": None if value is None else float(value),
            "problem": "no_face" if value is None else None,
            "shard": 0,
        }
        for row, (image_id, value) in enumerate(zip(IMAGES, values, strict=True))
    ]


def laboratory() -> tuple[list[dict], dict[tuple, np.ndarray]]:
    """Measurements of three encoders and an edit, and the same values by (method, measure, by)."""
    stream = np.random.default_rng(3)
    rows, values = [], {}

    def measured(method, measure, by=None, mean=0.0, **where):
        drawn = stream.normal(mean, 0.01, len(IMAGES))
        values[method if "edit" not in where else f"{method}/{where['edit']}", measure, by] = drawn
        rows.extend(records(method, measure, drawn, by, **where))

    for place, method in enumerate(TITLES):
        measured(method, "mse", mean=0.02 + 0.1 * place)
        measured(method, "lpips", "net", mean=0.05)
        measured(method, "identity", "judge", mean=0.9)
        measured(method, "sncd", mean=0.10 - 0.02 * place)
        measured(method, "lec", "slant", mean=8.0 - place)
        measured(method, "psnr", mean=20.0)
        measured(method, "attribute", "slant", mean=1.0)
        measured(method, "attribute", "width", mean=3.0)
        for edit, strength in (("slant", 2.0), ("slant_equal", 1.5 + place)):
            measured(method, "identity", "judge", 0.8, edit=edit, strength=strength)
            measured(method, "attribute", "slant", 5.0, edit=edit, strength=strength)
            measured(method, "attribute", "width", 3.0, edit=edit, strength=strength)
    return rows, values


ROWS, VALUES = laboratory()


def evidence(rows=ROWS, **changes) -> Evidence:
    methods = sorted({row["method"] for row in rows})
    known = Evidence(
        ask=asking(pa.Table.from_pylist(rows, schema=MEASUREMENT_SCHEMA)),
        titles=TITLES,
        evaluations={method: (f"of {method}",) for method in methods},
        lpips=("net",),
        identity=("judge",),
        attributes={"slant": "degrees", "width": "pixels"},
        edits=(SLANT,),
        references={"floor": 0.05, "synthetic, psi = 1": 0.1},
        domain="digits",
        paper_problem=PROBLEM,
    )
    return replace(known, **changes)


def cell(table, row: str, column: str):
    place = [one.name for one in table.columns].index(column)
    return next(one for one in table.rows if one.name == row).cells[place]


# --- measured -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "key"),
    [
        ("mse", ("e4e", "mse", None)),
        ("lpips", ("e4e", "lpips", "net")),
        ("identity", ("e4e", "identity", "judge")),
        ("sncd", ("e4e", "sncd", None)),
        ("lec/slant", ("e4e", "lec", "slant")),
        ("identity_after/slant", ("e4e/slant_equal", "identity", "judge")),
    ],
)
def test_a_number_is_mean_deviation_and_count_of_its_rows(column: str, key: tuple) -> None:
    number = cell(table_1(evidence(), list(TITLES)), "e4e", column).measured
    assert number.mean == pytest.approx(VALUES[key].mean(), rel=1e-12)
    assert number.deviation == pytest.approx(VALUES[key].std(ddof=1), rel=1e-9)
    assert (number.count, number.skipped) == (len(IMAGES), 0)
    assert number.evaluations == (f"of {key[0]}",)


def test_an_edit_moves_an_attribute_from_the_inversion_on_image_by_image() -> None:
    table = edit_table(evidence(), list(TITLES), SLANT)
    moved = VALUES["psp/slant_equal", "attribute", "slant"] - VALUES["psp", "attribute", "slant"]
    assert cell(table, "psp", "change/equal").measured.mean == pytest.approx(moved.mean(), rel=1e-9)
    assert cell(table, "psp", "change/equal").measured.deviation == pytest.approx(moved.std(ddof=1), rel=1e-9)
    leaked = np.abs(VALUES["psp/slant", "attribute", "width"] - VALUES["psp", "attribute", "width"])
    assert cell(table, "psp", "leakage/width/fixed").measured.mean == pytest.approx(leaked.mean(), rel=1e-9)
    strengths = [cell(table, method, "strength/equal").measured.mean for method in TITLES]
    assert strengths == [1.5, 2.5, 3.5]


def test_images_without_a_value_are_left_out_counted_and_told() -> None:
    rows = [row for row in ROWS if (row["method"], row["measure"]) != ("psp", "identity")]
    values = [0.5, None, 0.7, *[None] * 9]
    table = table_1(evidence([*rows, *records("psp", "identity", values, "judge")]), list(TITLES))
    number = cell(table, "psp", "identity").measured
    assert (number.mean, number.count, number.skipped) == (pytest.approx(0.6), 2, 10)
    assert "left out of the means: identity of some (pSp 10; no_face)." in table.notes[-1]


def test_what_is_measured_again_later_changes_no_number() -> None:
    again = records("e4e", "mse", [9.0] * len(IMAGES), evaluation="later")
    table = table_1(evidence([*ROWS, *again]), list(TITLES))
    assert cell(table, "e4e", "mse").measured == cell(table_1(evidence(), list(TITLES)), "e4e", "mse").measured


def test_what_nobody_measured_has_no_column_and_a_refused_edit_is_told() -> None:
    small = [row for method in TITLES for row in records(method, "ms_ssim", [None] * len(IMAGES))]
    table = fidelity_table(evidence([*ROWS, *small]), list(TITLES))
    assert [column.name for column in table.columns] == ["psnr"]
    assert table.notes == ("Without a value, and left out of the means: MS-SSIM of all images (no_face).",)
    told = edit_table(evidence(refused={"psp/slant_equal": "it reaches 0.5 of 1"}), list(TITLES), SLANT).notes
    assert told == ("pSp has no strength of equal effect: it reaches 0.5 of 1",)


def test_the_best_measured_value_is_the_one_on_the_better_side() -> None:
    table = table_1(evidence(), list(TITLES))
    columns = [column.name for column in table.columns]
    best = {name: table.best(columns.index(name)) for name in ("mse", "sncd", "identity")}
    assert best["mse"] == cell(table, "psp", "mse").measured.mean
    assert best["sncd"] == cell(table, "lsap_e", "sncd").measured.mean
    assert best["identity"] == max(cell(table, name, "identity").measured.mean for name in TITLES)


# --- traced -------------------------------------------------------------------------------------------


def test_every_number_of_the_parquet_file_is_what_its_query_gives_over_parquet_files_alone(tmp_path: Path) -> None:
    for shard in range(3):
        part = pa.Table.from_pylist(ROWS[shard::3], schema=MEASUREMENT_SCHEMA)
        pq.write_table(part, tmp_path / f"{shard}.parquet")
    gathered = evidence(frechet={"psp": Number(7.5, source="evaluations/x/_manifest.json: summary.frechet")})
    tables = (table_1(gathered, list(TITLES)), edit_table(gathered, list(TITLES), SLANT))
    written = pq.read_table(io.BytesIO(tables_parquet(tables)))
    assert written.schema == TABLES_SCHEMA
    connection = duckdb.connect()
    connection.execute(f"create view measurements as from '{tmp_path}/*.parquet'")
    checked = 0
    for row in written.to_pylist():
        if row["measured"] is not None:
            mean, deviation, count, seen = connection.execute(row["source"]).fetchone()[:4]
            assert (mean, count, seen) == (
                pytest.approx(row["measured"], rel=1e-9),
                row["n"],
                row["n"] + row["skipped"],
            )
            assert deviation == pytest.approx(row["sd"], rel=1e-6, abs=1e-12)
            checked += 1
    assert checked == 3 * 6 + 3 * 7


# --- published ----------------------------------------------------------------------------------------


def test_the_paper_stands_beside_the_measured_only_where_domain_and_images_are_its_own() -> None:
    assert {name for name in ("face", "car", "church", "wild", "digits") if paper_problem(name, 300) is None} == {
        "church"
    }
    for name, images in PAPER_IMAGES.items():
        assert paper_problem(name, images.number) is None
        assert f"{images.number:,}" in str(paper_problem(name, images.number - 1))
    ours = table_1(evidence(domain="face"), list(TITLES))
    assert ours.paper is None and all(one.paper is None for row in ours.rows for one in row.cells)
    paper = table_1(evidence(domain="face", paper_problem=None), list(TITLES))
    assert paper.paper == "paper"
    assert cell(paper, "lsap_e", "lpips").paper == 0.1766
    assert [row.title for row in paper.rows[3:]][-2:] == ["SAM, e4e", "SAM, LSAP"]  # rows that only the paper has
    assert not cell(paper, "sam_e4e", "mse").measured.is_there
    assert table_4(evidence(domain="face", paper_problem=None), ["e4e"]).paper is None
    assert cell(table_4(evidence(domain="car", paper_problem=None), ["e4e"]), "e4e", "mse").paper == 0.1201


def test_published_numbers_are_those_of_the_paper() -> None:
    def mean(rows, column):
        return np.mean([value[column] for value in rows.values() if not isinstance(value[column], str)])

    assert mean(TABLE_1, "mse") == pytest.approx(0.3927 / 11)
    assert mean(TABLE_1, "sncd") == pytest.approx((0.1013 + 0.0495 + 0.0385 + 0.0656 + 0.0492 + 0.1063 + 0.0407) / 7)
    assert TABLE_1["stylegan2_w_plus"]["identity_after/pose"] == "×" and TABLE_1["sam_e4e"]["sncd"] == "–"
    assert (TABLE_2["psp"]["disalignment_w"], TABLE_2["lsap_e"]["disalignment_s"]) == (63.50, 312.20)
    assert list(TABLE_3) == ["0", "0.1", "0.25", "0.5", "0.75", "1"]
    assert TABLE_3["0.5"] == {name: TABLE_1["lsap_e"][name] for name in TABLE_3["0.5"]}  # the default weight
    assert {domain: len(rows) for domain, rows in TABLE_4.items()} == {"car": 4, "church": 2, "wild": 2}
    assert BENCHMARK["lsap_e"]["frechet"] == 29.3118


def test_the_toolbox_counts_its_psnr_with_another_peak() -> None:
    table = fidelity_table(evidence(domain="face", paper_problem=None), list(TITLES))
    assert table.paper == "toolbox"
    assert cell(table, "lsap_e", "identity").paper == 0.53 and cell(table, "lsap_e", "identity").measured.is_there
    assert {"ReStyle-e4e", "PTI, W pivot"} <= {row.title for row in table.rows}
    assert cell(table, "psp", "psnr").paper == pytest.approx(18.0348 + 10 * math.log10(2), abs=1e-4)


def test_table_3_runs_over_lambda_and_table_2_over_spaces() -> None:
    weights = {"psp": 0.5, "e4e": 0.0, "lsap_e": 1.0}
    swept = table_3(evidence(domain="face", paper_problem=None), weights)
    assert [row.name for row in swept.rows] == ["e4e", "psp", "lsap_e"]
    assert [cell(swept, name, "sncd").paper for name in ("e4e", "psp", "lsap_e")] == [0.0736, 0.0385, 0.0378]
    rows = records("e4e", "disalignment_w", np.arange(12.0)) + records("e4e", "disalignment_w_frobenius", [2.0] * 12)
    table = table_2(evidence(rows), ["e4e"], 12)
    assert cell(table, "e4e", "disalignment_w").measured.mean == 5.5
    assert [column.name for column in table.columns] == ["disalignment_w", "disalignment_w_frobenius"]


def test_markdown_has_as_many_cells_in_every_line() -> None:
    for domain, problem in (("digits", PROBLEM), ("face", None)):
        table = table_1(evidence(domain=domain, paper_problem=problem), list(TITLES))
        lines = table_markdown(table).splitlines()
        assert len({line.count("|") for line in lines}) == 1
        assert ("MSE ↓, paper" in lines[0]) == (problem is None)
        assert len(lines) == 2 + len(table.rows)
    everything = tables_markdown("Title", [table], examine(evidence()), ["a remark"])
    assert everything.startswith("# Title\n\na remark\n\n## Table 1")
    assert "LSAP_E has a lower SNCD than e4e: **confirmed**" in everything


# --- claims -------------------------------------------------------------------------------------------


def test_a_claim_is_decided_by_the_interval_of_the_paired_difference() -> None:
    claims = {(claim.topic, claim.text): claim for claim in examine(evidence())}
    claim = claims["SNCD", "LSAP_E has a lower SNCD than e4e"]
    gains = VALUES["lsap_e", "sncd", None] - VALUES["e4e", "sncd", None]
    interval = ttest_1samp(gains, 0).confidence_interval(0.95)
    assert claim.difference.interval == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert claim.outcome == "confirmed"
    assert claims["MSE", "LSAP_E is closer to the images than e4e"].outcome == "refuted"
    assert claims["LPIPS [net]", "LSAP_E is closer to the images than e4e"].outcome == "not decided"
    assert claims["LEC", "e4e takes the edit slant back more consistently than pSp"].outcome == "confirmed"


def test_one_image_decides_nothing() -> None:
    assert decide(Number(-1.0, count=1), sign=-1) == "not decided"
    assert decide(Number(1.0, 0.1, 50), sign=-1) == "refuted"
    assert decide(Number(1.0, 0.1, 50), sign=1) == "confirmed"


# --- the second stage ---------------------------------------------------------------------------------


def refined_laboratory(effect: float, slanted_mse: float) -> Evidence:
    """Measurements of e4e and of HFGI on it, whose edit does a share of e4e's effect and adds to its error."""
    stream = np.random.default_rng(5)
    rows = []
    for method, gain, of_effect in (("e4e", 0.0, 1.0), ("e4e/hfgi", 0.02, effect)):
        error = 0.05 - gain + stream.normal(0, 0.001, len(IMAGES))
        own = {"method": method, "evaluation": f"of {method}"}
        rows += records(measure="mse", values=error, **own) + records(measure="lpips", values=error, by="net", **own)
        rows += records(measure="attribute", values=stream.normal(0, 1, len(IMAGES)), by="slant", **own)
        unedited = [row["value"] for row in rows[-len(IMAGES) :]]
        for edit, far in (("slant", 10.0 * of_effect), ("slant_equal", 10.0)):
            moved = [value + far + noise for value, noise in zip(unedited, stream.normal(0, 0.1, 12), strict=True)]
            after = error + (slanted_mse if gain else 0.02)
            edited = {"method": method, "edit": edit, "strength": 2.0}
            rows += records(measure="attribute", values=moved, by="slant", **edited)
            rows += records(measure="mse", values=after, **edited)
            rows += records(measure="lpips", values=after, by="net", **edited)
    titles = {"e4e": "e4e", "e4e/hfgi": "HFGI, e4e"}
    return evidence(rows, titles=titles, identity=(), attributes={"slant": "degrees"})


def test_a_refined_row_stands_where_the_paper_has_it_and_lec_is_left_to_encoders() -> None:
    found = refined_laboratory(effect=1.0, slanted_mse=0.02)
    table = table_1(replace(found, domain="face", paper_problem=None), ["e4e", "e4e/hfgi"])
    assert cell(table, "e4e/hfgi", "lpips").paper == 0.1172 and cell(table, "e4e/hfgi", "lpips").measured.is_there
    assert cell(table, "e4e/hfgi", "sncd").paper == "–"
    names = [row.name for row in table.rows]
    assert "hfgi_e4e" not in names and {"hfgi_lsap_e", "sam_e4e", "sam_lsap_e"} <= set(names)
    assert any(note.startswith("LEC belongs to an encoder") for note in table.notes)
    told = table_1(
        replace(found, refiner_notes=("hfgi was trained on codes of another embedding",)), ["e4e/hfgi"]
    ).notes
    assert "Of the networks of refiners: hfgi was trained on codes of another embedding." in told
    assert not any("LEC belongs" in note for note in table_1(evidence(), list(TITLES)).notes)
    cars = table_4(replace(found, domain="car", paper_problem=None), ["e4e", "e4e/sam"])
    assert cell(cars, "e4e/sam", "mse").paper == 0.0289 and cars.caption.endswith("and refined.")


@pytest.mark.parametrize(
    ("effect", "slanted_mse", "inherited", "closer"),
    [(0.95, 0.02, "confirmed", "confirmed"), (0.7, 0.04, "refuted", "not decided"), (1.3, 0.06, "refuted", "refuted")],
)
def test_what_is_said_of_refinement_is_decided_whichever_way_it_goes(
    effect: float, slanted_mse: float, inherited: str, closer: str
) -> None:
    claims = {claim.text: claim for claim in examine_refinements(refined_laboratory(effect, slanted_mse))}
    assert claims["HFGI, e4e is closer to the images than e4e"].outcome == "confirmed"
    claim = claims["The edit slant does as much to HFGI, e4e as to e4e, within a tenth"]
    assert (claim.outcome, claim.topic) == (inherited, "effect, degrees")
    assert claim.first.mean / claim.second.mean == pytest.approx(effect, abs=0.02)
    assert claim.difference.mean == pytest.approx(claim.first.mean - claim.second.mean)
    claim = claims[
        "After the edit slant, at equal effect, at least one refined method is closer to the images than its embedding"
    ]
    assert claim.outcome == closer and claim.numbers.startswith("HFGI, e4e minus its embedding: MSE ")
    told = tables_markdown("Title", [], list(claims.values()), [])
    assert claim.numbers in told and told.count("Of effects that are said to be the same") == 1


def test_equality_is_not_decided_where_the_interval_crosses_the_margin() -> None:
    assert decide_equal(Number(0.4, deviation=1.0, count=100), margin=0.5) == "not decided"
    assert decide_equal(Number(0.4, count=1), margin=0.5) == "not decided"
