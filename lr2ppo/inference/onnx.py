"""Export a ranker as an ONNX graph, from features to scores, checked against the ranker."""

import importlib
import io
import logging
import re
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from lr2ppo.errors import UserError
from lr2ppo.inference.trained import Trained
from lr2ppo.models import RelevanceRanker
from lr2ppo.models.weights import load_model

# The lowest releases that export with every torch we run on; pyproject.toml has the same.
PACKAGES = {"onnx": "1.17", "onnxscript": "0.6.1", "onnxruntime": "1.18"}
LARGEST_SIZE = 2**31 - 1
LARGEST_DIFFERENCE = 1e-4
INPUTS = ("text", "text_mask", "frames", "frame_mask")
# Clips, labels, tokens per label and frame tokens: the traced sizes, then the checked ones.
TRACED = (2, 3, 5, 4)
CHECKED = ((1, 1, 2, 1), (1, 7, 3, 9), (3, 2, 6, 5))


@dataclass(frozen=True)
class OnnxReport:
    """The largest difference between the graph's scores and torch's, and the sizes that the graph takes."""

    difference: float
    sizes: str

    def __str__(self) -> str:
        return f"scores differ from torch's by at most {self.difference:.1e}; {self.sizes}"


class _Scores(nn.Module):
    """A ranker with named inputs."""

    def __init__(self, ranker: RelevanceRanker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, text: Tensor, text_mask: Tensor, frames: Tensor, frame_mask: Tensor) -> Tensor:
        scores: Tensor = self.ranker(text, frames, text_mask=text_mask, frame_mask=frame_mask)
        return scores


def require_packages() -> None:
    """Raise `UserError` if a package that the export needs is missing or too old."""
    faults = []
    for name, lowest in PACKAGES.items():
        try:
            found = importlib.import_module(name).__version__
        except ImportError:
            found = "none"
        if found == "none" or _numbers(found) < _numbers(lowest):
            faults.append(f"{name} {lowest} or newer, found {found}")
    if faults:
        raise UserError(f"--onnx needs {'; '.join(faults)}: pip install '.[onnx]'")


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def export_onnx(trained: Trained, path: Path) -> OnnxReport:
    """Write `text, text_mask, frames, frame_mask -> scores` as in `RelevanceRanker.forward`.

    Raises `UserError` if the model is not a ranker, a package is missing or too old, or the graph's scores differ from
    torch's.
    """
    require_packages()
    ranker = load_model(trained.weights)
    if not isinstance(ranker, RelevanceRanker):
        raise UserError(f"{trained.use.name}: is a reward model, which has no ONNX export; name a ranker's run")
    shape = ranker.encoder.config
    if shape.context == "dlcm":
        raise UserError(
            f"{trained.use.name}: found model.context dlcm, which reads labels one after another; an ONNX graph cannot "
            "do that for lists of any length; export without --onnx, or a ranker of another context"
        )
    is_flatten = shape.head == "flatten"
    of_text, of_frames = ("clips", "labels", "tokens"), ("clips", "frame_tokens")
    fixed_sizes = ("tokens", "frame_tokens") if is_flatten else ()
    dynamic = {
        name: {axis: Dim(size, max=LARGEST_SIZE) for axis, size in enumerate(sizes) if size not in fixed_sizes}
        for name, sizes in zip(INPUTS, (of_text, of_text, of_frames, of_frames), strict=True)
    }
    with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        # Strict tracing, the first choice of torch 2.6, would lay text out as this batch has it.
        traced = torch.export.export(_Scores(ranker), draw_inputs(ranker, TRACED), dynamic_shapes=dynamic, strict=False)
        torch.onnx.export(
            traced,
            (),
            str(path),
            input_names=INPUTS,
            output_names=("scores",),
            dynamo=True,
            # One file cannot hold more than 2 GiB.
            external_data=sum(weight.nbytes for weight in ranker.state_dict().values()) > 2**30,
        )
    session = importlib.import_module("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    difference = max(_difference(ranker, session, draw_inputs(ranker, sizes)) for sizes in CHECKED)
    if not difference <= LARGEST_DIFFERENCE:
        raise UserError(f"{path.name}: its scores differ from torch's by {difference:.1e}; not written")
    fixed = f"; text is padded to {shape.text_tokens} tokens, frames are {shape.frames}" if is_flatten else ""
    varying = "clips and labels" if is_flatten else "clips, labels, tokens and frames"
    return OnnxReport(difference, f"any number of {varying}{fixed}")


@torch.no_grad()
def _difference(ranker: RelevanceRanker, session: Any, inputs: tuple[Tensor, ...]) -> float:
    text, text_mask, frames, frame_mask = inputs
    wanted = ranker(text, frames, text_mask=text_mask, frame_mask=frame_mask)
    fed = {name: tensor.numpy() for name, tensor in zip(INPUTS, inputs, strict=True)}
    (found,) = session.run(None, fed)
    # A label without tokens is padding; its score is meaningless.
    return float((torch.from_numpy(found) - wanted)[text_mask.any(-1)].abs().max())


def draw_inputs(ranker: RelevanceRanker, sizes: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw random features of these many clips, labels, tokens and frame tokens, with some padding."""
    shape = ranker.encoder.config
    clips, labels, tokens, frames = sizes
    if shape.head == "flatten":
        tokens, frames = shape.text_tokens, shape.frames
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(clips, labels, tokens, shape.text_width or shape.width, generator=generator)
    pictures = torch.randn(clips, frames, shape.image_width or shape.width, generator=generator)
    lengths = torch.randint(min(2, tokens), tokens + 1, (clips, labels), generator=generator)
    text_mask = torch.arange(tokens) < lengths.unsqueeze(-1)
    seen = torch.randint(1, frames + 1, (clips,), generator=generator)
    frame_mask = torch.arange(frames) < seen.unsqueeze(-1)
    return text * text_mask.unsqueeze(-1), text_mask, pictures * frame_mask.unsqueeze(-1), frame_mask
