"""What a flow returns, kept as a JSON file where `LSAP_RESULTS` says.

Prefect's own results are off (`persist_result=False` on every flow, which its tasks inherit): they would be pickles,
on the disk of whichever machine ran the flow, or in a storage block that has to be made on the server first.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, TypeVar

import prefect.runtime

from lsap_archive import Store
from tasks.settings import Settings

Report = TypeVar("Report")


def check_place() -> None:
    """Make sure, before any work is done, that what comes of it can be kept where `LSAP_RESULTS` says.

    Raises:
        ConfigError: that is no URL of a store, or carries a credential.
        StoreRefusedError, StoreUnavailableError: nothing can be written there.
    """
    url = Settings.from_environment().results
    if url is not None:
        Store.from_url(url).check_writable()


def kept(report: Report) -> Report:
    """The report of a flow as it is; with `LSAP_RESULTS` also in `<flow>/<flow run id>.json` below that URL.

    Raises:
        StoreUnavailableError: the storage does not answer; the flow's work is done all the same.
    """
    url = Settings.from_environment().results
    if url is not None:
        run = prefect.runtime.flow_run
        document: dict[str, Any] = {
            "flow": run.flow_name,
            "flow_run_id": run.id,
            "flow_run": run.name,
            "report": asdict(report),  # type: ignore[call-overload]
        }
        key = f"{run.flow_name}/{run.id}.json"
        Store.from_url(url).put(key, json.dumps(document, indent=2, default=str).encode())
    return report
