"""The demo's server opens only the page's own files, answers only its own address, and bounds what it takes."""

import asyncio
import gc
import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import uvicorn
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from lr2ppo.demo import gate, guard, server
from lr2ppo.demo.address import Hosts, address_of, listen
from lr2ppo.demo.gate import MOST_UPLOADED
from lr2ppo.demo.page import MOST_SESSIONS
from lr2ppo.demo.uploads import UNKNOWN, Uploads
from lr2ppo.errors import UserError
from tests.conftest import REPOSITORY
from tests.helpers.page_client import API, BOUNDARY, Answer, Client, form, image, order

META = {"meta": {"_type": "gradio.FileData"}}


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def uploaded(served: Client) -> str:
    """The path of an uploaded image."""
    return str(json.loads(served.upload(("red.png", png("red"))).body)[0])


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """An image elsewhere on the machine."""
    path = tmp_path / "secret.png"
    path.write_bytes(png("blue"))
    return path


@pytest.fixture
def watched() -> Iterator[tuple[str, Callable[[], bool]]]:
    """The address of a server, and whether anyone connected to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        def asked() -> bool:
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                return False
            return True

        yield f"http://127.0.0.1:{listener.getsockname()[1]}/a.png", asked


def test_an_upload_and_an_example_are_ranked(served: Client, workspace: Path, uploaded: str) -> None:
    assert sorted(order(served.rank([image(uploaded)], "ranked"))) == ["boat", "boat", "car", "car"]
    assert sorted(order(served.rank([image(uploaded, **META)], "ranked"))) == ["boat", "boat", "car", "car"]
    frame = next((workspace / "data" / "frames").iterdir()).resolve()
    assert order(served.rank([image(frame)], "example"))


def test_every_other_path_gets_the_same_answer(served: Client, uploaded: str, secret: Path) -> None:
    folder = served.uploads
    inside = folder / "link.png"
    inside.symlink_to(secret)
    (folder / "linked").symlink_to(secret.parent)
    os.mkfifo(folder / "pipe.png")
    paths = [secret, secret.with_name("missing.png"), secret.parent, "/", "", ".", "..", "~", "\0", "secret.png"]
    paths += [inside, folder / "linked" / secret.name, folder / "pipe.png", folder, Path(uploaded).parent]
    paths += [f"{folder}/../{secret.name}", f"{folder}/./x.png", f"{uploaded}/", f"{uploaded}/..", f"/{uploaded}"]
    paths += [
        f"{folder}-other/a.png",
        f"file://{uploaded}",
        f"file://{secret}",
        uploaded.replace("/", "\\"),
        "x" * 9000,
    ]
    kinds: list[Callable[[str], Any]] = [
        image,
        lambda path: image(path, **META),
        lambda path: image(path, url=f"http://127.0.0.1:{served.port}/", is_stream=True, **META),
        lambda path: {"video": {"path": path}, "caption": None},
        lambda path: {"video": {"path": path, **META}},
    ]
    answers = {served.rank([kind(str(path))], "outside") for path in paths for kind in kinds}
    answers |= {served.rank([image(uploaded), image(str(path))], "outside") for path in paths}
    assert answers == {f"403 {UNKNOWN}"}
    assert {served.ask("GET", f"{API}/file={path}").text for path in paths if str(path).startswith("/")} == {UNKNOWN}
    for left in (inside, folder / "linked", folder / "pipe.png"):
        left.unlink()


def test_our_function_refuses_what_is_no_upload_too(served: Client, secret: Path) -> None:
    with pytest.raises(UserError, match=re.escape(UNKNOWN)):
        Uploads(served.uploads).require([str(secret)])


def test_no_address_is_fetched(served: Client, uploaded: str, watched: tuple[str, Callable[[], bool]]) -> None:
    url, asked = watched
    for path in (url, uploaded):
        for more in (META, {"url": url, **META}, {"url": url, "is_stream": True, **META}):
            served.rank([image(path, **more)], "fetching")
            served.rank([{"video": {"path": path, **more}}], "fetching")
            served.rank([image(uploaded)], "fetching", labels={"path": path, **more})
            served.rank({"path": path, **more}, "fetching")
    for route in ("file=", "file/", "proxy=", "stream/"):
        served.ask("GET", f"{API}/{route}{url}")
        served.ask("GET", f"{API}/{route}{url}".replace("//", "%2F%2F"))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>'.encode()
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n".encode()
    for path in json.loads(served.upload(("a.svg", svg), ("a.m3u8", playlist), ("a.mp4", playlist)).body):
        assert "not a readable" in served.rank([image(path)], "fetching")
    assert not asked()


@pytest.mark.parametrize(
    "path",
    "/assets/../../routes.py /assets/..%2f..%2froutes.py /static/%2e%2e/%2e%2e/routes.py /static//etc/passwd "
    "/svelte/..%5c..%5croutes.py /monitoring /monitoring/summary /docs /openapi.json /login_check /pwa_icon "
    "/gradio_api/dev/reload /gradio_api/custom_component/x/client/component/y /gradio_api/mcp/ /gradio_api/mcp/sse "
    "/gradio_api/heartbeat/session "
    "/gradio_api/runs /gradio_api/token /gradio_api/user /gradio_api/app_id /gradio_api/queue/status "
    "/gradio_api/vibe-code/ /gradio_api/deep_link /gradio_api/stream/a/b/c/playlist.m3u8 "
    "/gradio_api/openapi.json /gradio_api/file/etc/passwd /gradio_api/FILE=/etc/passwd //gradio_api/file=/etc/passwd "
    "http://localhost/gradio_api/file=/etc/passwd *".split(),
)
def test_routes_that_the_page_does_not_use_are_not_there(served: Client, path: str) -> None:
    assert served.ask("GET", path).text == "This page has nothing there."


@pytest.mark.parametrize(
    "path",
    "run/predict api/predict call/predict call/v2/predict component_server process_recording vibe-edit/ vibe-code/ "
    "login cancel reset stream/a run-history/connect queue/data file=/etc/passwd upload/ queue/join/".split(),
)
def test_nothing_else_takes_a_body(served: Client, secret: Path, path: str) -> None:
    body = json.dumps({"data": [[image(secret)], "a, b", ""], "fn_index": served.ranking(), "session_hash": "x"})
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = served.ask(method, f"{API}/{path}", body.encode(), Content_Type="application/json")
        assert (answer.status, answer.text) == (404, "This page has nothing there.")


def test_a_request_that_is_none_of_the_page_is_refused_without_a_traceback(
    served: Client, uploaded: str, capfd: pytest.CaptureFixture[str]
) -> None:
    media = [image(uploaded)]
    events: list[Any] = [99, -1, "1", True, 1.5, [1], {}]
    values: list[Any] = ["text", 3, [3], [["a"]], [[]], ["image"], [{}], [{"image": None}]]
    wrong: list[Answer] = [
        *(served.join(media, "x", event=event) for event in events),
        *(served.join(media, session) for session in ("", "x" * 65, "a/b", "\0")),
        *(served.join(value, "x") for value in values),
        *(served.join([{"image": {"path": path}}], "x") for path in (None, 3, ["a"])),
        served.join([{"image": {"path": uploaded}, "video": {"path": uploaded}}], "x"),
        served.join(media * 101, "x"),
        *(served.join(media, "x", labels=labels) for labels in (3, ["a"], {"a": 1}, "a\ud800")),
        *(
            served.ask("POST", f"{API}/queue/join", body, Content_Type="application/json")
            for body in (b"", b"{", b"[]", b"3", b"\xff", b'{"data":' + b"[" * 100_000, b'{"data":' + b"9" * 9999)
        ),
    ]
    assert [answer.status for answer in wrong] == [400] * len(wrong)
    assert served.ask("GET", f"{API}/queue/data?session_hash=never").status == 200
    assert served.ask("GET", f"{API}/queue/data?session_hash=a/b").status == 400
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.parametrize(
    "host",
    "evil.example evil.example:7860 127.0.0.1.evil.example localhost.evil.example localhost,evil.example 10.0.0.1 "
    "0.0.0.0 127.1 2130706433 [::2] [::1 a@localhost localhost:x localhost:1:2 localhost/x".split(),
)
def test_a_foreign_host_is_refused(served: Client, host: str) -> None:
    for method, path in (("GET", "/"), ("GET", "/config"), ("POST", f"{API}/queue/join"), ("POST", f"{API}/upload")):
        answer = served.ask(method, path, Host=host)
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers
        assert "evil" not in answer.text


def test_a_request_names_one_host(served: Client) -> None:
    both = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert served.send(both).split()[1] == b"400"
    assert served.send(b"GET / HTTP/1.0\r\n\r\n").split()[1] == b"403"
    assert served.send(b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n").split()[1] == b"404"


@pytest.mark.parametrize("host", ["localhost:1234", "LOCALHOST", "localhost.", "127.0.0.2", "[::1]:80"])
def test_loopback_names_are_the_page_s_own_at_any_port(served: Client, host: str) -> None:
    invented = {"X_Forwarded_Host": "evil.example", "X_Gradio_Server": "http://evil.example"}
    answer = served.ask("GET", "/config", None, Host=host, Origin=f"http://{host}", **invented)
    assert answer.status == 200
    assert "evil" not in answer.text


@pytest.mark.parametrize(
    "origin", "http://evil.example null http://localhost http://localhost:1 https://localhost:7860x file:// x".split()
)
def test_a_foreign_origin_is_refused(served: Client, origin: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        answer = served.ask(method, f"{API}/queue/join", Origin=origin, Access_Control_Request_Method="POST")
        assert answer.status == 403
        assert not [key for key in answer.headers if key.startswith("access-control")]
    assert served.ask("GET", "/", Origin=f"http://127.0.0.1:{served.port}").status == 200


def test_a_page_of_another_site_embeds_nothing(served: Client) -> None:
    assert served.ask("GET", "/favicon.ico", Sec_Fetch_Dest="image", Sec_Fetch_Site="cross-site").status == 403
    assert served.ask("GET", "/", Sec_Fetch_Dest="iframe", Sec_Fetch_Site="same-site").status == 403
    assert served.ask("GET", "/", Sec_Fetch_Dest="document", Sec_Fetch_Site="cross-site").status == 200


def test_the_names_of_a_server_for_other_machines() -> None:
    with listen("0.0.0.0", 0) as listener:  # noqa: S104
        everywhere = Hosts.of("0.0.0.0", listener)  # noqa: S104
        assert address_of("0.0.0.0", listener).startswith("http://localhost:")  # noqa: S104
    for own in ("10.1.2.3", "[fe80::1]", "localhost", socket.gethostname(), socket.gethostname().upper()):
        assert everywhere.allow(own)
    assert not everywhere.allow("evil.example")
    with listen("localhost", 0) as listener:
        named = Hosts.of("localhost", listener)
    assert named.allow("127.0.0.1")
    assert not named.allow("10.1.2.3")
    assert Hosts(frozenset({"gpu.example"})).allow("GPU.example.")
    assert not Hosts(frozenset({"gpu.example"})).allow("a.gpu.example")


def test_a_body_that_is_too_large_is_refused(served: Client, capfd: pytest.CaptureFixture[str]) -> None:
    pieces = (bytes(2**20) for _ in range(3))
    assert served.ask("POST", f"{API}/queue/join", bytes(3 * 2**20)).status == 413
    assert served.ask("POST", f"{API}/queue/join", pieces).status == 413
    head = f"POST {API}/upload HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n".encode()
    head += f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n".encode()
    for length in (MOST_UPLOADED * 2, "9" * 18):
        assert served.send(head + f"Content-Length: {length}\r\n\r\n".encode()).split()[1] == b"413"
    assert served.ask("GET", "/?" + "x" * 2000).status == 414
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form",
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"\r\n\r\nx\r\n--{BOUNDARY}--\r\n'.encode(),
        f"--{BOUNDARY}\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode(),
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; filename="a"\r\n\r\nx\r\n'.encode(),
        f"--{BOUNDARY}\r\nContent-Disposition: {'x' * 5000}\r\n\r\nx".encode(),
        form(*[("a.png", b"")] * 101),
        form(("a.png", b"x" * 5000))[:-30] + b"\r\n--",
    ],
)
def test_a_broken_upload_is_refused_and_leaves_no_file(
    served: Client, body: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    before = set(served.uploads.rglob("*"))
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    for query in ("", "?upload_id=abc"):
        answer = served.ask("POST", f"{API}/upload{query}", body, Content_Type=kind)
        assert (answer.status, answer.text) == (400, answer.text)
    assert served.ask("POST", f"{API}/upload", body, Content_Type="multipart/form-data").status == 400
    assert served.ask("POST", f"{API}/upload", body, Content_Type="text/plain").status == 400
    assert set(served.uploads.rglob("*")) == before
    assert capfd.readouterr().err == ""


def test_a_client_that_leaves_in_the_middle_leaves_no_file(served: Client, capfd: pytest.CaptureFixture[str]) -> None:
    before = set(served.uploads.rglob("*"))
    head = f"POST {API}/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n"
    head += f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    served.send(head.encode() + form(("a.png", bytes(300_000)))[:-20])
    # Each request takes its turn after what the server does about the one that left.
    for _ in range(1000):
        if set(served.uploads.rglob("*")) == before:
            break
        served.ask("GET", "/favicon.ico")
    assert set(served.uploads.rglob("*")) == before
    assert capfd.readouterr().err == ""


def test_slow_clients_are_let_go(served: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.2)
    monkeypatch.setattr(guard, "PATIENCE", 0.2)

    def until_closed(sent: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
            connection.sendall(sent)
            received = b""
            while piece := connection.recv(65536):
                received += piece
            return received

    for head in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: b"):
        assert until_closed(head) == b""
    started = f"POST {API}/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n".encode()
    assert until_closed(started + b"{").split()[1] == b"408"


def test_a_piece_sent_to_a_connection_that_was_just_aborted_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def converse() -> None:
        aborted, answered = asyncio.Event(), asyncio.Event()

        async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await aborted.wait()
            await send({"type": "http.response.body", "body": b"a piece", "more_body": True})
            answered.set()

        config = uvicorn.Config(app, interface="asgi3", log_level="error")
        config.load()
        transport = MagicMock(**{"is_closing.return_value": False, "get_write_buffer_size.return_value": 0})
        connection = server.Connection(config, ServerState(), {})
        connection.connection_made(transport)
        connection.data_received(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        while not transport.write.called:
            await asyncio.sleep(0)
        connection.data_received(b"more")
        transport.abort.assert_called_once_with()
        aborted.set()
        await asyncio.wait_for(answered.wait(), timeout=60)

    asyncio.run(converse())
    assert not caplog.records


def test_bytes_that_are_no_request_get_no_traceback(
    served: Client, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert served.send(b"\x16\x03\x01 no HTTP\r\n\r\n").split()[1] == b"400"
    path = json.loads(served.upload(("large.png", bytes(30 * 2**20))).body)[0]
    started = f"GET {API}/file={path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.sendall(started)
        assert connection.recv(1)
        connection.sendall(b"more")
        with suppress(ConnectionResetError):
            while connection.recv(65536):
                continue
    assert served.ask("GET", "/favicon.ico").status == 200
    assert (capfd.readouterr().err, caplog.records) == ("", [])


def test_too_many_at_once_are_told_so(served: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MOST_REQUESTS", 0)
    assert served.ask("GET", "/").status == 503
    # A client that sends much reads the answer, too.
    assert served.upload(("large.png", bytes(20 * 2**20))).status == 503
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 0)
    assert served.send(b"").split()[1] == b"503"


def test_the_folder_of_uploads_is_bounded_in_size_and_time(served: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(json.loads(served.upload(("old.png", png("green"))).body)[0])
    uploads = Uploads(served.uploads)
    uploads.remove_old()
    assert path.exists()
    uploads.remove_old(seconds=-1)
    assert not path.exists()
    assert not path.parent.exists()
    with monkeypatch.context() as patch:
        patch.setattr("lr2ppo.demo.uploads.MOST_STORED", 10)
        assert served.upload(("more.png", png("green"))).status == 507
    monkeypatch.setattr("lr2ppo.demo.uploads.MOST_FILES_STORED", 1)
    assert served.upload(("a.png", png("green")), ("b.png", png("red"))).status == 507


def test_what_is_stored_is_counted_as_it_comes_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lr2ppo.demo.uploads.MOST_FILES_STORED", 10)
    uploads = Uploads(tmp_path)
    for name in "abcdef":
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"x")
    uploads.count(6, 6, finished=True)
    uploads.count(4, 4, finished=False)
    assert uploads.has_room(1, 0)
    assert not uploads.has_room(1, 1)
    uploads.remove_unfinished()
    assert uploads.has_room(1, 4)
    assert not uploads.has_room(1, 5)
    (tmp_path / "a" / "0.png").unlink()
    uploads.remove_old()
    uploads.count(1, 1, finished=True)
    assert uploads.has_room(1, 4)
    assert not uploads.has_room(1, 5)
    uploads.remove_old(seconds=-1)
    assert uploads.has_room(1, 9)


def test_uploads_at_once_open_no_more_files_than_they_may(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    uploads.most_open = 2

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def upload(files: int) -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": form(*[("a.png", b"")] * files)}

        async def send(_: Any) -> None:
            return

        kind = f"multipart/form-data; boundary={BOUNDARY}".encode()
        scope = {"type": "http", "method": "POST", "path": f"{API}/upload", "query_string": b""}
        await before({**scope, "headers": [(b"content-type", kind)]}, receive, send)

    before = gate.Gate(app, uploads, {}, lambda _: None)
    asyncio.run(upload(2))
    with pytest.raises(HTTPException) as refused:
        asyncio.run(upload(3))
    assert refused.value.status_code == 503


def test_a_refused_upload_has_given_its_room_back_when_its_client_reads_so(tmp_path: Path) -> None:
    uploads, left_at_answer = Uploads(tmp_path), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        # As gradio: the answer first, then the end.
        (tmp_path / "partial").write_bytes((await receive())["body"])
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b"too large"})

    async def receive() -> Any:
        return {"type": "http.request", "body": form(("a.png", b"0" * 1000))}

    async def send(message: Any) -> None:
        left_at_answer.append((message["type"], uploads.has_unfinished, list(tmp_path.iterdir())))

    kind = f"multipart/form-data; boundary={BOUNDARY}".encode()
    scope = {"type": "http", "method": "POST", "path": f"{API}/upload", "query_string": b""}
    before = gate.Gate(app, uploads, {}, lambda _: None)
    asyncio.run(before({**scope, "headers": [(b"content-type", kind)]}, receive, send))
    assert left_at_answer == [("http.response.start", False, []), ("http.response.body", False, [])]


@pytest.mark.parametrize(
    ("soft", "hard", "said"),
    [(200, 300, "found 300 open files, wanted at least"), (200, 700, "300"), (1024, 5000, "1000")],
)
def test_the_limit_of_open_files_is_raised_as_far_as_allowed(soft: int, hard: int, said: str) -> None:
    code = "from lr2ppo.demo.uploads import raise_open_files; print(raise_open_files())"
    limited = f"ulimit -Sn {soft}; ulimit -Hn {hard}; exec {sys.executable} -c '{code}'"
    done = subprocess.run(["/bin/sh", "-c", limited], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert said in (done.stdout or done.stderr)


def test_the_page_forgets_its_visitors(served: Client) -> None:
    from gradio.state_holder import StateHolder

    holders = [each for each in gc.get_objects() if type(each) is StateHolder]

    def held() -> int:
        return sum(len(each.session_data) for each in holders)

    event, before = served.ranking(), held()
    for number in range(3):
        assert "no frames yet" in served.rank([], f"fetches{number}", event=event)
    # The last one is forgotten just after its client has all.
    for _ in range(1000):
        if held() <= before:
            break
        served.ask("GET", "/favicon.ico")
    assert held() <= before
    for number in range(MOST_SESSIONS + 10):
        served.join([], f"leaves{number}", event=event)
    assert held() <= before + MOST_SESSIONS


def test_nothing_is_held_of_an_upload_s_id(served: Client) -> None:
    from gradio.routes import file_upload_statuses as held

    kind, bodies = f"multipart/form-data; boundary={BOUNDARY}", (form(("a.png", b"x")), form(("a.png", b"x"))[:-9])
    answers = [
        served.ask("POST", f"{API}/upload?upload_id=id{number}", body, Content_Type=kind).status
        for number, body in enumerate(bodies)
    ]
    assert answers == [200, 400]
    assert held._statuses == {}
    # The page's script asks, and finds an error in its console if it is refused.
    asked = [served.ask("GET", f"{API}/upload_progress?upload_id=id{number}") for number in range(3)]
    assert [(each.status, each.text) for each in asked] == [(200, "")] * 3
    assert dict(held._signals) == {}


@pytest.mark.parametrize("comes", [False, True])
def test_results_that_nobody_comes_for_are_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    monkeypatch.setattr(gate, "SECONDS_UNREAD", 0.0)
    asked: list[str] = []
    forgotten: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(f"{scope['method']} {scope['path']} {scope['query_string'].decode()}")

    async def receive() -> Any:
        return {"type": "http.request", "body": b'{"data": [], "fn_index": 1, "session_hash": "unread"}'}

    async def send(_: Any) -> None:
        return

    async def run() -> None:
        before = gate.Gate(app, Uploads(tmp_path), {1: 0}, forgotten.append)
        scope = {"type": "http", "query_string": b"", "headers": []}
        await before({**scope, "method": "POST", "path": f"{API}/queue/join"}, receive, send)
        taken = asyncio.all_tasks() - {asyncio.current_task()}
        if comes:
            listening = {"method": "GET", "path": f"{API}/queue/data", "query_string": b"session_hash=unread"}
            await before({**scope, **listening}, receive, send)
        await asyncio.gather(*taken, return_exceptions=True)

    asyncio.run(run())
    # By the client or in its place, but not by both.
    assert asked == [f"POST {API}/queue/join ", f"GET {API}/queue/data session_hash=unread"]
    assert forgotten == ["unread"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "99999999"], "--port 99999999: cannot be used"),
        (["--port", "-1"], "--port -1: cannot be used"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (["--host", "x" * 300], "cannot be used"),
        (["--host", ""], "cannot be used"),
        (["--host", "a\ud800"], "cannot be used"),
    ],
)
def test_an_address_that_cannot_be_used_ends_in_one_message(options: list[str], message: str) -> None:
    host = dict(zip(options[::2], options[1::2], strict=True)).get("--host", "127.0.0.1")
    port = int(dict(zip(options[::2], options[1::2], strict=True)).get("--port", "0"))
    with pytest.raises(UserError, match=re.escape(message)):
        listen(host, port)


def test_a_name_of_300_characters_ends_in_one_message(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lr2ppo", "demo", "x" * 300]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1
