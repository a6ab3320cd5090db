"""What every test may rely on: a quiet environment of its own, and no GPU test without a GPU."""

import os
import tempfile

import pytest
from xdist.scheduler import LoadScopeScheduling

# Before anything imports torch, Ray or Prefect. `make test` exports the same values.
QUIET = {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "DO_NOT_TRACK": "1",
    "MPLBACKEND": "Agg",
}


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


class ByFileAndServers(LoadScopeScheduling):
    """A file's tests stay in one process, and one process has Prefect, Ray, S3 and all the tests that need them."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "servers" if file.startswith("tests/flows/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFileAndServers:
    """How tests are shared out where there are several processes."""
    return ByFileAndServers(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is no CUDA device, and say so."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, this machine has none"))
