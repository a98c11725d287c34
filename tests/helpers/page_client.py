"""A client of the demo's page that speaks plain HTTP, as anyone on the machine can."""

import json
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

API = "/gradio_api"
BOUNDARY = "a-boundary"
# Seconds to wait for an answer on a busy machine.
LONGEST = 60


@dataclass(frozen=True)
class Answer:
    """A response of the server."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", errors="replace")


@dataclass(frozen=True)
class Client:
    """Requests to a page at a port of this machine, whose uploads are in a folder."""

    port: int
    uploads: Path

    def ask(self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str) -> Answer:
        """Send a request; underscores in the headers' names stand for hyphens."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=LONGEST)) as connection:
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Answer(
                response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
            )

    def send(self, sent: bytes) -> bytes:
        """Send bytes, and return all that comes until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=LONGEST) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while piece := connection.recv(65536):
                received += piece
        return received

    def upload(self, *files: tuple[str, bytes]) -> Answer:
        return self.ask("POST", f"{API}/upload", form(*files), Content_Type=f"multipart/form-data; boundary={BOUNDARY}")

    def join(self, media: Any, session: str, labels: Any = "boat, car", event: Any = None, **more: Any) -> Answer:
        """Press the page's button, with any values of its fields."""
        number = self.ranking() if event is None else event
        asked = {"data": [media, labels, ""], "fn_index": number, "session_hash": session, **more}
        return self.ask("POST", f"{API}/queue/join", json.dumps(asked).encode(), Content_Type="application/json")

    def rank(self, media: Any, session: str, labels: Any = "boat, car", **more: Any) -> str:
        """Rank, and return everything the server says of it."""
        answer = self.join(media, session, labels, **more)
        if answer.status != 200:
            return f"{answer.status} {answer.text}"
        return self.ask("GET", f"{API}/queue/data?session_hash={session}").text

    def ranking(self) -> int:
        """The number of the button's event."""
        config = json.loads(self.ask("GET", "/config").body)
        return int(next(each["id"] for each in config["dependencies"] if len(each["inputs"]) == 3))


def form(*files: tuple[str, bytes]) -> bytes:
    """A form of files as a browser sends it."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode() + content
        for name, content in files
    ]
    return b"\r\n".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


def image(path: str | Path, **more: Any) -> dict[str, Any]:
    """An image as a value of the page's gallery names it."""
    return {"image": {"path": str(path), **more}, "caption": None}


def order(said: str) -> Sequence[str]:
    """The labels of a result, in the order of the last list."""
    return re.findall(r'class=\\"label\\">([^<]*)<', said)
