"""Serve a web page where you drop frames or a video, type labels and see how a run orders them."""

import argparse
import os
import signal
import socket
from contextlib import suppress
from tempfile import TemporaryDirectory
from threading import Event

from lr2ppo.commands.arguments import add_ranker_arguments, open_ranker, require_runs
from lr2ppo.errors import UserError

EXAMPLE = "lr2ppo demo ppo/quickstart"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: only this machine)"
    )
    parser.add_argument("--port", type=int, default=7860, help="(default 7860)")
    add_ranker_arguments(parser)


def check_address(host: str, port: int) -> None:
    """Raise `UserError` if the page cannot be served at this address."""
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host {host} --port {port}: cannot be used: {error}; give others, such as --port 7861"
        ) from None


def run(arguments: argparse.Namespace) -> None:
    require_runs([arguments.run], arguments.logs, exported=True)
    check_address(arguments.host, arguments.port)
    # Uploads are deleted when the demo ends, by Ctrl-C or a signal.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with TemporaryDirectory(prefix="lr2ppo-demo-") as uploads:
        # Read when gradio is imported.
        os.environ["GRADIO_TEMP_DIR"] = uploads
        show(arguments)


def show(arguments: argparse.Namespace) -> None:
    """Load the ranker and serve the page until Ctrl-C."""
    from lr2ppo.demo.inputs import find_examples
    from lr2ppo.demo.page import build_page, import_gradio, serve
    from lr2ppo.inference.trained import open_trained

    trained = open_trained(arguments.run, arguments.logs)
    import_gradio()
    ranker = open_ranker(arguments)
    examples = find_examples(trained.run)
    address = serve(build_page(ranker, examples), arguments.host, arguments.port, examples)
    print(f"the demo of {ranker.name} is at {address} (Ctrl-C ends it)", flush=True)
    with suppress(KeyboardInterrupt):
        Event().wait()
