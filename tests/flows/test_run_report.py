"""The closing lines of an inversion, and when too much of it failed."""

from dataclasses import replace

import pytest

from flows.invert import RunReport, TooManyFailuresError, check_failures
from tasks.reports.inversion.worked import WorkedImages

REPORT = RunReport(
    archive="a",
    report="r",
    num_images=3,
    embedded=3,
    by_status={"ok": 3},
    by_reason={},
    seconds=1.0,
    images_per_second=3.0,
    table="",
    worked=WorkedImages(3, 3, 0),
)


def test_what_was_done_to_pixels_is_told_by_kind_in_words_and_to_machines() -> None:
    report = replace(REPORT, by_alteration={"cropped": 2, "alpha_over_white": 1})
    altered = [line for line in report.lines() if "altered" in line]
    assert altered == [
        "  altered: 1 alpha_over_white (transparency laid over white)",
        "  altered: 2 cropped",
    ]
    assert report.to_dict()["by_alteration"] == {"cropped": 2, "alpha_over_white": 1}


def test_speed_is_that_of_images_however_many_codes_each_has() -> None:
    worked = WorkedImages(num_all=8, num_ok=7, num_failed=2)
    report = replace(REPORT, embedded=13, images_per_second=3.5, seconds=2.4, stored_bytes=1300, worked=worked)
    assert report.lines()[-4:-2] == [
        "13 codes of 7 images: 3.50 images per second, 2 s in all",
        "1,300 bytes are stored, 100 of each code",
    ]
    assert report.to_dict()["worked"] == {"num_all": 8, "num_ok": 7, "num_failed": 2}
    nothing = replace(REPORT, embedded=0, by_status={}, worked=WorkedImages())
    assert not [line for line in nothing.lines() if "per second" in line]


def test_the_limit_is_a_share_of_images_not_of_images_times_methods() -> None:
    report = replace(REPORT, by_status={"ok": 26, "failed": 2}, by_reason={"non_finite_loss": 2})
    report = replace(report, worked=WorkedImages(num_all=14, num_ok=14, num_failed=2))
    check_failures(report, 2 / 14)
    with pytest.raises(TooManyFailuresError, match=r"^2 of 14 images failed \(2 non_finite_loss\), above .* of 14%"):
        check_failures(report, 0.14)
    check_failures(replace(REPORT, worked=WorkedImages()), 0.0)
