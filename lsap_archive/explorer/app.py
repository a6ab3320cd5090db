"""The explorer as a Starlette application: a page, and what its script asks for."""

from __future__ import annotations

from collections.abc import Collection

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from lsap_archive.explorer.guard import LOOPBACK, Guard
from lsap_archive.explorer.live import LiveRenderer
from lsap_archive.reading.archive import Archive


def explorer_app(
    archive: Archive,
    *,
    live: LiveRenderer | None = None,
    token: str | None = None,
    hosts: Collection[str] | None = LOOPBACK,
) -> Starlette:
    """The application that shows an archive.

    Args:
        archive: as it was published when it was opened.
        live: renders edits while somebody looks; None for none.
        token: what a reader has to know; None for none.
        hosts: names by which this machine may be called; None for any, which needs a token.
    """

    def page(request: Request) -> Response:
        return PlainTextResponse(archive.url)

    return Starlette(routes=[Route("/", page)], middleware=[Middleware(Guard, token=token, hosts=hosts)])
