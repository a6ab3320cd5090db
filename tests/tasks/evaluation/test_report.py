"""The report of an evaluation: its numbers are those of the archive, with why some images have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsap_archive import open_archive
from lsap_core.inversion.by_encoder import EncoderSettings
from lsap_core.presets import method
from tasks.evaluation.request import EvaluationRequest, Synthetic
from tasks.reports.evaluation.write import EvaluationReportRequest, write_evaluation_report
from tasks.reports.measure_tables import measure_tables, subjects_of
from tasks.reports.measured_means import Means, Measured, measured_means, newest_evaluations
from tasks.reports.statistics import Number
from tasks.workers.pool import LocalPool
from tests.security.test_hostile_names import Reader

OPTIMIZED = "stylegan2_w_plus"


def write(desk: Any, request: EvaluationRequest, evaluations: Any, images: int = 2) -> Any:
    asked = EvaluationReportRequest(request, evaluations, {}, ("A <b>note</b>.",), "archive: here\n", images, 1.0)
    return write_evaluation_report(asked, lambda: LocalPool(lambda: desk.worker(request)))


def test_the_page_has_the_means_of_the_measurements_and_why_some_have_none(desk: Any) -> None:
    laboratory = desk.laboratory
    laboratory.fill(6)
    laboratory.invert()
    asked = desk.request(frechet="digits-judge")
    stage = desk.finish(frechet="digits-judge")
    archive = open_archive(laboratory.archive)
    found = measured_means(archive, stage.evaluations)
    table = archive.measurements().to_pylist()
    for (name, measure, by), number in found.numbers.items():
        values = [row["value"] for row in table if (row["method"], row["measure"], row["by"]) == (name, measure, by)]
        kept = np.array([np.nan if value is None else value for value in values])
        assert (number.count, number.skipped) == (np.isfinite(kept).sum(), (~np.isfinite(kept)).sum())
        if number.count > 1:
            assert number.mean == pytest.approx(np.nanmean(kept[np.isfinite(kept)]))
            assert number.deviation == pytest.approx(np.nanstd(kept[np.isfinite(kept)], ddof=1), abs=1e-12)
    assert found.missing[Measured(OPTIMIZED, "ms_ssim"), "too_small"] == 6
    assert newest_evaluations(archive, [OPTIMIZED, "other"]) == stage.evaluations

    written = write(desk, asked, stage.evaluations)
    page = Reader(laboratory.store.get("reports/evaluate.html").decode())
    told = " ".join(page.text.split())
    mse = found.numbers[Measured(OPTIMIZED, "mse")]
    assert f"{mse.mean:.4f}" in told and f"± {mse.interval[1] - mse.mean:.4f}" in told
    assert "Fréchet distance" in told and "ms_ssimtoo_small6" in told.replace(" ", "") and "A <b>note</b>." in told
    assert "digits-judge" in told and "Alignment and editability" in told
    markdown = laboratory.store.get("reports/evaluate.md").decode()
    assert f"{mse.mean:.4f} ± " in markdown and "LPIPS [digits-judge] ↓" in markdown
    assert written.url.endswith("/reports/evaluate.html") and written.picture is not None
    assert "./evaluate.html" in Reader(laboratory.store.get("reports/index.html").decode()).targets
    before = laboratory.store.get("reports/evaluate.html")
    assert write(desk, asked, stage.evaluations) == written
    assert laboratory.store.get("reports/evaluate.html") == before


def test_encoders_on_synthetic_images_have_a_page_of_their_own(
    desk: Any, new_encoder: Callable[..., str], tmp_path: Path
) -> None:
    laboratory = desk.laboratory
    laboratory.encoders = {"e4e": new_encoder(tmp_path / "e4e.safetensors", title="e4e")}
    synthetic = Synthetic(4, 1.0, 0, "authors", {"e4e": EncoderSettings()}, 4)
    request = desk.request(methods=("e4e",), synthetic=synthetic, source=None)
    stage = desk.finish(methods=("e4e",), synthetic=synthetic, source=None)
    written = write(desk, request, stage.evaluations)
    assert written.picture is None
    told = " ".join(Reader(laboratory.store.get("reports/evaluate_synthetic.html").decode()).text.split())
    assert "Further measures" in told and "disalignment s n" in told
    assert "reports/evaluate.html" not in laboratory.contents()


def test_edits_stand_below_their_methods_and_a_measure_without_values_nowhere(desk: Any) -> None:
    laboratory = desk.laboratory
    laboratory.methods = (method("stylegan2_w", num_steps=1), method(OPTIMIZED, num_steps=1))
    laboratory.fill(1)
    archive = laboratory.invert()
    subjects = subjects_of(archive, ["elsewhere", OPTIMIZED, "stylegan2_w"])
    assert [one.title for one in subjects] == ["StyleGAN2-W", "StyleGAN2-W+", "elsewhere"]
    numbers = {
        Measured(OPTIMIZED, "psnr"): Number(20.0, 1.0, 4),
        Measured("stylegan2_w", "psnr"): Number(18.0, 1.0, 4),
        Measured(OPTIMIZED, "lpips", "b"): Number(0.5, 0.1, 4),
        Measured(OPTIMIZED, "lpips", "a"): Number(0.4, 0.1, 4),
        Measured(OPTIMIZED, "sncd"): Number(0.1, 0.1, 4),
        Measured("stylegan2_w", "sncd"): Number(0.2, 0.1, 4),
        Measured(OPTIMIZED, "ms_ssim"): Number(float("nan"), skipped=4),
        Measured(OPTIMIZED, "new", "net"): Number(1.0, 0.1, 4),
    }
    close, aligned, further = measure_tables(subjects, Means(numbers, {}), {}, None)
    assert [column.name for column in close.columns] == ["psnr", "lpips/a", "lpips/b"]
    assert [row.name for row in close.rows] == ["stylegan2_w", OPTIMIZED]
    assert [close.is_best(row, 0) for row in close.rows] == [False, True]
    assert not any(aligned.is_best(row, 0) for row in aligned.rows)  # the lowest SNCD is no best one
    assert [column.title for column in further.columns] == ["new"]
