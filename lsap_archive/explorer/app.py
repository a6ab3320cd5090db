"""The explorer as a Starlette application: a page, and what its script asks for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lsap_archive.errors import (
    ArchiveError,
    ArchiveKeyError,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    QueryError,
    StoreRefusedError,
)
from lsap_archive.explorer.answers import Answers
from lsap_archive.explorer.guard import LOOPBACK, Guard
from lsap_archive.explorer.live import LiveRenderer
from lsap_archive.explorer.page import page_of, static_files
from lsap_archive.reading.archive import Archive
from lsap_archive.stores.credentials import Secrets

_ASKED_WRONGLY = (ArchiveKeyError, ArchiveMismatchError, ArchiveNotFoundError, QueryError, StoreRefusedError)


def explorer_app(
    archive: Archive,
    *,
    live: LiveRenderer | None = None,
    token: str | None = None,
    hosts: Collection[str] | None = LOOPBACK,
) -> Starlette:
    """The application that shows an archive; copies its rows into a database of its own first.

    Args:
        archive: as it was published when it was opened.
        live: renders edits while somebody looks; None for none.
        token: what a reader has to know; None for none.
        hosts: names by which this machine may be called; None for any, which needs a token.

    Raises:
        CorruptArchiveError: rows or measurements are missing or altered.
    """
    answers = Answers(archive, live)
    files = static_files()
    page = page_of(archive.url)

    def show(request: Request) -> Response:
        return Response(page, media_type="text/html", headers={"Cache-Control": "no-cache"})

    def static(request: Request) -> Response:
        found = files.get(request.path_params["name"])
        if found is None:
            return JSONResponse({"error": "there is no such file"}, 404)
        return Response(found.content, media_type=found.media_type, headers={"Cache-Control": "no-cache"})

    return Starlette(
        routes=[
            Route("/", show),
            Route("/static/{name}", static),
            Route("/api/archive", answers.archive),
            Route("/api/selection", answers.selection),
            Route("/api/histogram", answers.histogram),
            Route("/api/image", answers.image),
            Route("/api/neighbours", answers.neighbours),
            Route("/picture", answers.picture),
            Route("/live", answers.live),
            Route("/download/{name}", answers.download),
        ],
        middleware=[Middleware(Guard, token=token, hosts=hosts)],
        exception_handlers={ArchiveError: _told},
    )


async def _told(request: Request, error: Any) -> Response:
    """An error of the archive as a sentence."""
    status = 400 if isinstance(error, _ASKED_WRONGLY) else 503
    return JSONResponse({"error": Secrets().hide(str(error))}, status, {"Cache-Control": "no-store"})
