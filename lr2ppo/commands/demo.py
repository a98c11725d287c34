"""Serve a web page where you drop frames or a video, type labels and see how a run orders them."""

import argparse
import os
import signal
import tempfile
from pathlib import Path
from socket import socket
from tempfile import TemporaryDirectory

from lr2ppo.commands.arguments import add_ranker_arguments, open_ranker, require_runs
from lr2ppo.demo.address import Hosts, address_of, listen
from lr2ppo.terminal import say

EXAMPLE = "lr2ppo demo ppo/quickstart"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: only this machine)"
    )
    parser.add_argument("--port", type=int, default=7860, help="(default 7860)")
    add_ranker_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    require_runs([arguments.run], arguments.logs, exported=True)
    # Uploads are deleted when the demo ends, by Ctrl-C or a signal.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with listen(arguments.host, arguments.port) as listener, TemporaryDirectory(prefix="lr2ppo-demo-") as folder:
        # Read when gradio is imported; its own temporary files belong there too.
        os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = os.path.realpath(folder)
        show(arguments, listener, Path(folder))


def show(arguments: argparse.Namespace, listener: socket, folder: Path) -> None:
    """Load the ranker and serve the page until Ctrl-C; uploads go into a folder."""
    from lr2ppo.demo.inputs import find_examples
    from lr2ppo.demo.page import build_page, import_gradio, page_app
    from lr2ppo.demo.uploads import Uploads
    from lr2ppo.inference.trained import open_trained

    trained = open_trained(arguments.run, arguments.logs)
    import_gradio()
    from lr2ppo.demo.server import serving

    ranker = open_ranker(arguments)
    examples = find_examples(trained.run)
    uploads = Uploads(folder, examples)
    page = build_page(ranker, uploads, examples)
    app = page_app(page, uploads, Hosts.of(arguments.host, listener), examples)
    # An interrupt raised in a destructor would be lost.
    reader, writer = os.pipe()
    for sent in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sent, lambda *_: os.write(writer, b"."))
    with serving(app, listener):
        say(f"the demo of {ranker.name} is at {address_of(arguments.host, listener)} (Ctrl-C ends it)")
        os.read(reader, 1)
