"""Serving the explorer from this process until Ctrl-C."""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
from collections.abc import Callable

import uvicorn

from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.explorer.app import explorer_app
from lsap_archive.explorer.guard import LOOPBACK, TOKEN
from lsap_archive.explorer.live import LiveRenderer
from lsap_archive.reading.archive import Archive

AUTO = "auto"
_SHORTEST_TOKEN = 16  # characters; "auto" has 43


def serve(
    archive: Archive,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    live: LiveRenderer | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Show an archive as a web page, until Ctrl-C: what `lsap_archive.explorer.door.explore_archive` imports and calls.

    Its arguments and errors are told there.
    """
    if token == AUTO:
        token = secrets.token_urlsafe(32)
    if token is not None and len(token) < _SHORTEST_TOKEN:
        raise ArchiveMismatchError(f"a token of {len(token)} characters can be guessed: give --token auto")
    is_any = host in ("", "0.0.0.0", "::")
    if token is None and not _is_loopback(host):
        raise ArchiveMismatchError(f"other machines reach {host or 'every address'}: give --token auto as well")
    listening = _listen(host, port)
    app = explorer_app(archive, live=live, token=token, hosts=None if is_any else (*LOOPBACK, host))
    name = socket.gethostname() if is_any else f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listening.getsockname()[1]}/" + (f"?{TOKEN}={token}" if token else "")
    config = uvicorn.Config(
        app,
        log_config=None,  # whoever serves decides how lines are shown: names in them are anybody's
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
    )
    announce(address)
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens; by name or by number."""
    if not 0 <= port < 2**16:
        raise ArchiveMismatchError(f"port {port} is none: 0 to {2**16 - 1} is wanted")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with contextlib.ExitStack() as on_failure:
            listening = on_failure.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(128)
            on_failure.pop_all()
    except OSError as error:
        raise ArchiveMismatchError(
            f"nothing can listen on {host}, port {port}: {error}: give another --port"
        ) from error
    return listening
