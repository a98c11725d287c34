"""The demo's web page: fields for frames, labels and a description, and the resulting order."""

import asyncio
import html
import os
import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from lr2ppo.demo.address import Hosts
from lr2ppo.demo.inputs import Example, format_labels, parse_labels, uploaded_frames
from lr2ppo.demo.results import TEMPLATE, rank_clip, render_header, render_result
from lr2ppo.demo.uploads import Uploads
from lr2ppo.errors import UserError
from lr2ppo.inference.ranker import LabelRanker

# Per file; the page reports one that is too large before the upload.
MOST_BYTES = 100 * 2**20
# Clips to rank, over all visitors; the page tells the next to try again.
MOST_WAITING = 32
# Visitors whose fields gradio holds: those who wait, the one whose turn it is, and one who comes.
MOST_SESSIONS = MOST_WAITING + 2
EMPTY = '<div class="empty"><strong>No order yet</strong><span>Drop frames, type labels and press Rank{}.</span></div>'
# gradio's theme variables, set to the colours of the page's style; each has a dark variant of the same value.
THEME = {
    "body_text_color": "var(--ink)",
    "body_text_color_subdued": "var(--muted)",
    "background_fill_primary": "var(--card)",
    "background_fill_secondary": "var(--card)",
    "border_color_primary": "var(--line)",
    "border_color_accent": "var(--after)",
    "block_background_fill": "var(--card)",
    "block_border_color": "var(--line)",
    "block_label_background_fill": "var(--card)",
    "block_label_text_color": "var(--muted)",
    "block_title_text_color": "var(--ink)",
    "block_info_text_color": "var(--muted)",
    "input_background_fill": "var(--paper)",
    "input_background_fill_focus": "var(--paper)",
    "input_border_width": "1px",
    "input_border_color": "var(--line)",
    "input_border_color_focus": "var(--after)",
    "loader_color": "var(--after)",
    "button_primary_background_fill": "#2a6f97",
    "button_primary_background_fill_hover": "#225c7e",
    "button_primary_text_color": "#ffffff",
    "button_secondary_background_fill": "var(--card)",
    "button_secondary_background_fill_hover": "var(--paper)",
    "button_secondary_border_color": "var(--line)",
    "button_secondary_text_color": "var(--ink)",
}
# Shown until the page's style is loaded.
PAPER = {"body_background_fill": "#f5f7f9", "body_background_fill_dark": "#14181c"}


def import_gradio() -> ModuleType:
    """Import gradio with its network access disabled; raises `UserError` if it is not installed."""
    # Read when gradio is imported and when a page is built: no telemetry, no version check.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Otherwise the browser keeps inputs and results, frames included, between visits.
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    # Before 6.20 gradio calls a status by its old name and would print a warning with every request.
    warnings.filterwarnings("ignore", message="'HTTP_422_UNPROCESSABLE_ENTITY' is deprecated")
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"the demo needs gradio ({error}); run: pip install '.[demo]'") from None
    return gradio


def build_page(ranker: LabelRanker, uploads: Uploads, examples: Sequence[Example] = ()) -> Any:
    """Build the page as gradio's `Blocks`; an example's button fills the fields and ranks."""
    gr = import_gradio()
    with gr.Blocks(title=f"LR2PPO: {ranker.name}", analytics_enabled=False, fill_width=True) as page:
        start = None if ranker.before is None else ranker.before.name
        gr.HTML(render_header(ranker.name, start), elem_id="header", apply_default_css=False)
        with gr.Row(elem_id="page"):
            with gr.Column(scale=4, min_width=320):
                fields = _add_fields(gr)
                button = gr.Button("Rank", variant="primary", elem_id="rank")
                chosen = _add_examples(gr, examples, fields)
            with gr.Column(scale=7, min_width=480):
                order = gr.HTML(
                    EMPTY.format(", or choose an example" if examples else ""),
                    elem_id="result",
                    apply_default_css=False,
                    js_on_load=(TEMPLATE / "page.js").read_text(encoding="utf-8"),
                )
        _, labels, description = fields
        triggers = [button.click, labels.submit, description.submit, *(example.then for example in chosen)]
        for trigger in triggers:
            # One clip at a time, whatever was pressed: a ranker fills the processor.
            trigger(
                partial(_rank, gr, ranker, uploads), fields, order, api_visibility="private", concurrency_id="ranking"
            )
    page.queue(max_size=MOST_WAITING, default_concurrency_limit=1)
    page.state_session_capacity = MOST_SESSIONS
    return page


