"""How large previews are is asked for in the same way wherever images come out."""

from __future__ import annotations

from typing import Any

import pytest

from flows.commands.cli import main
from flows.parameters.edit import EditRun
from flows.parameters.invert import InvertRun
from flows.parameters.refine import RefineRun
from flows.parameters.run_file import ParameterError, Parameters
from tasks.settings import Settings

RUNS: list[tuple[type[Parameters], dict[str, Any]]] = [
    (InvertRun, {"source": "digits:test", "archive": "a", "domain": "digits"}),
    (RefineRun, {"source": "digits:test", "archive": "a", "domain": "digits"}),
    (EditRun, {"archive": "a", "domain": "digits", "edits": {"slant": {"direction": "slant", "strength": 3}}}),
]


@pytest.mark.parametrize(("kind", "fields"), RUNS, ids=[kind.__name__ for kind, _ in RUNS])
def test_the_side_of_previews_reaches_the_workers(kind: Any, fields: dict[str, Any]) -> None:
    for told, wanted in (({}, 128), ({"previews": 0}, 0), ({"previews": 256}, 256)):
        assert kind(**fields, **told).resolve(Settings()).previews == wanted
    for told in (-1, 257, True, 1.5):
        with pytest.raises(ParameterError, match="previews"):
            kind.of({**fields, "previews": told})


def test_an_import_is_asked_in_the_same_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["archive", "import", "a", "codes.npy", "--method", "m", "--domain", "digits"]
    assert main([*asked, "--previews", "257"]) == 2
    assert "--previews" in (told := capsys.readouterr().err) and "a whole number from 0 to 256" in told
