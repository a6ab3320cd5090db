"""The automations of `deployments/`: taken by the command as they are, and a failed run is told to a webhook."""

from __future__ import annotations

import http.server
import json
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient

pytestmark = pytest.mark.slow

AUTOMATIONS = Path(__file__).parents[2] / "deployments" / "automations"


class Webhook:
    """A web server that keeps what is posted to it."""

    def __init__(self) -> None:
        self.posted: queue.Queue[dict[str, Any]] = queue.Queue()
        posted = self.posted

        class Receiver(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                posted.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *values: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    made = Webhook()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def api(prefect_server: Any) -> Iterator[SyncPrefectClient]:
    """Prefect's own client, which asks again where the server is too busy with its database."""
    with SyncPrefectClient(api=prefect_server.url) as client:
        yield client


def test_a_failed_run_is_told_and_a_silent_schedule_is_watched(
    api: SyncPrefectClient, prefect: Any, webhook: Webhook, tmp_path: Path
) -> None:
    block = save_block(api, webhook.url)
    for path in sorted(AUTOMATIONS.iterdir()):
        file = tmp_path / path.name
        file.write_text(path.read_text().replace("BLOCK_ID", block))
        done = prefect("--no-prompt", "automation", "create", "--from-file", str(file))
        assert done.code == 0, done.out + done.err
    kept = {each["name"]: each for each in api.request("POST", "/automations/filter", json={}).json()}
    try:
        assert kept["lsap-silent"]["trigger"]["within"] == 2 * 24 * 3600
        fail(api, "somebody else's", tags=[], message="not ours")
        fail(api, "ours", tags=["lsap", "inversion"], message="the disk is full")
        told = webhook.posted.get(timeout=60)
    finally:
        for each in kept.values():
            api.request("DELETE", f"/automations/{each['id']}")
    assert told["subject"] == "told Failed: ours"
    assert "the disk is full" in told["body"]
    assert webhook.posted.empty()


def save_block(api: SyncPrefectClient, url: str) -> str:
    """Id of a new notification block that posts subject and body."""
    kind = api.request("GET", "/block_types/slug/custom-webhook").json()["id"]
    wanted = {"block_schemas": {"block_type_id": {"any_": [kind]}}}
    schema = api.request("POST", "/block_schemas/filter", json=wanted).json()[0]["id"]
    data = {"name": "test", "url": url, "method": "POST", "json_data": {"subject": "{{subject}}", "body": "{{body}}"}}
    document = {"name": "lsap-alerts", "data": data, "block_type_id": kind, "block_schema_id": schema}
    identity: str = api.request("POST", "/block_documents/", json=document).json()["id"]
    return identity


def fail(api: SyncPrefectClient, name: str, tags: list[str], message: str) -> None:
    """A flow run that has failed."""
    flow = api.request("POST", "/flows/", json={"name": "told"}).json()["id"]
    asked = {"name": name, "flow_id": flow, "tags": tags, "state": {"type": "RUNNING", "name": "Running"}}
    run = api.request("POST", "/flow_runs/", json=asked).json()["id"]
    failed = {"state": {"type": "FAILED", "name": "Failed", "message": message}, "force": True}
    api.request("POST", f"/flow_runs/{run}/set_state", json=failed)
