"""The demo's page under load and abuse: slow and leaving clients, large and broken bodies, many uploads at once."""

import asyncio
import json
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from threading import Event, Thread

from PIL import Image

from tests.helpers.demo_world import write_demo_world
from tests.helpers.page_client import API, BOUNDARY, Client, form, image, order
from tests.reliability.faults_kills import Tried
from tests.reliability.faults_world import TRACEBACK, Job, Outcome, Result, Workshop

MIB = 2**20
# What the page may hold while it is abused, in addition to what it holds at rest; and files and threads in all.
SECONDS_TO_REMOVE = 20
MOST_MEMORY, MOST_DISK, MOST_FILES, MOST_THREADS = 400 * MIB, 2200 * MIB, 400, 100
# Visitors who come one after another add little, broken uploads nothing that stays.
MOST_FOR_VISITORS, MOST_FOR_BROKEN = 150 * MIB, 20 * MIB
# The usual one, all of which uploads may use.
LIMIT_OF_FILES = 1024
# A client that sends nothing, or takes nothing, is let go after 10 seconds; a busy machine takes its time.
LET_GO = 30
KIND = f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"


@dataclass
class Held:
    """The most that a process held while it was watched: memory and disk in bytes, open files, threads."""

    memory: int = 0
    disk: int = 0
    files: int = 0
    threads: int = 0

    def look(self, pid: int, folder: Path) -> None:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        memory, threads = (int(re.findall(rf"{key}:\s+(\d+)", status)[0]) for key in ("VmRSS", "Threads"))
        self.memory, self.threads = max(self.memory, memory * 1024), max(self.threads, threads)
        self.files = max(self.files, len(os.listdir(f"/proc/{pid}/fd")))
        self.disk = max(self.disk, stored(folder))


@dataclass
class Page:
    """A running demo."""

    job: Job
    client: Client
    rest: Held = field(default_factory=Held)

    def ranks(self) -> str:
        """Why the page does not rank an upload; empty if it does."""
        answer = self.client.upload(("red.png", _png()))
        if answer.status != 200:
            return f"an upload after it got {answer.status} {answer.text[:200]}"
        said = self.client.rank([image(json.loads(answer.body)[0])], f"after{time.monotonic_ns()}")
        return "" if sorted(order(said))[:2] == ["boat", "boat"] else f"it ranks no more: {said[-300:]}"

    @contextmanager
    def watched(self) -> Iterator[Held]:
        """Watch what the page holds within the context."""
        held, over = Held(), Event()
        held.look(self.job.script.pid, self.client.uploads)

        def watch() -> None:
            while not over.wait(0.05):
                held.look(self.job.script.pid, self.client.uploads)

        thread = Thread(target=watch)
        thread.start()
        try:
            yield held
        finally:
            over.set()
            thread.join()

    def try_one(
        self,
        abuse: Callable[[int], Awaitable[str]],
        wanted: str,
        most_memory: int = MOST_MEMORY,
        most_files: int = MOST_FILES,
    ) -> Outcome:
        """Abuse the page; it must answer as wanted, hold no more than promised, and rank afterwards."""
        started = time.monotonic()
        with self.watched() as held:
            answers = asyncio.run(_limited(abuse(self.client.port)))
        seconds = time.monotonic() - started
        more = held.memory - self.rest.memory
        shown = f"{answers}; at most {more / MIB:.0f} MiB of memory more, {held.disk / MIB:.0f} MiB on disk, "
        shown += f"{held.files} open files, {held.threads} threads"
        faults = [
            *(["held too much"] if more > most_memory or held.disk > MOST_DISK else []),
            *(["opened too much"] if held.files > most_files or held.threads > MOST_THREADS else []),
            *([f"wanted {wanted}"] if not re.fullmatch(wanted, answers) else []),
            *filter(None, [self.ranks()]),
            *(["a traceback on the terminal"] if TRACEBACK in self.job.printed else []),
        ]
        result: Result = "lost" if faults else "continued" if answers.startswith("200 x") else "refused"
        return Outcome(result, seconds, "; ".join([*faults, shown]))


