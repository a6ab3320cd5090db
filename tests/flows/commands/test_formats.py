"""The table of what is read: the documentation has what the readers' own tables say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.commands.cli import main
from flows.commands.formats import as_markdown, what_is_read
from tasks.pictures.formats import PICTURE_FORMATS
from tasks.sources.items import IMAGE_SUFFIXES

PAGE = Path(__file__).parents[3] / "docs" / "formats.md"


def test_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["formats", "--markdown"]) == 0
    assert capsys.readouterr().out == PAGE.read_text(), "lsap formats --markdown > docs/formats.md"


def test_every_line_comes_from_the_readers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["formats", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == what_is_read()
    assert all(one.name in told["pictures"] for one in PICTURE_FORMATS)
    assert set(told["pictures, names in folders and containers"].split()) == IMAGE_SUFFIXES


def test_what_would_end_a_cell_does_not() -> None:
    assert as_markdown({"a|b": "c"}).endswith("| a\\|b | c |")
