"""The report speaks of one anchor, of the newest results, and of originals that are still there."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lsap_archive import open_archive
from lsap_core.alignment.references import reference_rows
from lsap_core.inversion.by_optimization import TRACE_TERMS
from lsap_core.presets import METHODS, Method, method
from tasks.archived.anchors import AnchorOptions, open_anchor
from tasks.archived.runs import current_rows
from tasks.inversion import worker as embed
from tasks.reports.inversion import write as summarize
from tasks.reports.inversion.data import ReportData
from tasks.reports.inversion.differences import compare_pairs
from tasks.reports.inversion.page import render_report
from tasks.reports.inversion.summaries import summarize_rows
from tasks.reports.inversion.worked import WorkedImages
from tasks.reports.inversion.write import ReportRequest, kept_report, write_report
from tasks.weights.generators import load_generator
from tasks.workers.pool import LocalPool

BASE = method("stylegan2_w", num_steps=2)
ALIGNED = method("lsap_o_w", num_steps=2, sncd_weight=0.5)
BOTH = (BASE, ALIGNED)
MEASURED = {"seconds": 2.0, "shards": [], "num_workers": 1, "device": "cpu"}


def report_request(
    prepared: Any, *, methods: tuple[Method, ...] | None = None, archive: str | None = None, **changes: Any
) -> ReportRequest:
    values: dict[str, Any] = {
        "title": "A title of ours",
        "config_yaml": "source: here\n",
        "num_images": 3,
        "measured": MEASURED,
    }
    inversion = replace(prepared.request, archive=archive or prepared.request.archive)
    facts = replace(prepared.facts, methods=methods or prepared.facts.methods)
    return ReportRequest(inversion, facts, **{**values, **changes})


class Written:
    """A report, and the data that it was rendered from."""

    def __init__(self, laboratory: Any, prepared: Any, monkeypatch: pytest.MonkeyPatch, **changes: Any):
        seen: list[ReportData] = []

        def watched(data: ReportData) -> str:
            seen.append(data)
            return render_report(data)

        with monkeypatch.context() as patch:
            patch.setattr(summarize, "render_report", watched)
            pool = LocalPool(lambda: laboratory.worker(prepared))
            self.report = write_report(report_request(prepared, **changes), pool)
        (self.data,) = seen

    @property
    def shown(self) -> dict[str, set[str]]:
        """Image id to the methods on the contact sheet, in its order."""
        return {row.image_id: set(row.cells) for row in self.data.contact}


def invert(laboratory: Any, **changes: Any) -> Any:
    prepared = laboratory.prepare(**{"methods": BOTH, **changes})
    laboratory.embed(prepared)
    laboratory.publish(prepared)
    return prepared


def gray(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_report_and_its_table_lie_in_the_archive(laboratory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory.fill(3)
    prepared = invert(laboratory)
    shards = [(run_id, 0) for run_id in prepared.runs]
    written = Written(laboratory, prepared, monkeypatch, measured={**MEASURED, "shards": shards})
    assert written.report.url == f"{laboratory.archive}/reports/invert.html"
    page = laboratory.store.get("reports/invert.html").decode()
    assert "A title of ours" in page
    assert all(each.title in written.report.table for each in (BASE, ALIGNED))
    assert laboratory.store.get("reports/invert.md").decode() == written.report.table

    data = written.data
    generator = load_generator(laboratory.generator)
    anchor = open_anchor(laboratory.archive, prepared.facts.anchor)
    assert data.references == reference_rows(generator.generator, anchor).labelled()
    assert data.generator["digest"] == generator.digest
    assert [(each.name, each.base) for each in data.methods] == [("stylegan2_w", None), ("lsap_o_w", "stylegan2_w")]
    assert data.methods[1].settings["sncd_weight"] == 0.5
    assert data.rows.num_rows == 6
    assert (data.summary["wall_seconds"], data.summary["images_per_second"]) == (2.0, 1.5)
    assert written.report.worked == WorkedImages(num_all=3, num_ok=3, num_failed=0)
    archive = open_archive(laboratory.archive)
    for each in BOTH:
        losses = data.losses[each.name]
        last = dict(zip(TRACE_TERMS, archive.trace(list(written.shown), each.name).values[:, -1].mean(0), strict=True))
        assert losses.parts["lpips"] == pytest.approx(last["lpips"], rel=1e-5)
        assert losses.parts.get("sncd", 0) == pytest.approx(last["sncd"] * each.settings.sncd_weight, rel=1e-5)
        assert sum(losses.parts.values()) == pytest.approx(losses.loss, rel=1e-5)
        assert losses.loss == pytest.approx(last["loss"], rel=1e-5)


def test_a_command_that_embedded_nothing_has_no_speed(laboratory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory.fill(1)
    prepared = invert(laboratory)
    assert Written(laboratory, prepared, monkeypatch).data.summary["images_per_second"] is None


def test_locations_lead_to_what_is_there(laboratory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory.fill(1)
    prepared = invert(laboratory)
    locations = Written(laboratory, prepared, monkeypatch, archive=laboratory.archive + "/").data.locations
    newest = prepared.runs[-1]
    assert locations == {
        "archive": laboratory.archive,
        "codes (Zarr)": f"{laboratory.archive}/runs/{newest}/w_plus",
        "rows (Parquet)": f"{laboratory.archive}/runs/{newest}/rows",
        "manifest": f"{laboratory.archive}/runs/{newest}/_manifest.json",
        "report": f"{laboratory.archive}/reports/invert.html",
    }
    keys = [f"{laboratory.archive}/{key}" for key in laboratory.contents()]
    for place in locations.values():
        assert any(key == place or key.startswith(place + "/") for key in keys), place


# --- the report of a command that had nothing left to do ----------------------------------------------


def test_a_report_is_kept_until_there_is_more_to_show(laboratory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory.fill(2)
    prepared = invert(laboratory)
    request = report_request(prepared)
    assert kept_report(request) is None
    written = Written(laboratory, prepared, monkeypatch).report
    assert kept_report(request) == written
    invert(laboratory, methods=(method("stylegan2_w", num_steps=3),))  # not what this report compares
    assert kept_report(request) == written
    assert kept_report(report_request(prepared, methods=(BASE,))) is None
    laboratory.put("later.png", laboratory.picture(5))
    invert(laboratory, methods=(BASE,))
    assert kept_report(request) is None


def test_pictures_of_all_methods_are_made_with_the_archive_opened_once(
    laboratory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    laboratory.fill(2)
    prepared = invert(laboratory)
    opened: list[str] = []
    open_it = embed.open_archive
    monkeypatch.setattr(embed, "open_archive", lambda url: opened.append(url) or open_it(url))
    both = {"stylegan2_w", "lsap_o_w"}
    assert Written(laboratory, prepared, monkeypatch).shown == {"0.png": both, "1.png": both}
    assert opened == [laboratory.archive]


# --- rows ---------------------------------------------------------------------------------------------


def test_rows_of_other_anchors_and_methods_are_left_out(laboratory: Any) -> None:
    laboratory.fill(2)
    one = invert(laboratory)
    other = invert(laboratory, anchor=AnchorOptions(num_samples=65))
    archive = open_archive(laboratory.archive)
    assert archive.rows(history=True).num_rows == 8
    for prepared in (one, other):
        rows = current_rows(archive, (BASE, ALIGNED), prepared.facts.anchor)
        assert set(rows.column("run_id").to_pylist()) == set(prepared.runs)
        assert rows.num_rows == 4
    rows = current_rows(archive, (ALIGNED,), one.facts.anchor)
    assert rows.column("method").to_pylist() == ["lsap_o_w"] * 2
    assert current_rows(archive, tuple(METHODS.values()), "nobody's").num_rows == 0


def test_rows_of_another_encoder_are_left_out(laboratory: Any, tmp_path: Path, new_encoder: Callable[..., str]) -> None:
    laboratory.fill(2)
    methods = (METHODS["e4e"],)
    seen = []
    for seed in (0, 1):
        laboratory.encoders = {"e4e": new_encoder(tmp_path / f"{seed}.safetensors", seed=seed)}
        seen.append(invert(laboratory, methods=methods))
    archive = open_archive(laboratory.archive)
    assert archive.rows(history=True).num_rows == 4
    for prepared in seen:
        rows = current_rows(archive, methods, prepared.facts.anchor, prepared.facts.encoders)
        assert set(rows.column("run_id").to_pylist()) == set(prepared.runs)


def test_encoders_and_optimizations_stand_side_by_side(
    laboratory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, new_encoder: Callable[..., str]
) -> None:
    """Methods without a trace, a loss or noise maps, with their pictures, bases and costs."""
    laboratory.fill(3)
    laboratory.encoders = {name: new_encoder(tmp_path / f"{name}.safetensors") for name in ("e4e", "lsap_e")}
    from_encoder = method("lsap_o_w_plus_from_lsap_e", num_steps=2, sncd_weight=0.5)
    base = method("lsap_o_w_plus", num_steps=3, sncd_weight=0.5)
    methods = (base, from_encoder, METHODS["e4e"], METHODS["lsap_e"])
    prepared = invert(laboratory, methods=methods)
    written = Written(laboratory, prepared, monkeypatch)
    assert set(written.shown) == {"0.png", "1.png", "2.png"}
    assert all(shown == {each.name for each in methods} for shown in written.shown.values())
    compared = {(one.method, one.other) for one in compare_pairs(written.data.rows, written.data.methods)}
    assert compared == {("lsap_e", "e4e"), (from_encoder.name, base.name)}
    summaries = {one.method: one for one in summarize_rows(written.data.rows, written.data.methods)}
    assert {name: one.num_steps for name, one in summaries.items()} == {
        base.name: 3,
        from_encoder.name: 2,
        "e4e": 1,
        "lsap_e": 1,
    }
    assert all(one.seconds.mean > 0 for one in summaries.values())
    assert summaries["e4e"].final_loss.count == 0 and summaries[base.name].final_loss.count == 3
    page = laboratory.store.get("reports/invert.html").decode()
    assert "encoder of e4e" in page and prepared.facts.encoders["e4e"] in page
    assert "LSAP_E against e4e, its base" in page
    assert "e4e" in written.report.table and "LSAP_O-W+ from LSAP_E" in written.report.table


# --- the contact sheet --------------------------------------------------------------------------------


def test_images_that_all_methods_have_come_first(laboratory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory.put("c.png", laboratory.picture(1))
    laboratory.put("d.png", laboratory.picture(2))
    invert(laboratory)
    laboratory.put("a.png", laboratory.picture(3))
    laboratory.put("b.png", laboratory.picture(4))
    prepared = invert(laboratory, methods=(BASE,))
    both = {"stylegan2_w", "lsap_o_w"}
    shown = Written(laboratory, prepared, monkeypatch, methods=BOTH, num_images=2).shown
    assert shown == {
        "c.png": both,
        "d.png": both,
    }
    shown = Written(laboratory, prepared, monkeypatch, methods=BOTH, num_images=3).shown
    assert list(shown.items()) == [("c.png", both), ("d.png", both), ("a.png", {"stylegan2_w"})]
    assert Written(laboratory, prepared, monkeypatch, num_images=0).shown == {}


def test_pictures_are_those_of_the_method_above_them(laboratory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory.fill(2)
    prepared = invert(laboratory)
    (row, _) = Written(laboratory, prepared, monkeypatch).data.contact
    worker = laboratory.worker(prepared)
    images = open_archive(laboratory.archive).rows(["image_id", "uri", "digest"]).to_pylist()[:2]
    assert gray(row.original_png).tolist() == gray(laboratory.picture(0)).tolist()
    for each in (BASE, ALIGNED):
        wanted = worker.preview({each.name: images})[each.name][row.image_id]
        assert row.cells[each.name].reconstruction_png == wanted.reconstruction
        assert row.cells[each.name].difference_png == wanted.difference
    assert row.cells["stylegan2_w"].reconstruction_png != row.cells["lsap_o_w"].reconstruction_png


def test_failed_images_and_duplicates_are_not_shown(laboratory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory.put("a.png", b"no picture")
    laboratory.put("b.png", laboratory.picture(1))
    laboratory.put("c.png", laboratory.picture(1))
    prepared = invert(laboratory)
    assert list(Written(laboratory, prepared, monkeypatch).shown) == ["b.png"]


def test_an_image_that_went_bad_is_not_shown_by_its_old_result(
    laboratory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    laboratory.fill(2)
    invert(laboratory)
    laboratory.put("0.png", b"overwritten with rubbish")
    prepared = invert(laboratory)
    assert list(Written(laboratory, prepared, monkeypatch).shown) == ["1.png"]


@pytest.mark.parametrize("kind", ["folder", "array"])
def test_originals_of_another_source_are_left_out(
    laboratory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """An archive takes in one source after the other; each report can show only what its workers can read."""
    laboratory.fill(2)
    invert(laboratory, methods=(BASE,))
    other, wanted = {
        "folder": (tmp_path / "other images", "z.png"),
        "array": (tmp_path / "other.npy", "000000"),
    }[kind]
    if kind == "folder":
        other.mkdir()
        (other / wanted).write_bytes(laboratory.picture(7))
    else:
        np.save(other, np.full((1, 32, 32), 99, np.uint8))
    laboratory.source = other
    prepared = invert(laboratory, methods=(BASE,))
    written = Written(laboratory, prepared, monkeypatch, num_images=1)
    assert list(written.shown) == [wanted]  # what was inverted last comes first
    assert list(Written(laboratory, prepared, monkeypatch, num_images=3).shown) == [wanted]
    assert written.data.rows.num_rows == 3  # the numbers are of the whole archive


def test_pictures_and_rows_are_of_the_same_anchor(laboratory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory.fill(1)
    one = invert(laboratory, methods=(ALIGNED,))
    before = Written(laboratory, one, monkeypatch, methods=(ALIGNED,)).data.contact
    invert(laboratory, methods=(ALIGNED,), anchor=AnchorOptions(num_samples=8, seed=5), seed=1)
    again = laboratory.prepare(methods=(ALIGNED,))
    assert again.shards == ()
    assert Written(laboratory, again, monkeypatch, methods=(ALIGNED,)).data.contact == before