def try_page(workshop: Workshop) -> Tried:
    """Abuse the demo's page in every way its limits are for."""
    folder = workshop.root / "demo"
    folder.mkdir()
    write_demo_world(folder)
    with _serving(workshop, folder) as page:
        # First: what others leave to be used again would hide what these add.
        yield (
            "page: 10,000 broken uploads with ids",
            page.try_one(_many(40, _broken_with_ids), "400 x 40", MOST_FOR_BROKEN),
        )
        path = json.loads(page.client.upload(("large.png", bytes(50 * MIB))).body)[0]
        yield "page: 150 heads a byte at a time", page.try_one(_many(150, _slow_head), "closed x 150")
        yield "page: 90 bodies a byte at a time", page.try_one(_many(90, _slow_body), "408 x 90")
        yield "page: 90 clients that read nothing", page.try_one(_many(90, _no_reader(path)), "closed x 90")
        yield "page: 300 connections at once", page.try_one(_many(300, _idle), r"503 x \d+, closed x \d+")
        yield "page: 200 uploads at once", page.try_one(_many(200, _upload), r"200 x \d+(, 503 x \d+)?")
        yield (
            "page: 400 visitors with long labels",
            page.try_one(_many(40, _visitors(page.client.ranking())), r"200 x \d+(, 503 x \d+)?", MOST_FOR_VISITORS),
        )
        yield (
            "page: 40 uploads of 100 files at once",
            page.try_one(_many(40, _many_files), r"200 x \d+(, 503 x \d+)?", most_files=LIMIT_OF_FILES),
        )
        yield "page: 100 MB as JSON", page.try_one(_many(8, _large(f"{API}/queue/join", 100)), "413 x 8")
        yield "page: 100 MB of one file", page.try_one(_many(4, _upload_of(99)), "200 x 4")
        yield (
            "page: 300 MB as an upload",
            page.try_one(_many(8, _large(f"{API}/upload", 300)), r"413 x \d+(, 507 x \d+)?"),
        )
        yield "page: an upload that is no form", page.try_one(_many(20, _broken), "400 x 20")
        before = stored(page.client.uploads)
        outcome = page.try_one(_many(20, _leaver), "left x 20")
        # They are removed when the server finds out that the last one has left.
        latest = time.monotonic() + SECONDS_TO_REMOVE
        while stored(page.client.uploads) > before + MIB and time.monotonic() < latest:
            time.sleep(0.1)
        if outcome.result != "lost" and stored(page.client.uploads) > before + MIB:
            outcome = Outcome("lost", outcome.seconds, f"files were left; {outcome.why}")
        yield "page: clients that leave in the middle", outcome
        yield "page: paths of the machine", page.try_one(_many(20, _foreign_path), "403 x 20")
        yield "page: foreign Host and Origin", page.try_one(_many(20, _foreign_host), "403 x 20")
    left = list(folder.glob("lr2ppo-demo-*"))
    yield "page: uploads left after its end", Outcome("lost" if left else "refused", why="".join(map(str, left)))


