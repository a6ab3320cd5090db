"""The tiny trainings that the tests of this room share."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def small() -> ModuleType:
    """The module `small_training`."""
    path = Path(__file__).with_name("small_training.py")
    spec = importlib.util.spec_from_file_location("small_training", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["small_training"] = module
    spec.loader.exec_module(module)
    return module
