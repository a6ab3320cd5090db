"""Thousands of digits through the whole pipeline, into a bucket of a server on this machine: speed, requests, bytes.

`lsap run invert`, `edit` and `evaluate` as commands, one after the other, then `invert` with nothing left to do.
Requests are counted in the server's own log, so those of every process are in; bytes are those of the listing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from measurement import environment
from s3_server import opened_s3_server

from lsap_archive import Store, open_archive

BUCKET = "rehearsal"
METHODS = ["psp", "e4e", "lsap_e", "lsap_o_w_plus"]
REQUEST = re.compile(rb'"(GET|PUT|HEAD|POST|DELETE) (\S+) HTTP')


@dataclass(frozen=True)
class Server:
    """An S3 server in a process of its own, and the log of its requests."""

    endpoint: str
    log: Path

    def requests(self, since: int) -> dict[str, int]:
        """Requests by kind after a position in the log; copies are among "put"."""
        counts: Counter[str] = Counter()
        for method, target in REQUEST.findall(self.log.read_bytes()[since:]):
            is_listing = method == b"GET" and b"list-type" in target
            counts["list" if is_listing else method.decode().lower()] += 1
        return dict(counts)


@contextlib.contextmanager
def opened_server(folder: Path) -> Iterator[Server]:
    """A server with an empty bucket."""
    path = folder / "requests.log"
    with path.open("wb") as log, opened_s3_server(BUCKET, log) as server:
        yield Server(server.endpoint, path)


def stages(images: int, archive: str, options: argparse.Namespace) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, verb and request of each command."""
    source = f"digits:train[:{images}]"
    workers = {"count": options.workers, "threads": 1, "device": "cpu"}
    shared = {"archive": archive, "domain": "digits", "workers": workers}
    invert = shared | {"source": source, "methods": METHODS, "embedding": {"num_steps": options.steps}}
    edits = shared | {"methods": ["lsap_e"], "edits": {"slant": {"direction": "slant", "strength": 1.0}}}
    return [
        ("invert", "invert", invert),
        ("edit", "edit", edits),
        ("evaluate", "evaluate", shared | {"source": source, "methods": ["lsap_e", "lsap_e/slant"]}),
        ("nothing left to do", "invert", invert),
    ]


def run_stage(folder: Path, name: str, verb: str, request: dict[str, Any], server: Server) -> dict[str, Any]:
    """One command: its seconds, requests, and the objects and bytes that the archive has after it."""
    path = folder / "request.yaml"
    path.write_text(yaml.safe_dump(request))
    before, started = server.log.stat().st_size, time.perf_counter()
    command = [sys.executable, "-m", "flows.commands.cli", "run", verb, str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr[-3000:]}")
    requests = server.requests(before)
    sizes = Store.from_url(request["archive"]).sizes()
    told = json.loads(done.stdout)
    print(f"{name}: {seconds:.0f} s, {sum(requests.values())} requests {requests}", flush=True)
    return {
        "stage": name,
        "seconds": seconds,
        "requests": requests,
        "objects": len(sizes),
        "bytes": sum(sizes.values()),
        "images_per_second": told.get("images_per_second"),
    }


def bytes_by_method(archive: str) -> dict[str, float]:
    """Bytes of an image's codes, noise maps, trace and row, as they lie in the bucket."""
    sizes = Store.from_url(archive).sizes()
    return {
        run.method: sum(size for key, size in sizes.items() if key.startswith(f"runs/{run.run_id}/")) / run.num_rows
        for run in open_archive(archive).runs
    }


def main(arguments: list[str] | None = None) -> None:
    """Rehearse, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000, help="of the 4000 of digits:train")
    parser.add_argument("--steps", type=int, default=10, help="of the optimization")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to")
    parser.add_argument("--commit", help="what was measured, where the code lies outside git")
    options = parser.parse_args(arguments)
    line = {"benchmark": "rehearsal", **environment(torch.device("cpu"), options.commit)}
    line |= {"load_average": [round(one, 2) for one in os.getloadavg()]}
    line |= {"images": options.images, "steps": options.steps, "workers": options.workers, "methods": METHODS}
    with tempfile.TemporaryDirectory() as name, opened_server(Path(name)) as server:
        folder, archive = Path(name), f"s3://{BUCKET}/archive"
        os.environ |= {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": "rehearsal",
            "AWS_SECRET_ACCESS_KEY": "rehearsal",
        }
        line["stages"] = [run_stage(folder, *stage, server) for stage in stages(options.images, archive, options)]
        line["bytes_of_an_image"] = bytes_by_method(archive)
    print(json.dumps(line["bytes_of_an_image"]))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("a") as file:
            print(json.dumps(line), file=file)


if __name__ == "__main__":
    main()
