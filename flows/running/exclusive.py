"""One writer at a time for each region of an archive, over all runs that report to one Prefect server.

A region is a concurrency limit of 1 on the server, named after the archive and the part of it that is written; it is
made when it is missing. It keeps runs from doing the same work twice. What keeps an archive whole, whoever writes, is
that its objects can only be created.

The server gives a slot back when its lease is not renewed, unless it has forgotten the lease: it keeps leases in memory
by default, slots in its database. Therefore each writer also says on its own flow run what it is about to write (a
tag) and which process it is (a label). A slot that is taken while nobody alive says so was left by a dead writer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import httpx
import psutil
from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import ConcurrencyLeaseHolder, FlowRun
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.states import Crashed

from flows.parameters.shared import WhenBusy
from flows.running.ending import take_signals, when_interrupted

Part = Literal["inversions", "refinements", "edits", "evaluations", "training", "reproduction"]
LOCKED = 423
LEASE_SECONDS = 300.0  # a writer on a machine that has vanished is forgotten after this time
ASK_AGAIN_SECONDS = 5.0
TELL_AGAIN_SECONDS = 300.0
SAME_START_SECONDS = 1.0  # the start of one process, read twice; the next one with its number comes later
PROCESS = "lsap.process"
MACHINE = "lsap.machine"
STARTED = "lsap.process.started"


class BusyError(RuntimeError):
    """Another run writes there, and this one was asked not to wait."""


@contextlib.contextmanager
def writing(archive: str, part: Part, when_busy: WhenBusy = "wait") -> Iterator[None]:
    """Be the only flow run that writes this part of an archive; called inside a flow.

    Args:
        archive: path or URL.
        part: what is written; runs that write different parts do not disturb each other.
        when_busy: whether to wait for the run that writes there now, or to refuse.

    Raises:
        BusyError: another run writes there, and `when_busy` is "refuse"; the message names it.
    """
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None, "writing() belongs inside a flow"
    take_signals()  # from Prefect, which has caught SIGTERM since the flow began
    run, held = context.flow_run, contextlib.ExitStack()
    with when_interrupted(lambda: _tell(run, held)), get_client(sync_client=True) as client, held:
        region = _Region(client, run, region_name(archive, part))
        told_at: float | None = None
        while not region.enter(held):
            writer = region.writer()
            if writer is None:
                region.clear()
                continue
            sentence = f"{part} of {archive} are written by {_described(writer)}"
            if when_busy == "refuse":
                raise BusyError(f"{sentence}: try again when it has ended, or ask to wait with when_busy=wait")
            if told_at is None or time.monotonic() - told_at > TELL_AGAIN_SECONDS:
                get_run_logger().info("waiting: %s", sentence)
                told_at = time.monotonic()
            time.sleep(ASK_AGAIN_SECONDS * random.uniform(0.5, 1.5))  # two that wait do not ask in step
        try:
            yield
        finally:
            _give_back(held)


def region_name(archive: str, part: Part) -> str:
    """Name of the limit and of the tag.

    Example:
        >>> region_name("s3://bucket/archive", "edits") == region_name("s3://bucket/archive/", "edits")
        True
    """
    place = archive.removeprefix("file://")
    place = place.rstrip("/") if "://" in place else str(Path(place).resolve())
    return f"writes-{part}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"


class _Region:
    """A limit of the server, and the flow run that wants its only slot."""

    def __init__(self, client: SyncPrefectClient, run: FlowRun, name: str):
        self._client = client
        self._run = run
        self._name = name
        self._limit_id = ""
        client.update_flow_run_labels(run.id, _this_process())

    def enter(self, held: contextlib.ExitStack) -> bool:
        """Take the slot until `held` is closed; False when it is taken."""
        if not self._is_free():
            return False
        self._say([*self._run.tags, self._name])  # before the slot is taken, so that no writer is ever unknown
        slot = concurrency(
            self._name,
            max_retries=0,
            lease_duration=LEASE_SECONDS,
            strict=True,
            holder=ConcurrencyLeaseHolder(type="flow_run", id=self._run.id),
            raise_on_lease_renewal_failure=False,  # a server that is away for a while stops nobody
        )
        try:
            held.enter_context(slot)
        except Exception as error:
            if _status_of(error) != LOCKED:
                raise
            self._say(self._run.tags)  # somebody was quicker
            return False
        return True

    def writer(self) -> FlowRun | None:
        """The run that is at work in the region, or None when all that said so are dead."""
        states = {"type": {"any_": ["RUNNING", "CANCELLING"]}}
        found = FlowRunFilter.model_validate({"tags": {"all_": [self._name]}, "state": states})
        for run in self._client.read_flow_runs(flow_run_filter=found):
            if _is_alive(run):
                return run
            get_run_logger().warning("%s is dead; going on in its place", _described(run))
            self._client.set_flow_run_state(run.id, Crashed(message="Its process is gone."), force=True)
        return None

    def clear(self) -> None:
        """Throw the limit away whose slot a dead run has left taken; by its id, so that nobody's new one goes."""
        with contextlib.suppress(ObjectNotFound):
            self._client.delete_global_concurrency_limit_by_name(self._limit_id)

    def _is_free(self) -> bool:
        try:  # asked for first: a server that is asked to make what is there prints a page about it
            limit = self._client.read_global_concurrency_limit_by_name(self._name)
        except ObjectNotFound:
            with contextlib.suppress(ObjectAlreadyExists):
                self._client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=self._name, limit=1))
            limit = self._client.read_global_concurrency_limit_by_name(self._name)
        self._limit_id = str(limit.id)
        return limit.active_slots < limit.limit

    def _say(self, tags: list[str]) -> None:
        self._client.update_flow_run(self._run.id, tags=tags)


def _give_back(held: contextlib.ExitStack) -> None:
    """Leave the region; a server that does not hear it takes nothing from what was done."""
    try:
        held.close()
    except httpx.HTTPError as error:
        get_run_logger().warning("the next writer has to find out that this one has ended: %s", error)


def _tell(run: FlowRun, held: contextlib.ExitStack) -> None:
    """Tell the server, when the command is interrupted, that the run has ended and the region is free."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Crashed(message="It was interrupted."), force=True)
    held.close()


def _status_of(error: Exception) -> int | None:
    """Status of the server's answer that is the cause of an error."""
    cause = error.__cause__
    return cause.response.status_code if isinstance(cause, httpx.HTTPStatusError) else None


def _this_process() -> dict[str, str | int | float]:
    process = psutil.Process()
    return {MACHINE: _machine(), PROCESS: process.pid, STARTED: process.create_time()}


def _machine() -> str:
    """Where process ids mean the same: the host, and on Linux the namespace of its process ids."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {os.readlink(namespace) if namespace.exists() else ''}".strip()


def _is_alive(run: FlowRun) -> bool:
    """Whether a run that the server believes to be running is; one on another machine is believed."""
    if run.labels.get(MACHINE) != _machine():
        return True
    try:
        process = psutil.Process(int(run.labels[PROCESS]))
        is_same = abs(process.create_time() - float(run.labels[STARTED])) < SAME_START_SECONDS
        return is_same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _described(run: FlowRun) -> str:
    where, process = str(run.labels.get(MACHINE, "?")).partition(" ")[0], run.labels.get(PROCESS, "?")
    since = f"since {run.start_time:%Y-%m-%d %H:%M:%S} UTC" if run.start_time else "now"
    return f'flow run "{run.name}" (process {process} on {where}, {since})'
