"""What a flow run's page shows: how far the work is while it goes on, and at the end what came of it."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Iterator
from urllib.parse import quote
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from tasks.pictures.sheets import small_picture
from tasks.visible_text import in_markdown

IN_URLS = ":/?#[]@!$&'()*+,;=%~"  # what a URL may have; the rest could end a link
UPDATE_SECONDS = 5.0
"""The shortest time from one update of a progress artifact to the next."""


class ProgressArtifact:
    """A bar on the flow run's page; made inside a flow, updated from any thread."""

    def __init__(self, what: str):
        self._what = what
        self._logger = get_run_logger()
        self._shown = 0.0
        self._next_update = time.monotonic() + UPDATE_SECONDS
        self._id: UUID | None = None
        with self._telling():
            made = create_progress_artifact(0.0, key="progress", description=f"{what}: 0 %")
            assert isinstance(made, UUID)  # a coroutine where a loop runs, which no flow of ours does
            self._id = made

    def show(self, share: float, note: str = "") -> None:
        """Show a share in [0, 1], unless the last one is only seconds old."""
        if time.monotonic() >= self._next_update:
            self._update(share, note)

    def finish(self, share: float, note: str = "") -> None:
        """Show the last share."""
        self._update(share, note)

    def _update(self, share: float, note: str) -> None:
        percent = round(100 * min(max(share, 0.0), 1.0), 1)
        self._next_update = time.monotonic() + UPDATE_SECONDS
        if self._id is None or percent == self._shown:
            return
        self._shown = percent
        told = f"{self._what}: {percent:g} %{note and f', {note}'}"
        with self._telling(), get_client(sync_client=True) as client:
            client.update_artifact(self._id, ArtifactUpdate(data=percent, description=told))

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """A server that does not answer costs the bar, not the work."""
        try:
            yield
        except httpx.HTTPError as error:
            self._logger.warning("the progress is not shown on this run's page: %s", error)


def publish_artifacts(key: str, outcome: str, table: str, *, links: dict[str, str], sheet: str | None = None) -> None:
    """Put what came of a run on its page: a sentence, the table, a contact sheet, and where everything lies.

    Args:
        key: name of the artifact; artifacts of one name are versions of each other.
        outcome: what the run did, one line; the description, which stands above the text.
        table: Markdown.
        links: URLs by what lies there.
        sheet: URL of a picture to show; a small copy is kept in the artifact, because no browser can reach a bucket.
    """
    get_run_logger().info(outcome)
    parts = [table]
    if sheet is not None:
        picture = base64.b64encode(small_picture(sheet)).decode()
        parts.append(f"![contact sheet](data:image/jpeg;base64,{picture})")
    parts.append(
        "\n".join(["| what | where |", "| --- | --- |", *(f"| {what} | {_link(links[what])} |" for what in links)])
    )
    try:
        create_markdown_artifact(key=key, markdown="\n\n".join(parts), description=in_markdown(outcome))
    except httpx.HTTPError as error:
        get_run_logger().warning("what came of this run is not shown on its page: %s", error)


def _link(url: str) -> str:
    """A link where a browser can follow it, else the URL to copy."""
    shown = in_markdown(url)
    if url.startswith(("http://", "https://")):
        return f"[{shown}](<{quote(url, safe=IN_URLS, errors='replace')}>)"
    return f"`{url}`" if shown == url else shown
