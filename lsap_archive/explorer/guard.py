"""Who is answered: pages of this host alone, and with a token those who know it. What every answer is sent with."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
TOKEN = "token"
_SENT_WITH = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Stands before an application and refuses what comes from elsewhere.

    A page of another site may neither read nor ask: its requests are told by `Sec-Fetch-Site`, and a name of its own
    that it has lead to this machine (DNS rebinding) by `Host`. With a token, whoever has not shown it once is refused;
    a cookie, which no script and no other site sees, then stands for it.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, hosts: Collection[str] | None) -> None:
        """Stand before `app`.

        Args:
            app: what answers.
            token: None for none.
            hosts: names by which this machine may be called, without port; None for any, which needs a token.
        """
        assert hosts is not None or token, "any name is safe with a token alone"
        self._app = app
        self._token = token
        self._hosts = None if hosts is None else {one.lower() for one in hosts}
        digest = hmac.digest((token or "").encode(), b"lsap explorer", hashlib.sha256).hex()
        self._cookie_name, self._cookie = f"lsap_explorer_{digest[:8]}", digest[8:]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # WebSockets: there are none
            await send({"type": "websocket.close", "code": 1008})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SENT_WITH)
            await send(message)

        refused = self._refusal(Request(scope))
        await (refused or self._app)(scope, receive, with_headers)

    def _refusal(self, request: Request) -> Response | None:
        if self._hosts is not None and _host_of(request.headers) not in self._hosts:
            wanted = ", ".join(sorted(self._hosts))
            return _refused(f"This explorer is asked for by another name than its own: use one of {wanted}.", 421)
        site, mode = (request.headers.get(f"sec-fetch-{name}", "none") for name in ("site", "mode"))
        is_page = request.url.path == "/" and mode == "navigate"
        if site not in ("none", "same-origin") and not is_page:
            return _refused("A page of another site asks for this: open the explorer itself.", 403)
        if request.method not in ("GET", "HEAD"):
            return _refused("Nothing is changed here: only GET is answered.", 405)
        return self._without_token(request) if self._token else None

    def _without_token(self, request: Request) -> Response | None:
        """What is answered to those who have shown no token, and to those who show it; None for all others."""
        assert self._token is not None
        if given := request.query_params.get(TOKEN):
            if not _equal(given, self._token):
                return _refused("This is not the token that this explorer was started with.", 403)
            rest = [(name, value) for name, value in parse_qsl(request.url.query, True) if name != TOKEN]
            answer = RedirectResponse("/" + (f"?{urlencode(rest)}" if rest else ""), 303)
            answer.set_cookie(self._cookie_name, self._cookie, httponly=True, samesite="strict")
            answer.headers["Cache-Control"] = "no-store"
            return answer
        if _equal(request.cookies.get(self._cookie_name, ""), self._cookie):
            return None
        return _refused("A token is wanted: open the address that was printed when this explorer was started.", 403)


def _host_of(headers: Headers) -> str:
    """The name in `Host`, without port and brackets; "" where there is not one."""
    hosts = headers.getlist("host")
    if len(hosts) != 1:
        return ""
    host = hosts[0].lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _refused(sentence: str, status: int) -> Response:
    return PlainTextResponse(sentence + "\n", status, {"Cache-Control": "no-store"})
