"""What people are shown fits into their terminal, and loses nothing by it."""

from __future__ import annotations

import pytest

from flows.commands.fitted import fitted, width_of_output

TABLE = [
    "| method | images | mse | lpips |",
    "| --- | ---: | ---: | ---: |",
    "| lsap_o_w_plus | 256 | 0.0012 | 0.0304 |",
    "| a\\|b | 8 | 0.1 | - |",
]


def test_a_table_is_shown_in_columns() -> None:
    assert list(fitted(["before", *TABLE, "", "after"], 80)) == [
        "before",
        "method         images     mse   lpips",
        "lsap_o_w_plus     256  0.0012  0.0304",
        "a|b                 8     0.1       -",
        "",
        "after",
    ]


def test_a_table_that_is_too_wide_is_shown_in_blocks_each_with_its_first_column() -> None:
    assert list(fitted(TABLE, 30)) == [
        "method         images     mse",
        "lsap_o_w_plus     256  0.0012",
        "a|b                 8     0.1",
        "",
        "method          lpips",
        "lsap_o_w_plus  0.0304",
        "a|b                 -",
    ]


@pytest.mark.parametrize("width", [40, 80])
def test_long_lines_are_folded_between_words(width: int) -> None:
    line = (
        "  batches, and memory of a worker: " + "32 images of lsap_o_w_plus, 0.7 GiB, " * 5 + "s3://bucket/" + "x" * 90
    )
    shown = list(fitted([line], width))
    assert " ".join(one.strip() for one in shown) == line.strip()
    assert all(len(one) <= width for one in shown[:-1]) and len(shown[-1]) > width, "names stay whole"
    assert shown[0].startswith("  b") and shown[1].startswith(" " * 6)
    assert list(fitted([line], None)) == [line]


def test_files_and_pipes_have_no_width_unless_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert width_of_output() is None
    monkeypatch.setenv("COLUMNS", "100")
    assert width_of_output() == 100
