"""The closing lines of an inversion."""

from flows.invert import RunReport


def test_what_was_done_to_pixels_is_told_by_kind_in_words_and_to_machines() -> None:
    report = RunReport(
        archive="a",
        report="r",
        num_images=3,
        embedded=3,
        by_status={"ok": 3},
        by_reason={},
        seconds=1.0,
        images_per_second=3.0,
        table="",
        by_alteration={"cropped": 2, "alpha_over_white": 1},
    )
    altered = [line for line in report.lines() if "altered" in line]
    assert altered == [
        "  altered: 1 alpha_over_white (transparency laid over white)",
        "  altered: 2 cropped",
    ]
    assert report.to_dict()["by_alteration"] == {"cropped": 2, "alpha_over_white": 1}
