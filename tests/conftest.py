"""What every test may rely on: a quiet environment of its own, and no GPU test without a GPU."""

import os
import tempfile
from pathlib import Path

import pytest

# Before anything imports torch, Ray or Prefect. `make test` exports the same values.
QUIET = {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "DO_NOT_TRACK": "1",
    "MPLBACKEND": "Agg",
}


FLOWS = Path(__file__).parent / "flows"
SERVERS = "servers"  # one process of several has Prefect, Ray and S3 running, and all the tests that need them

for variable, quiet_value in QUIET.items():
    os.environ.setdefault(variable, quiet_value)  # at import: a folder's own conftest may import torch at once


def pytest_configure(config: pytest.Config) -> None:
    """Cut the run off from the settings, servers and databases of whoever starts it."""
    for name in [name for name in os.environ if name.startswith("LSAP_")]:
        del os.environ[name]
    home = tempfile.TemporaryDirectory(prefix="lsap-prefect-", ignore_cleanup_errors=True)
    config.add_cleanup(home.cleanup)
    os.environ["PREFECT_HOME"] = home.name
    os.environ.pop("PREFECT_API_URL", None)
    os.environ.pop("PREFECT_PROFILE", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares servers or files, and skip what needs a GPU where there is none."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(SERVERS if FLOWS in item.path.parents else str(item.path)))
    _skip_without_gpu(items)


def _skip_without_gpu(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, this machine has none"))
