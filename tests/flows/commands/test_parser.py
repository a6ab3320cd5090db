"""The words of the command line: what stands alone, what is nearly right, and what a shell completes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from flows.commands.cli import main
from flows.parameters import run_file

RUN = "source: digits:test[:4]\narchive: {archive}\ndomain: digits\nmethods: lsap_e\n"


def test_lsap_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("usage: lsap") and shown.err == ""
    assert "\n    invert      invert and edit a photo" in shown.out, "names and explanations in columns"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lsap {version('lsap')}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("rnu invert", """there is no 'rnu'; did you mean "run"? wanted one of invert, run"""),
        ("run invrt a.yaml", """there is no 'invrt'; did you mean "invert"? wanted one of invert, train_encoder"""),
        ("archive describ x", """there is no 'describ'; did you mean "describe"?"""),
        ("archive describe x --jsn", """there is no option --jsn; did you mean "--json"? see lsap archive describe"""),
        ("archive describe x --zzz=1", "there is no option --zzz: see lsap archive describe --help"),
        ("archive describe x y", "y is one word too many: see lsap archive describe --help"),
        (
            "run invert examples/digits.yaml --set domain=digit",
            """domain "digit" is not known; did you mean "digits"?""",
        ),
        ("run invert examples/digits.yaml --set methods=lsap_ee", """"lsap_ee" is not known; did you mean "lsap_e"?"""),
        ("run invert examples/digits.yaml --set methds=e4e", "methds: there is no such field; did you mean methods?"),
        (
            "run edit examples/edit_digits.yaml --set edits.slant.direction=slent",
            """direction "slent" is not known; did you mean "slant"?""",
        ),
    ],
)
def test_what_is_nearly_right_is_told_with_the_nearest(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_a_run_file_comes_from_standard_input_and_one_method_needs_no_list(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = io.TextIOWrapper(io.BytesIO(RUN.format(archive=tmp_path / "archive").encode()))
    monkeypatch.setattr("sys.stdin", text)
    run_file._standard_input.cache_clear()
    assert main(["run", "invert", "-", "--set", "methods=psp", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images left by method"] == {"psp": 4}
    assert main(["run", "invert", "-", "--dry-run", "--json"]) == 0, "asked again, it is still there"
    assert json.loads(capsys.readouterr().out)["images left by method"] == {"lsap_e": 4}
    run_file._standard_input.cache_clear()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("train_encoder", "describe", "dry-run", "table3"):
        assert word in script


def test_a_completion_script_of_bash_completes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    script += "\nCOMP_WORDS=(lsap run inv) COMP_CWORD=2 COMP_LINE='lsap run inv' COMP_POINT=12\n"
    script += "complete -p lsap >/dev/null && _shtab_lsap && echo ${COMPREPLY[@]}\n"
    asked = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=20)
    assert asked.stdout == "invert\n", asked.stderr


def test_without_the_package_completion_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "lsap: the package shtab is not installed: pip install 'lsap[completion]'" in capsys.readouterr().err