def _add_fields(gr: ModuleType) -> list[Any]:
    """Add the fields for frames, labels and a description."""
    return [
        gr.Gallery(
            label="Frames: images in order, or a video",
            elem_id="frames",
            interactive=True,
            columns=4,
            height=240,
            object_fit="contain",
            buttons=[],
            sources=["upload"],
        ),
        gr.Textbox(
            label="Labels",
            info="One per line, or separated by commas. Shift+Enter ranks.",
            elem_id="labels",
            lines=5,
            max_lines=12,
        ),
        gr.Textbox(
            label="Description",
            info="What the clip is about; optional. Enter ranks.",
            elem_id="description",
            max_lines=5,
        ),
    ]


def _add_examples(gr: ModuleType, examples: Sequence[Example], fields: list[Any]) -> list[Any]:
    """Add a button per example that fills the fields; return their click events."""
    if not examples:
        return []
    chosen = []
    with gr.Column(elem_id="examples"):
        gr.HTML('<span class="note">Or choose a test clip:</span>', apply_default_css=False)
        for example in examples:
            frames = [str(frame) for frame in example.frames]
            button = gr.Button(example.title, icon=frames[0], size="sm")
            values = (frames, format_labels(example.labels), example.description)
            chosen.append(button.click(partial(tuple, values), None, fields, api_visibility="private"))
    return chosen


def _rank(
    gr: ModuleType,
    ranker: LabelRanker,
    uploads: Uploads,
    media: Sequence[tuple[str, str | None]] | None,
    text: str,
    description: str,
) -> str:
    """Rank the clip in the fields; return the result as HTML, or show a message on the page."""
    paths = [path for path, _ in media or ()]
    try:
        uploads.require(paths)
        frames = uploaded_frames(paths)
        labels, repeated = parse_labels(text)
        result = rank_clip(ranker, frames, labels, description.strip())
    except UserError as error:
        raise gr.Error(message_html(str(error), paths), print_exception=False) from None
    if repeated:
        gr.Warning(message_html(f"Given more than once, ranked once: {', '.join(repeated)}."))
    return render_result(result)


def message_html(message: str, uploads: Sequence[str] = ()) -> str:
    """Escape a message for gradio, which renders HTML; show uploads by file name only."""
    for upload in uploads:
        message = message.replace(upload, Path(upload).name)
    return html.escape(message).replace("\n", "<br>")


def page_app(page: Any, uploads: Uploads, hosts: Hosts, examples: Sequence[Example] = ()) -> Any:
    """Return the page as an ASGI app that answers only `hosts`, with files of `uploads` only."""
    gr = import_gradio()
    # gradio brings them.
    from fastapi import FastAPI

    from lr2ppo.demo.gate import Gate, most_bytes
    from lr2ppo.demo.guard import Guard

    # gradio would look up a font given by name in its files.
    plain = gr.themes.utils.fonts.Font("sans-serif")
    theme = gr.themes.Base(font=plain, font_mono=plain, radius_size="lg")
    theme.set(**THEME, **{f"{name}_dark": value for name, value in THEME.items()}, **PAPER, color_accent="var(--after)")
    style = (TEMPLATE / "style.css").read_text(encoding="utf-8")
    app = FastAPI(lifespan=partial(_removing_old, uploads), openapi_url=None)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=theme,
        head=f"<style>{style}</style>",
        footer_links=[],
        show_error=False,
        max_file_size=MOST_BYTES,
        allowed_paths=[str(frame) for example in examples for frame in example.frames],
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
    )
    uploads.keep_present()
    events = {event["id"]: len(event["inputs"]) for event in page.get_config_file()["dependencies"]}
    return Guard(Gate(app, uploads, events, partial(_forget, page)), hosts, most_bytes)


def _forget(page: Any, session: str) -> None:
    """Drop the values of a session's fields, which gradio keeps for a return: this page's browser sends them again."""
    held = page.state_holder
    with held.lock:
        held.session_data.pop(session, None)
        held.time_last_used.pop(session, None)


@asynccontextmanager
async def _removing_old(uploads: Uploads, app: Any) -> AsyncIterator[None]:
    """Remove old uploads every minute while the app runs."""

    async def remove() -> None:
        while True:
            await asyncio.sleep(60)
            await asyncio.to_thread(uploads.remove_old)

    task = asyncio.create_task(remove())
    try:
        yield
    finally:
        task.cancel()
