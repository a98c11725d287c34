"""Serve an ASGI app with uvicorn in a thread, with limits of its connections."""

import asyncio
import logging
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from lr2ppo.demo.guard import MOST_REQUESTS, PATIENCE

# Browsers keep a few open that ask nothing.
MOST_CONNECTIONS = 2 * MOST_REQUESTS
SECONDS_TO_END = 5
FULL = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Connection(H11Protocol):
    """A client's connection that is closed if no complete head, or no reading of a response, comes in time.

    uvicorn itself waits for ever for a head, and for a client that does not read.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head, self._reader = _Patience(transport), _Patience(transport)
        self._head.start()
        if len(self.connections) > MOST_CONNECTIONS:
            transport.write(FULL)
            transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.LocalProtocolError:
            # uvicorn answers bytes that are no request even within another answer.
            self.transport.abort()
            if self.cycle is not None:
                # Before `connection_lost`, which comes later, the app may send another piece.
                self.cycle.disconnected = True
            return
        if self.conn.their_state is h11.IDLE:
            self._head.start()
        else:
            self._head.stop()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader.stop()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            # It stays open until the client has read what was sent.
            self._reader.start()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._head.stop()
        self._reader.stop()


class _Patience:
    """A timer that ends a connection unless it is stopped in time."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start; if it runs, it goes on, so that a piece now and then does not prolong it."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._end)

    def _end(self) -> None:
        if self._transport.get_write_buffer_size():
            # Otherwise the system holds for minutes what the client does not read.
            now = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        self._transport.abort()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@contextmanager
def serving(app: ASGIApp, listener: socket.socket) -> Iterator[None]:
    """Serve an app within the context, in a separate thread."""
    settings: dict[str, Any] = {"log_level": "error", "proxy_headers": False, "server_header": False, "ws": "none"}
    server = uvicorn.Server(uvicorn.Config(app, http=Connection, **settings))
    thread = Thread(target=server.run, args=([listener],), name="server", daemon=True)
    thread.start()
    while thread.is_alive() and not server.started:
        thread.join(0.01)
    try:
        yield
    finally:
        # Responses that are cut short are no news any more.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
        server.should_exit = server.force_exit = True
        thread.join(SECONDS_TO_END)
