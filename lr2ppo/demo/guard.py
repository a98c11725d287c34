"""Protect a page's server: whose requests it answers, how much it takes at once, and how long it waits for a client."""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lr2ppo.demo.address import Hosts, plain_host

# Seconds without progress: of a started head or body, or of reading a response.
PATIENCE = 10.0
# A body must also arrive at this rate on average, or a byte now and then would keep its place for ever.
LEAST_BYTES_PER_SECOND = 10_000
MOST_REQUESTS = 100
# A path and a query; the longest in use names an uploaded file, percent-encoded.
LONGEST_PATH, LONGEST_QUERY = 4096, 300
HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
PORTS = {"http": 80, "https": 443}
# A proxy's word for who asks and for what address; there is none, so they are a client's inventions.
FORWARDED = re.compile(rb"forwarded|x-forwarded-.*|x-original-.*|x-rewrite-.*|x-gradio-server")

# The most bytes of a request's body, by its path.
BodyLimit = Callable[[str], int]


@dataclass
class Guard:
    """An ASGI app before another: refuses foreign hosts and origins, large and slow bodies, and too many requests.

    An app behind it sees a fault of a body as `HTTPException` from `receive`, and may raise it to refuse a request.
    starlette's own middleware for hosts knows no IPv6 addresses.
    """

    app: ASGIApp
    hosts: Hosts
    most_bytes: BodyLimit
    running: int = field(default=0, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif self.running >= MOST_REQUESTS:
            await _busy(scope, receive, send)
        else:
            self.running += 1
            try:
                await self._answer(scope, receive, send)
            finally:
                self.running -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(receive, self.most_bytes(scope["path"]))
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = list(message.get("headers", ()))
                headers = MutableHeaders(raw=message["headers"])
                # Neither a browser's guess of a type nor a frame in another site's page.
                headers["x-content-type-options"] = "nosniff"
                headers["x-frame-options"] = "SAMEORIGIN"
                if status >= 400:
                    # The rest of the body may be no request.
                    headers["connection"] = "close"
            elif status >= 400 and not message.get("more_body", False) and "expect" not in Headers(scope=scope):
                await _end_after_body(message, body, send)
                return
            await send(message)

        try:
            check_request(scope, self.hosts)
            kept = [(key, value) for key, value in scope["headers"] if not FORWARDED.fullmatch(key)]
            body.check_length(Headers(scope=scope))
            await self.app({**scope, "headers": kept}, body.receive, sending)
        except HTTPException as fault:
            if not status:
                await PlainTextResponse(fault.detail, fault.status_code)(scope, receive, sending)
        except ClientDisconnect:
            # Nobody is left to answer.
            return


def check_request(scope: Scope, hosts: Hosts) -> None:
    """Raise `HTTPException` for a request with a foreign host or origin, or an endless address."""
    headers = Headers(scope=scope)
    found = [HOST.fullmatch(host) for host in headers.getlist("host")]
    if len(found) != 1 or found[0] is None or not hosts.allow(found[0]["name"]):
        raise HTTPException(
            403, "This server does not go by the name in Host: use its address as printed, or name it with --host."
        )
    if not all(_is_own(origin, found[0]) for origin in headers.getlist("origin")):
        raise HTTPException(403, "The request comes from a page of another site (Origin).")
    # What a browser sends without an Origin, such as for an image in another site's page.
    foreign = headers.get("sec-fetch-site") not in (None, "same-origin", "none")
    if foreign and headers.get("sec-fetch-dest") != "document":
        raise HTTPException(403, "The request comes from a page of another site (Sec-Fetch-Site).")
    if len(scope.get("raw_path") or scope["path"]) > LONGEST_PATH or len(scope["query_string"]) > LONGEST_QUERY:
        raise HTTPException(414, "The address is too long.")


def _is_own(origin: str, host: re.Match[str]) -> bool:
    """Whether an Origin is the scheme, name and port by which this server is asked."""
    scheme, _, rest = origin.partition("://")
    found = HOST.fullmatch(rest)
    if scheme not in PORTS or found is None:
        return False
    ports = [int(each["port"] or PORTS[scheme]) for each in (found, host)]
    return plain_host(found["name"]) == plain_host(host["name"]) and ports[0] == ports[1]


class _Body:
    """A request's body, with a limit of its bytes and of the time that each piece and the whole may take."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most = receive, most
        self._bytes, self._complete = 0, False
        self._since: float | None = None

    def check_length(self, headers: Headers) -> None:
        """Raise `HTTPException` before any of the body is read if it says that it is too long."""
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 15 or int(length) > self._most:
            raise self._too_long()

    async def receive(self) -> Message:
        if self._complete:
            # Waits for the client to leave, as long as the response takes.
            return await self._receive()
        now = asyncio.get_running_loop().time()
        self._since = self._since or now
        slowest = self._since + self._bytes / LEAST_BYTES_PER_SECOND
        try:
            async with asyncio.timeout_at(min(slowest, now) + PATIENCE):
                message = await self._receive()
        except TimeoutError:
            self._complete = True
            raise HTTPException(
                408, f"The body came too slowly: wanted a piece every {PATIENCE:.0f} seconds."
            ) from None
        self._bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._bytes > self._most:
            raise self._too_long()
        return message

    async def discard(self) -> None:
        """Take what still comes, for a while: a client that cannot send it would not read the answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while not self._complete:
                    self._complete = not (await self._receive()).get("more_body", False)

    def _too_long(self) -> HTTPException:
        return HTTPException(413, f"The body is too large: wanted at most {self._most:,} bytes.")


async def read_body(receive: Receive) -> bytes:
    """Read a request's whole body."""
    pieces, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


async def _end_after_body(message: Message, body: _Body, send: Send) -> None:
    """Send the end of a response, and close only after the request's body: its client reads nothing before."""
    await send({**message, "more_body": True})
    await body.discard()
    await send({"type": "http.response.body", "body": b""})


BUSY = PlainTextResponse(
    "Too many requests at once: try again in a moment.", 503, {"retry-after": "5", "connection": "close"}
)


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.body" and "expect" not in Headers(scope=scope):
            await _end_after_body(message, _Body(receive, 0), send)
        else:
            await send(message)

    await BUSY(scope, receive, sending)
