"""The way to the explorer for those who may not have what it stands on."""

from __future__ import annotations

from collections.abc import Callable

from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.explorer.live import LiveRenderer
from lsap_archive.reading.archive import Archive


def explore_archive(
    archive: Archive,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    live: LiveRenderer | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Show an archive as a web page, until Ctrl-C: `lsap_archive.explorer.serve`, imported when it is called.

    Args:
        archive: as it was published when it was opened.
        host: address or name to listen on; one that other machines reach wants a token.
        port: 0 for any that is free.
        token: what a reader has to know, "auto" for one that is made; None for none, on this machine alone.
        live: renders edits while somebody looks; None for none.
        announce: is told the page's address, with the token, once it can be opened.

    Raises:
        ArchiveMismatchError: Starlette, Jinja or uvicorn is not installed, another machine could read without a token,
            the token is short, or the port is taken.
        KeyboardInterrupt: Ctrl-C, after what is under way has ended.
    """
    try:
        from lsap_archive.explorer.serve import serve
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("starlette", "jinja2", "uvicorn"):
            raise
        raise ArchiveMismatchError(
            f"the explorer needs {missing}, which is not installed: pip install 'lsap-archive[explore]'"
        ) from error
    serve(archive, host=host, port=port, token=token, live=live, announce=announce)
