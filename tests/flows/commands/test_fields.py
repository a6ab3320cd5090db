"""What is told of run files' fields: all of them, as the models read them, in the width of a terminal."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any

import pytest
import yaml
from pydantic import TypeAdapter

from flows.commands.cli import main
from flows.commands.fields import RUNS, as_markdown
from flows.parameters.fields import fields_of


def test_the_page_of_the_documentation_is_what_the_command_prints() -> None:
    assert Path("docs/fields.md").read_text() == as_markdown() + "\n", "lsap fields --markdown > docs/fields.md"


@pytest.mark.parametrize("name", RUNS)
def test_every_field_is_described_and_takes_its_example(name: str) -> None:
    model = resolve_name(RUNS[name])
    told = {field.name: field for field in fields_of(model)}
    assert {one.partition(".")[0] for one in told} == set(model.model_fields)
    for field, info in model.model_fields.items():
        assert told[field].description and told[field].type
        (key, value), *others = yaml.safe_load(told[field].example).items()
        assert (key, others) == (field, [])
        accepts: TypeAdapter[Any] = TypeAdapter(Annotated[info.annotation, info])
        accepts.validate_python(value)


@pytest.mark.parametrize(
    ("flow", "name", "wanted"),
    [
        ("invert", "workers.count", ("whole number from 1 to 10000", "2", "workers: {count: 2}")),
        ("invert", "source", ("text", None, "source: s3://bucket/photos")),
        ("invert", "fit", ("refuse | crop | letterbox | stretch", "refuse", "fit: crop")),
        ("invert", "batch_size", ("whole number from 1 or auto", "", "batch_size: 8")),
        ("invert", "workers.memory_gb", ("number above 0 to 32768", "", "workers: {memory_gb: 6}")),
        ("invert", "embedding", ("settings by name", "", "embedding: {num_steps: 300}")),
        ("edit", "keep_images", ("true or false", "false", "keep_images: true")),
        ("evaluate", "synthetic.psi", ("number from 0 to 100", "1.0", "synthetic: {psi: 1.0}")),
        ("reproduce", "edits.NAME.strength", ("number", None, "edits: {NAME: {strength: 3}}")),
        ("reproduce table3", "seeds", ("whole number from 0, or a list of such", "[0, 1, 2]", "seeds: [0, 1, 2]")),
    ],
)
def test_a_field_is_told_in_words(flow: str, name: str, wanted: tuple[str, str | None, str]) -> None:
    (found,) = [field for field in fields_of(resolve_name(RUNS[flow])) if field.name == name]
    assert (found.type, found.default, found.example) == wanted


@pytest.mark.parametrize("words", ["run invert", "run reproduce table3", "run reproduce editability"])
def test_help_lists_the_fields_within_the_terminal(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*words.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    names = {"run invert": ["invert"], "run reproduce table3": ["reproduce", "reproduce table3"]}
    for name in names.get(words, [words.removeprefix("run ")]):
        for field in resolve_name(RUNS[name]).model_fields:
            assert f"\n  {field}  (" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_flow_that_there_is_not_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fields", "evalute"]) == 2
    assert 'there is no flow "evalute"; did you mean "evaluate"?' in capsys.readouterr().err
