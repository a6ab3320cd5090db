"""An S3 server's bad days: a proxy in front of it that answers wrongly, cuts connections and tells who asks for what.

Every decision follows from a seed and from the request itself, not from the order in which requests arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import aiohttp
import psutil
from aiohttp import web

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
SLOW_SECONDS = 1.0
ERROR = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{text}</Message></Error>'
ANSWERS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "ServiceUnavailable", "Service is unable to handle request."),
    "throttled": (503, "SlowDown", "Please reduce your request rate."),
    "too many requests": (429, "TooManyRequests", "Please reduce your request rate."),
    "skewed": (403, "RequestTimeTooSkewed", "The difference between the request time and the server's is too large."),
    "denied": (403, "AccessDenied", "Access Denied"),
}
CUTS = ("reset before", "reset after", "truncated")  # the connection ends; "after": the store has done what was asked
DISTURBANCES = ("500", "503", "throttled", "too many requests", "slow", *CUTS)


@dataclass(frozen=True)
class StoreRequest:
    """One request to the store.

    Attributes:
        client: access key of who asks.
        verb: HEAD, GET, LIST, PUT, COPY or DELETE.
        key: of the object, with its bucket; of a listing or a deletion of many, what it begins with.
        port: of the client's end of the connection.
    """

    client: str
    verb: str
    key: str
    port: int


Watcher = Callable[[StoreRequest, str], bool]
Disturber = Callable[[StoreRequest], str | None]
Holder = Callable[[StoreRequest], Callable[[], bool] | None]


class FaultProxy:
    """Forwards to an S3 server, in a thread of its own.

    Attributes:
        endpoint: where it listens.
        watch: told of every request "before" it is forwarded and "after" the store has answered, while the client
            still waits; may end processes, and says whether it did: then what was not forwarded never is.
        log: every request that was forwarded.
        hold: names what a request waits for before it is forwarded, while others pass; None where it need not wait.
        disturb: names what is done to a request, one of ANSWERS, DISTURBANCES or None.
        disturbed: how many requests were disturbed, by kind.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self.watch: Watcher | None = None
        self.hold: Holder | None = None
        self.disturb: Disturber | None = None
        self.log: list[StoreRequest] = []
        self.disturbed: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.endpoint = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)

    @contextlib.contextmanager
    def watched(self, watcher: Watcher) -> Iterator[None]:
        """Be watched for a while."""
        self.watch = watcher
        try:
            yield
        finally:
            self.watch = None

    @contextlib.contextmanager
    def holding(self, holder: Holder) -> Iterator[None]:
        """Hold requests for a while."""
        self.hold = holder
        try:
            yield
        finally:
            self.hold = None

    @contextlib.contextmanager
    def disturbing(self, disturber: Disturber) -> Iterator[Counter[str]]:
        """Disturb for a while; counts by kind what is done."""
        self.disturb, self.disturbed = disturber, Counter()
        try:
            yield self.disturbed
        finally:
            self.disturb = None

    def close(self) -> None:
        """Refuse every connection from now on."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _start(self) -> str:
        self._session = aiohttp.ClientSession(
            auto_decompress=False, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=120)
        )
        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port: int = self._runner.addresses[0][1]
        return f"http://127.0.0.1:{self.port}"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _answer(self, asked: web.Request) -> web.StreamResponse:
        try:
            body = await asked.read()
        except ConnectionResetError:  # who asked has been killed
            return _reset(asked)
        request = _request_of(asked)
        kind = self.disturb(request) if self.disturb else None
        if kind is not None:
            self.disturbed[kind] += 1
        if kind in ANSWERS:
            status, code, text = ANSWERS[kind]
            return web.Response(status=status, text=ERROR.format(code=code, text=text), content_type="application/xml")
        if kind == "reset before":
            return _reset(asked)
        if self.watch and self.watch(request, "before"):
            return _reset(asked)
        if self.hold and (has_come := self.hold(request)):
            while not has_come():
                await asyncio.sleep(0.02)
        self.log.append(request)
        status, headers, content = await self._forwarded(asked, body)
        if self.watch:
            self.watch(request, "after")
        if kind == "slow":
            await asyncio.sleep(SLOW_SECONDS)
        if kind == "reset after":
            return _reset(asked)
        if kind == "truncated" and len(content) > 1:
            answer = web.StreamResponse(status=status, headers=headers)
            await answer.prepare(asked)
            await answer.write(content[: len(content) // 2])
            return _reset(asked)
        return web.Response(status=status, headers=headers, body=content or None)

    async def _forwarded(self, asked: web.Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in asked.headers.items() if name.lower() not in HOP_BY_HOP}
        async with self._session.request(
            asked.method,
            f"{self._upstream}{asked.raw_path}",
            data=io.BytesIO(body),
            headers=headers,
            allow_redirects=False,
        ) as answer:
            content = await answer.read()
            return answer.status, {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}, content

    def process_of(self, request: StoreRequest) -> int:
        """Process id of who asks; the one whose socket is the other end of the connection."""
        for connection in psutil.net_connections("tcp4"):
            if connection.laddr.port == request.port and connection.raddr and connection.raddr.port == self.port:
                assert connection.pid is not None
                return connection.pid
        raise LookupError(f"nobody has the connection of {request}")


def share_of_requests(seed: int, share: float, kinds: tuple[str, ...]) -> Disturber:
    """Disturbs a share of the requests; which and how follows from the seed and how often that was asked before."""
    times: Counter[tuple[str, str]] = Counter()

    def disturb(request: StoreRequest) -> str | None:
        asked = (request.verb, request.key)
        times[asked] += 1
        digest = hashlib.sha256(f"{seed}:{asked}:{times[asked]}".encode()).digest()
        if int.from_bytes(digest[:4], "big") >= share * 2**32:
            return None
        return kinds[digest[4] % len(kinds)]

    return disturb


def _request_of(asked: web.Request) -> StoreRequest:
    verb, key = asked.method, asked.path.strip("/")
    if verb == "GET" and "list-type" in asked.query:
        verb, key = "LIST", f"{key}/{asked.query.get('prefix', '')}"
    elif verb == "PUT" and "x-amz-copy-source" in asked.headers:
        verb = "COPY"
    elif verb == "POST" and "delete" in asked.query:
        verb = "DELETE"
    credential = re.search(r"Credential=([^/]+)/", asked.headers.get("Authorization", ""))
    assert asked.transport is not None
    return StoreRequest(
        client=credential[1] if credential else "",
        verb=verb,
        key=key,
        port=asked.transport.get_extra_info("peername")[1],
    )


def _reset(asked: web.Request) -> web.StreamResponse:
    """End the connection as a machine does that has just lost its memory of it."""
    assert asked.transport is not None
    end: socket.socket = asked.transport.get_extra_info("socket")
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    asked.transport.abort()
    return web.StreamResponse()


def s3_client_environment(endpoint: str, client: str) -> Mapping[str, str]:
    """The usual variables of an S3 client, with which the proxy knows who asks."""
    return {"AWS_ACCESS_KEY_ID": client, "AWS_SECRET_ACCESS_KEY": "none", "AWS_ENDPOINT_URL": endpoint}
