"""Send broken requests to the served demo: no crash, no traceback in its log, and no file outside of what it serves."""

import ctypes
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import strategies as st

from tests.conftest import REPOSITORY, write_tiny_world
from tests.helpers.fuzz import Case, count, mutated
from tests.helpers.untrained_world import make_untrained_world

SECRET = "this text is in no file that the page serves"  # noqa: S105 (a mark, no password)
SECONDS = 30
# Of gradio's routes, those that take a path, a body or both.
PATHS = (
    "/", "/config", "/gradio_api/info", "/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/queue/data",
    "/gradio_api/run/predict", "/gradio_api/call/predict", "/gradio_api/file=", "/gradio_api/proxy=", "/assets/",
    "/static/", "/svelte/", "/gradio_api/component_server", "/gradio_api/upload_progress", "/theme.css", "/reset",
    "/gradio_api/stream/a/b/c/playlist.m3u8", "/gradio_api/heartbeat/a", "/custom_component/a/b/c", "/login", "/api/",
)  # fmt: skip
PARTS = ("..", "%2e%2e", "....//", "%00", "/etc/passwd", "secret.txt", "C:\\", "http://127.0.0.1:9/", "%ff", "\\", "//")
BODY = {
    "data": [[{"image": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "caption": None}], "a, b", "c"],
    "fn_index": 0,
    "trigger_id": 1,
    "session_hash": "abc",
    "event_data": None,
}
_served: dict[Path, tuple[subprocess.Popen[bytes], int]] = {}


def write_valid(root: Path) -> None:
    write_tiny_world(root / "data")
    make_untrained_world(root, root / "data")
    (root / "secret.txt").write_text(SECRET, encoding="utf-8")


def serve(root: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the demo on first use; it ends with this process. Return it, and its port."""
    if root not in _served:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        log = (root / "demo.log").open("wb")
        command = [sys.executable, "-m", "lr2ppo", "demo", "ppo/one", "--device", "cpu", "--port", str(port)]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        server = subprocess.Popen(
            command, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=_end_with_parent
        )
        until = time.monotonic() + 120
        while b" is at " not in (root / "demo.log").read_bytes():
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the demo did not start: {(root / 'demo.log').read_text(encoding='utf-8')}")
            time.sleep(0.1)
        _served[root] = server, port
    return _served[root]


def _end_with_parent() -> None:
    # On Linux: PR_SET_PDEATHSIG.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    # The limit of the process that sends the requests.
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@st.composite
def requests(draw: st.DrawFn, root: Path) -> tuple[str, str, dict[str, str], bytes]:
    """Draw a method, a path, headers and a body."""
    part = st.sampled_from([*PARTS, str(root / "secret.txt")]) | st.text("abc/.%0", max_size=4)
    parts = draw(st.lists(part, max_size=4))
    path = draw(st.sampled_from(PATHS)) + "".join(parts)
    json_body = json.dumps(draw(st.just(BODY) | mutated(BODY))).encode()
    cut = draw(st.integers(0, len(json_body)))
    form = b'--b\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\nx\r\n--b--\r\n' % draw(
        st.sampled_from([b"a.png", b"../../a.png", b"/etc/a", b"a\0.png", b"x" * 300, b"", b"\xff"])
    )
    body = draw(st.sampled_from([b"", json_body, json_body[:cut], form, form[:cut]]) | st.binary(max_size=20))
    kinds = ["application/json", "multipart/form-data; boundary=b", "multipart/form-data", "text/plain", ""]
    headers = {
        "Content-Type": draw(st.sampled_from(kinds)),
        "Range": draw(st.sampled_from(["", "bytes=0-9", "bytes=a"])),
    }
    method = draw(st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"]))
    return method, path, {name: value for name, value in headers.items() if value}, body


def any_request(folder: Path, valid: Path, data: st.DataObject) -> None:
    server, port = serve(valid)
    method, path, headers, body = data.draw(requests(valid))
    (folder / "request.txt").write_text(repr((method, path, headers, body)), encoding="utf-8")
    log = valid / "demo.log"
    before = log.stat().st_size
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.putrequest(method, path.encode("ascii", "replace").decode(), skip_accept_encoding=True)
        for name, value in (headers | {"Content-Length": str(len(body)), "Connection": "close"}).items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        # A stream of events has no end.
        content = b"" if "event-stream" in (answer.getheader("Content-Type") or "") else answer.read(10**7)
        count("read" if answer.status < 400 else "refused")
    except (http.client.HTTPException, ValueError, ConnectionError):
        content = b""
        count("refused")
    finally:
        connection.close()
    assert SECRET.encode() not in content
    assert b"root:x:" not in content
    assert server.poll() is None, "the demo ended"
    with log.open("rb") as file:
        file.seek(before)
        printed = file.read().decode(errors="replace")
    assert "Traceback" not in printed, printed


CASES: dict[str, Case] = {"requests to the demo": any_request}