@contextmanager
def _serving(workshop: Workshop, folder: Path) -> Iterator[Page]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["sh", "-c", f'ulimit -n {LIMIT_OF_FILES} && exec "$@"', "sh", sys.executable, "-m", "lr2ppo"]
    command += ["demo", "ppo/tiny", "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(workshop.root), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    job = Job(command, folder, environment, workshop.root / "screens" / "demo.txt")
    try:
        if not job.wait_for(lambda: "(Ctrl-C ends it)" in job.printed, 120):
            raise RuntimeError(f"the demo did not start: {job.printed}")
        page = Page(job, Client(port, next(folder.glob("lr2ppo-demo-*"))))
        for _ in range(3):
            if why := page.ranks():
                raise RuntimeError(why)
        page.rest.look(job.script.pid, page.client.uploads)
        print(f"the page at rest: {page.rest.memory / MIB:.0f} MiB of memory, {page.rest.threads} threads", flush=True)
        yield page
        job.script.terminate()
        job.end(LET_GO)
    finally:
        job.remove()


def stored(folder: Path) -> int:
    """The bytes of all files in a folder, some of which may be removed meanwhile."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                found += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return found


async def _limited(answers: Awaitable[str]) -> str:
    return await asyncio.wait_for(answers, 300)


def _many(count: int, client: Callable[[int, int], Awaitable[str]]) -> Callable[[int], Awaitable[str]]:
    """Many clients at once; returns how often each answer came."""

    async def clients(port: int) -> str:
        answers = Counter(await asyncio.gather(*(client(port, number) for number in range(count))))
        return ", ".join(f"{answer} x {times}" for answer, times in sorted(answers.items()))

    return clients


async def _send(port: int, *pieces: bytes, pause: float = 0.0, read: bool = True) -> str:
    """Send pieces, with a pause after each; return the status of the answer, or that there was none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.ensure_future(reader.readline())
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
            if answer.done():
                break
        line = await asyncio.wait_for(answer, LET_GO) if read else b""
    except ConnectionError:
        line = b""
    finally:
        answer.cancel()
        writer.transport.abort()
    return line.split()[1].decode() if line else "closed" if read else "left"


def _head(method: str, path: str, more: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n".encode()


async def _slow_head(port: int, number: int) -> str:
    return await _send(port, *(bytes([byte]) for byte in _head("GET", "/")[:LET_GO]), pause=1)


async def _slow_body(port: int, number: int) -> str:
    head = _head("POST", f"{API}/upload", f"{KIND}Content-Length: 999999\r\n")
    return await _send(port, head, *(bytes([byte]) for byte in form(("a.png", _png()))[:LET_GO]), pause=1)


def _no_reader(path: str) -> Callable[[int, int], Awaitable[str]]:
    """Ask for a large file without reading it, until the server closes."""

    async def client(port: int, number: int) -> str:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(connection, ("127.0.0.1", port))
            await loop.sock_sendall(connection, _head("GET", f"{API}/file={path}"))
            for _ in range(LET_GO):
                await asyncio.sleep(1)
                if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    return "closed"
        return "open"

    return client


async def _idle(port: int, number: int) -> str:
    return await _send(port)


async def _upload(port: int, number: int) -> str:
    return await _upload_of(1)(port, number)


def _upload_of(mebibytes: int) -> Callable[[int, int], Awaitable[str]]:
    async def client(port: int, number: int) -> str:
        body = form((f"{number}.png", _png() + number.to_bytes(8) + bytes(mebibytes * MIB)))
        return await _send(port, _head("POST", f"{API}/upload", f"{KIND}Content-Length: {len(body)}\r\n"), body)

    return client


def _large(path: str, megabytes: int) -> Callable[[int, int], Awaitable[str]]:
    """A body in chunks, whose length is not said before."""

    async def client(port: int, number: int) -> str:
        start = form(("a.png", b""))[:-18] if path.endswith("upload") else b'{"data": ["'
        piece = f"{MIB:x}\r\n".encode() + b"x" * MIB + b"\r\n"
        pieces = [f"{len(start):x}\r\n".encode() + start + b"\r\n", *[piece] * megabytes]
        return await _send(port, _head("POST", path, f"{KIND}Transfer-Encoding: chunked\r\n"), *pieces, b"0\r\n\r\n")

    return client


def _visitors(event: int) -> Callable[[int, int], Awaitable[str]]:
    """Ten visitors, one after another, whose labels fill a request, and who do not come for their results.

    Returns 200 if one of them was let in.
    """

    async def client(port: int, number: int) -> str:
        statuses = []
        for each in range(10):
            asked = {"data": [[], "x" * 500_000, ""], "fn_index": event, "session_hash": f"visit{number}x{each}"}
            body = json.dumps(asked).encode()
            lines = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            statuses.append(await _send(port, _head("POST", f"{API}/queue/join", lines), body))
        return min(statuses)

    return client


async def _many_files(port: int, number: int) -> str:
    body = form(*((f"{each}.png", f"{number}-{each}".encode()) for each in range(100)))
    return await _send(port, _head("POST", f"{API}/upload", f"{KIND}Content-Length: {len(body)}\r\n"), body)


async def _broken(port: int, number: int) -> str:
    body = form(("a.png", bytes(MIB)))[: -4 - number] + b"\0" * (4 + number)
    return await _send(port, _head("POST", f"{API}/upload", f"{KIND}Content-Length: {len(body)}\r\n"), body)


async def _broken_with_ids(port: int, number: int) -> str:
    """250 uploads, one after another, of a file with a long name and another id each; returns their statuses."""
    body = form(("\N{GRINNING FACE}" * 1000 + ".png", b"x"))[:-9]
    statuses = set()
    for each in range(250):
        path = f"{API}/upload?upload_id={number}x{each}"
        head = _head("POST", path, f"{KIND}Content-Length: {len(body)}\r\n")
        # In pieces, so that the first is passed on before the last is found broken.
        statuses.add(await _send(port, head, body[:-4], body[-4:], pause=0.02))
    return " ".join(sorted(statuses))


async def _leaver(port: int, number: int) -> str:
    body = form(("a.png", bytes(20 * MIB)))[:-40]
    head = _head("POST", f"{API}/upload", f"{KIND}Content-Length: {50 * MIB}\r\n")
    return await _send(port, head, body, read=False)


async def _foreign_path(port: int, number: int) -> str:
    body = json.dumps({"data": [[image("/etc/hostname")], "a, b", ""], "fn_index": 1, "session_hash": f"x{number}"})
    head = _head("POST", f"{API}/queue/join", f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n")
    return await _send(port, head, body.encode())


async def _foreign_host(port: int, number: int) -> str:
    lines = ["Host: evil.example\r\n", "Host: localhost\r\nOrigin: http://evil.example\r\n"]
    return await _send(port, f"GET /config HTTP/1.1\r\n{lines[number % 2]}\r\n".encode())


def _png() -> bytes:
    file = BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "PNG")
    return file.getvalue()
