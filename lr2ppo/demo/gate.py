"""Pass to gradio only the requests that the page itself makes, about its own files; refuse everything else.

gradio has many more routes, and opens and even downloads what a field's value names before our functions see it.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lr2ppo.demo.guard import read_body
from lr2ppo.demo.inputs import LONGEST_LABEL, MOST_LABELS
from lr2ppo.demo.uploads import MINUTES_KEPT, UNKNOWN, Uploads

API = "/gradio_api"
FILE, UPLOAD, JOIN, RESULTS = f"{API}/file=", f"{API}/upload", f"{API}/queue/join", f"{API}/queue/data"
READ = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(?:assets|static|svelte)(?:/[\w@+-][\w@+.-]*)+|"
    rf"{API}/(?:startup-events|info|theme\.css)"
)
# Asked by the page's script, which shows none if nothing comes; gradio would keep for ever what it counts.
PROGRESS = f"{API}/upload_progress"
# The name of what a path's query may hold.
QUERIES = {RESULTS: "session_hash"}
NAME = re.compile(r"\w{1,64}", re.ASCII)
RANGE = re.compile(rb"bytes=[0-9]{1,15}-")

# Of all files of one upload; the page itself refuses a file larger than its own limit.
MOST_UPLOADED = 200 * 2**20
MOST_FILES = 100
# Of a request to rank: labels in UTF-8, what the page says of each file, and a long description.
MOST_ASKED = 4 * MOST_LABELS * LONGEST_LABEL + 1024 * MOST_FILES + 2**16
# Until results that nobody asks for are dropped; the page asks at once.
SECONDS_UNREAD = 30.0


def most_bytes(path: str) -> int:
    """The most bytes of a request's body; an upload's parts have heads."""
    return MOST_UPLOADED + MOST_FILES * 1024 if path == UPLOAD else MOST_ASKED


class Gate:
    """An ASGI app before gradio's, behind a `Guard`; `events` are the numbers of the page's events and of their fields.

    An event has no field, or those of frames, labels and a description. `forget` drops what the app holds of a session
    whose results were sent or discarded.
    """

    def __init__(
        self, app: ASGIApp, uploads: Uploads, events: Mapping[int, int], forget: Callable[[str], None]
    ) -> None:
        self._app, self._uploads, self._events, self._forget = app, uploads, events, forget
        self._coming: list[_Upload] = []
        self._tidying = asyncio.Lock()
        self._listeners: Counter[bytes] = Counter()
        self._discarding: dict[bytes, asyncio.Task[None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, method = scope["path"], scope["method"]
        scope = {**scope, "query_string": _query(scope), "headers": _headers(scope)}
        if method in ("GET", "HEAD") and path.startswith(FILE):
            if not self._uploads.owns(path.removeprefix(FILE)):
                raise HTTPException(404, UNKNOWN)
            await self._app(scope, receive, send)
        elif method == "GET" and path == RESULTS:
            await self._listen(scope, receive, send)
        elif method == "GET" and path == PROGRESS:
            await Response(media_type="text/event-stream")(scope, receive, send)
        elif method in ("GET", "HEAD") and READ.fullmatch(path):
            await self._app(scope, receive, send)
        elif method == "POST" and path == JOIN:
            session, body = self._checked(await read_body(receive))
            await self._app(_with_body(scope, body), _replay(body, receive), send)
            self._discard_later(session, scope)
        elif method == "POST" and path == UPLOAD:
            await self._upload(scope, receive, send)
        else:
            raise HTTPException(404, "This page has nothing there.")

    def _checked(self, body: bytes) -> tuple[str, bytes]:
        """Check a request to rank; return its session, and it as read here: no other reading of it reaches gradio."""
        try:
            asked = json.loads(body)
            session, event, trigger = asked["session_hash"], asked["fn_index"], asked.get("trigger_id")
            wanted = [type(event) is int, type(trigger) in (int, type(None)), len(asked["data"]) == self._events[event]]
            if not all(wanted) or not NAME.fullmatch(session):
                raise ValueError("no event of the page")
            values = [check(value) for check, value in zip((self._media, _text, _text), asked["data"], strict=False)]
            content = {"data": values, "session_hash": session, "fn_index": event, "trigger_id": trigger}
            # A lone surrogate is no text: it cannot be encoded.
            return session, json.dumps(content, ensure_ascii=False).encode()
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise HTTPException(400, "The request is not one of this page.") from None

    def _media(self, media: Any) -> list[dict[str, Any]]:
        if len(media or ()) > MOST_FILES:
            raise ValueError("too many files")
        return [self._medium(medium) for medium in media or ()]

    def _medium(self, medium: Any) -> dict[str, Any]:
        """Check one frame or video, and keep only its file: a URL or a proxy would be asked."""
        if not isinstance(medium, dict):
            raise TypeError("no medium")
        (kind,) = {"image", "video"} & set(medium)
        file, caption = medium[kind], medium.get("caption")
        if not isinstance(file["path"], str) or not isinstance(caption, str | None):
            raise ValueError("no file")
        if not self._uploads.owns(file["path"]):
            raise HTTPException(403, UNKNOWN)
        kept = {"path": file["path"], "meta": {"_type": "gradio.FileData"}}
        kept |= {key: file[key] for key in ("orig_name", "mime_type") if isinstance(file.get(key), str)}
        return {kind: kept, "caption": caption}

    async def _listen(self, scope: Scope, receive: Receive, send: Send) -> None:
        session, started = scope["query_string"], False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        self._listeners[session] += 1
        if discarding := self._discarding.pop(session, None):
            discarding.cancel()
        try:
            await self._app(scope, receive, sending)
        except RuntimeError:
            # For a session that it does not know gradio says so, then fails.
            if not started:
                raise
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._listeners[session] -= 1
            if not self._listeners[session]:
                del self._listeners[session]
                self._forget(_session(session))

    def _discard_later(self, session: str, scope: Scope) -> None:
        """Take the results of a client that does not come for them: gradio would hold them for ever."""
        query = f"{QUERIES[RESULTS]}={session}".encode()
        if query not in self._listeners and query not in self._discarding:
            asked = {**_with_body(scope, b""), "method": "GET", "path": RESULTS, "raw_path": RESULTS.encode()}
            task = asyncio.get_running_loop().create_task(self._discard({**asked, "query_string": query}))
            self._discarding[query] = task

    async def _discard(self, asked: Scope) -> None:
        async def receiving() -> Message:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

        async def sending(_: Message) -> None:
            return

        await asyncio.sleep(SECONDS_UNREAD)
        # A session without results is an error there.
        with suppress(Exception):
            await self._app(asked, receiving, sending)
        del self._discarding[asked["query_string"]]
        self._forget(_session(asked["query_string"]))

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        upload = _Upload(Headers(scope=scope), self._check_room)

        async def receiving() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                upload.add(message.get("body", b""), last=not message.get("more_body", False))
            return message

        refusal: list[Message] = []

        async def sending(message: Message) -> None:
            upload.stored = upload.stored or message.get("status") == 200
            if upload.stored:
                await send(message)
            else:
                refusal.append(message)

        # Not while what others left is removed: they look the same.
        async with self._tidying:
            self._coming.append(upload)
        try:
            self._check_room()
            await self._app(scope, receiving, sending)
        finally:
            self._coming.remove(upload)
            self._uploads.count(upload.bytes, upload.files, finished=upload.stored)
            await self._tidy()
        # Last: who is refused may try again at once, and finds the room that this took.
        for message in refusal:
            await send(message)

    def _check_room(self) -> None:
        """Raise `HTTPException` if there is no room for the uploads that are coming."""
        files = sum(upload.files for upload in self._coming)
        if files > self._uploads.most_open:
            raise HTTPException(503, "Too many files are uploaded at once: try again in a moment.")
        if not self._uploads.has_room(sum(upload.reserved for upload in self._coming), files):
            raise HTTPException(507, f"The page holds too many uploads: try again in {MINUTES_KEPT} minutes.")

    async def _tidy(self) -> None:
        """Remove what is left by uploads that were broken off, once none is coming."""
        async with self._tidying:
            if not self._coming and self._uploads.has_unfinished:
                await asyncio.to_thread(self._uploads.remove_unfinished)


class _Upload:
    """Check that an upload consists of files: gradio would keep other fields in memory, and fail at broken ones.

    `reserved` are the bytes it says it has, or else the most; `bytes` and `files` have come; `stored` is whether it
    was taken. `check_room` is called at every file.
    """

    def __init__(self, headers: Headers, check_room: Callable[[], None]) -> None:
        kind, options = parse_options_header(headers.get("content-type", ""))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 0 < len(boundary) <= 100:
            raise self._broken()
        self._check_room, self.reserved = check_room, int(headers.get("content-length", MOST_UPLOADED))
        self.bytes, self.files, self.stored, self._complete = 0, 0, False, False
        self._name, self._value = b"", b""
        callbacks: Any = {"on_part_begin": self._begin, "on_headers_finished": self._headers_finished}
        callbacks["on_end"] = self._complete_form
        callbacks |= {"on_header_field": self._add_name, "on_header_value": self._add_value, "on_header_end": self._end}
        self._parser = MultipartParser(boundary, callbacks)

    def add(self, piece: bytes, last: bool) -> None:
        self.bytes += len(piece)
        try:
            self._parser.write(piece)
        except FormParserError:
            raise self._broken() from None
        if last and not self._complete:
            raise self._broken()

    def _complete_form(self) -> None:
        self._complete = True

    def _begin(self) -> None:
        self._name, self._value, self._options = b"", b"", dict[bytes, bytes]()

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        if len(self._value) > 8192:
            raise self._broken()

    def _end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._options = parse_options_header(self._value)[1]
        self._name, self._value = b"", b""

    def _headers_finished(self) -> None:
        self.files += 1
        if self._options.get(b"name") != b"files" or b"filename" not in self._options or self.files > MOST_FILES:
            raise self._broken()
        self._check_room()

    @staticmethod
    def _broken() -> HTTPException:
        return HTTPException(400, f"The upload is broken: wanted multipart/form-data of 1 to {MOST_FILES} files.")


def _text(value: Any) -> str:
    if not isinstance(value, str | None):
        raise TypeError("no text")
    return value or ""


def _query(scope: Scope) -> bytes:
    """Keep of a query only what the page asks with."""
    key = QUERIES.get(scope["path"])
    found = parse_qs(scope["query_string"].decode("latin-1")).get(key or "", [])
    if not found:
        return b""
    if len(found) != 1 or not NAME.fullmatch(found[0]):
        raise HTTPException(400, "The request is not one of this page.")
    return f"{key}={found[0]}".encode()


def _session(query: bytes) -> str:
    """The session that a query for results names."""
    return query.decode().partition("=")[2]


def _headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Drop a Range with an end, so that the whole file is sent: gradio fails at some, and sends back all headers."""
    return [(key, value) for key, value in scope["headers"] if key != b"range" or RANGE.fullmatch(value)]


def _with_body(scope: Scope, body: bytes) -> Scope:
    """Return a request's scope with the headers of another body."""
    kept = [
        (key, value)
        for key, value in scope["headers"]
        if not key.startswith(b"content-") and key != b"transfer-encoding"
    ]
    kept += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    return {**scope, "headers": kept}


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read already, then what comes after it."""
    given = False

    async def replaying() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replaying
