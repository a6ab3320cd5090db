"""The paper's experiments with files made here: a few checks every day, the whole where a folder for it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from domains.domain import load_domain
from tests.rehearsal.experiments import EXPERIMENTS, Rehearsal
from tests.rehearsal.files import write_files
from tests.rehearsal.photos import write_photos


def pytest_addoption(parser: pytest.Parser) -> None:
    """Known where this folder is named on the command line, as `make rehearse-face` does."""
    parser.addoption("--rehearse", metavar="FOLDER", help="run the paper's experiments to their ends, in this folder")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every day the checks before the work are enough."""
    left_out = [item for item in items if item.get_closest_marker("rehearsal")]
    if left_out and not config.getoption("--rehearse", None):
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


LOOKED_AT_FIRST = ("generator", "direction pose", "direction smile", "direction age", "lpips-vgg", "lpips-alex")
LOOKED_AT_FIRST += ("curricularface", "mtcnn pnet", "mtcnn rnet", "mtcnn onet")


def prepared(name: str, folder: Path, roles: tuple[str, ...] | None = None) -> Rehearsal:
    """An experiment with its files and photos in a folder; of these roles alone, the other files being empty."""
    experiment = EXPERIMENTS[name]
    rehearsal = Rehearsal(experiment, folder)
    write_files(load_domain(name), experiment.generator, rehearsal.weights, roles=roles)
    write_photos(experiment.photos, rehearsal.photos)
    return rehearsal


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    """The paper's main experiment in a folder of the tests, with the files that are looked at before the encoders."""
    return prepared("face", tmp_path_factory.mktemp("faces"), LOOKED_AT_FIRST)


@pytest.fixture(params=EXPERIMENTS)
def whole(request: pytest.FixtureRequest) -> Rehearsal:
    """An experiment in the folder that was named, where its page stays."""
    return prepared(request.param, Path(request.config.getoption("--rehearse")).absolute() / request.param)
