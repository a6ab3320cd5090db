"""Whether a worker compiles its steps, and where compiled code goes."""

import os
from pathlib import Path

import pytest

from lsap_core.generators import GeneratorConfig
from tasks.inversion.compiling import CODE_FOLDER, Compile, Compiling

DIGITS = GeneratorConfig(32, (64, 64, 32, 16), w_dim=64, image_channels=1)
LITTLE, MUCH = 256 * 100, 256 * 1000


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(CODE_FOLDER, "")  # so that it is as before after the test
    monkeypatch.delenv(CODE_FOLDER)
    monkeypatch.setenv("LSAP_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "image_steps", "is_compiled"),
    [("auto", LITTLE, False), ("auto", MUCH, True), ("always", LITTLE, True), ("never", MUCH, False)],
)
def test_steps_are_compiled_where_that_pays_or_is_asked_for(
    asked: Compile, image_steps: int, is_compiled: bool, cache: Path
) -> None:
    compiling = Compiling(asked, DIGITS, device="cpu")
    found = compiling.of(image_steps, batch_size=32)
    assert (found is not None) == is_compiled
    assert os.environ.get(CODE_FOLDER) == (str(cache / "compiled") if is_compiled else None)
    assert compiling.of(image_steps, batch_size=32) is found  # all methods of a worker share what is compiled


def test_a_folder_that_torch_was_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CODE_FOLDER, "/elsewhere")
    assert Compiling("always", DIGITS, device="cpu").of(LITTLE, batch_size=32) is not None
    assert os.environ[CODE_FOLDER] == "/elsewhere"


def test_a_folder_that_torch_chose_for_the_command_is_not_the_workers(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv(CODE_FOLDER, "/tmp/gone-with-the-command/torchinductor_somebody")
    assert Compiling("always", DIGITS, device="cpu").of(LITTLE, batch_size=32) is not None
    assert os.environ[CODE_FOLDER] == str(cache / "compiled")
