"""Tiny untrained runs for the demo, and its page served within the tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lr2ppo.demo.address import Hosts, listen
from lr2ppo.demo.inputs import find_examples
from lr2ppo.demo.uploads import Uploads
from lr2ppo.inference.ranker import LabelRanker
from tests.helpers.demo_world import write_demo_world
from tests.helpers.page_client import Client


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with untrained tiny runs of all stages, their encoders, and one test clip with two frames."""
    root = tmp_path_factory.mktemp("demo")
    write_demo_world(root)
    return root


# It changes the working folder, so it ends with the tests of the demo.
@pytest.fixture(scope="package")
def served(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of the page, served as the command does."""
    from lr2ppo.demo.page import build_page, page_app
    from lr2ppo.demo.server import serving

    folder = tmp_path_factory.mktemp("uploads").resolve()
    with pytest.MonkeyPatch.context() as patch, listen("127.0.0.1", 0) as listener:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.chdir(workspace)
        ranker = LabelRanker.load("ppo/tiny", logs=Path("logs"), device="cpu")
        examples = find_examples(workspace / "logs" / "ppo" / "tiny")
        uploads = Uploads(folder, examples)
        app = page_app(build_page(ranker, uploads, examples), uploads, Hosts.of("127.0.0.1", listener), examples)
        with serving(app, listener):
            yield Client(listener.getsockname()[1], folder)
