"""Use a trained model: rank the labels of a clip, and tell which of two labels people would put first.

ranker = lr2ppo.LabelRanker.load("ppo/quickstart")
ranker.rank("holiday.mp4", ["beach", "car", "night"], "two friends by the sea")

"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lr2ppo.data.dataset import ClipBatch, ClipItem, choose_frames, collate
from lr2ppo.data.frames import Choose, Frames, read_frames
from lr2ppo.distributed.processes import choose_device
from lr2ppo.encoders.extractor import ClipEncoder, EncoderPaths, open_encoders
from lr2ppo.errors import UserError
from lr2ppo.evaluation.scoring import Scores, preference_table, score_batch
from lr2ppo.files import UNWRITABLE
from lr2ppo.inference.labels import RankedLabel, check_labels
from lr2ppo.inference.trained import Trained, open_trained
from lr2ppo.models import PartialOrderModel
from lr2ppo.models.weights import describe_model, load_kind, load_model
from lr2ppo.ops.linear import use_fast_linear
from lr2ppo.tensors import fingerprint

CLIPS_AT_ONCE = 8


@dataclass(frozen=True)
class Preference:
    """Of two labels the one that people would put first, and how surely: a probability from 0.5 to 1."""

    first: str
    second: str
    probability: float


@dataclass(frozen=True, eq=False)
class Query:
    """A clip and the labels to rank for it.

    `frames` is a folder of images, a video, an image, or a clip's frames in time order: paths, PIL images or arrays
    [height, width, 3] of uint8; None for a clip without frames.
    """

    frames: Frames | None
    labels: Sequence[str]
    description: str = ""


class LabelRanker:
    """A trained model and the encoders of the features it was trained on, loaded once and never changed."""

    def __init__(self, trained: Trained, clips: ClipEncoder, device: torch.device) -> None:
        self._trained, self._use, self._clips, self._device = trained, trained.use, clips, device
        self._model = use_fast_linear(load_model(trained.weights)).to(device)
        self._exact = self._model.encoder.config.head == "flatten"

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        logs: str | Path = Path("logs"),
        text: str | Path | None = None,
        tokenizer: str | Path | None = None,
        image: str | Path | None = None,
        device: str = "auto",
    ) -> Self:
        """A run of any stage (NAME, STAGE/NAME or a path), or a folder that `scripts/export.sh` made of one.

        The encoders are those that the run names, at the paths given at extraction or at `text`, `tokenizer` and
        `image`. A run whose features name none takes those given, and `warning` says so. Raises `UserError` where
        something is not there or is not what the run names.
        """
        trained = open_trained(run, Path(logs))
        paths = EncoderPaths(*(None if path is None else Path(path) for path in (text, tokenizer, image)))
        _, shape = describe_model(trained.weights)
        chosen = choose_device(device)
        return cls(trained, open_encoders(trained.use.name, trained.use.encoders, paths, shape, chosen), chosen)

    @property
    def name(self) -> str:
        """The run's, as STAGE/NAME."""
        return self._use.name

    @property
    def warning(self) -> str:
        """What is to be known of the encoders; empty where they are those that the run names."""
        if self._use.encoders is not None:
            return ""
        return (
            f"{self.name}: the features it was trained on name no encoders; that those given are the same "
            "could not be checked"
        )

    def identity(self) -> dict[str, str | int]:
        """What scores follow from: the run's name, its weights and the encoders, to tell whose an output is."""
        weights = fingerprint(self._model.state_dict())
        return {"run": self.name, "weights": weights, **self._clips.encoding.fingerprints()}

    @property
    def has_preferences(self) -> bool:
        """Whether there is a reward model, which `compare` and `preferences` ask."""
        return self._trained.reward is not None

    @cached_property
    def before(self) -> "LabelRanker | None":
        """The stage 1 run that a stage 3 run started from, with the same encoders; None where there is none."""
        before = self._trained.before
        return None if before is None else LabelRanker(before, self._clips, self._device)

    def rank(self, frames: Frames | None, labels: Sequence[str], description: str = "") -> list[RankedLabel]:
        """The labels of a clip, best first; `frames` as of `Query`.

        Raises `UserError` where frames cannot be read, or labels are none, empty or given twice.
        """
        return self.rank_batch([Query(frames, labels, description)])[0]

    def rank_batch(self, queries: Sequence[Query]) -> list[list[RankedLabel]]:
        """The labels of several clips, each best first."""
        for query in queries:
            check_labels(query.labels)
        ranked = []
        for query, scores in zip(queries, self.score_batch(queries), strict=True):
            order = np.argsort(-scores, kind="stable")
            ranked.append([RankedLabel(query.labels[place], float(scores[place])) for place in order])
        return ranked

    @torch.inference_mode()
    def score_batch(self, queries: Sequence[Query]) -> list[Scores]:
        """Scores of several clips' labels in the order given, `[labels]` each, as evaluation computes them.

        Labels may be given twice, as annotation files do.
        """
        scores = []
        for start in range(0, len(queries), CLIPS_AT_ONCE):
            scores += score_batch(self._model, self.encode(queries[start : start + CLIPS_AT_ONCE]))
        return scores

    def compare(self, frames: Frames | None, a: str, b: str, description: str = "") -> Preference:
        """Which of two labels people would put first, by the reward model; raises `UserError` where there is none."""
        wins = float(self.preferences(frames, [a, b], description)[0, 1])
        return Preference(a, b, wins) if wins >= 0.5 else Preference(b, a, 1 - wins)

    @torch.inference_mode()
    def preferences(self, frames: Frames | None, labels: Sequence[str], description: str = "") -> NDArray[np.float64]:
        """How surely people put the row's label before the column's: `[labels, labels]`, 0.5 on the diagonal."""
        judge = self._reward_model
        check_labels(labels)
        batch = self.encode([Query(frames, labels, description)])
        vectors = judge.encoder(**batch.inputs())
        table: NDArray[np.float64] = preference_table(judge, vectors, self._use.temperature or 1.0)[0].cpu().numpy()
        return table

    @cached_property
    def _reward_model(self) -> PartialOrderModel:
        if isinstance(self._model, PartialOrderModel):
            return self._model
        if self._trained.reward is None:
            raise UserError(self._trained.no_reward)
        return use_fast_linear(load_kind(self._trained.reward, PartialOrderModel)).to(self._device)

    def encode(self, queries: Sequence[Query]) -> ClipBatch:
        """Several clips as the batch that models read, as a data set gives it."""
        return collate([self._item(place, query) for place, query in enumerate(queries)]).to(self._device)

    def _item(self, place: int, query: Query) -> ClipItem:
        if not isinstance(query.description, str) or UNWRITABLE.search(query.description):
            raise UserError(f"description: found {query.description!r}, wanted a text")
        choose = partial(choose_frames, max_frames=self._use.frames, order=self._use.frame_order, exact=self._exact)
        frames = [] if query.frames is None else read_frames(query.frames, choose)
        encoded = self._clips(query.labels, query.description, frames)
        none = torch.zeros(0, dtype=torch.long)
        return ClipItem(
            id=str(place),
            clip=place,
            labels=torch.arange(len(encoded.text)),
            text=encoded.text,
            label_span=encoded.label_span,
            frames=encoded.frames if frames else self._no_frames(choose),
            grades=torch.zeros(len(encoded.text)),
            listed=none,
            pairs=none.reshape(0, 2),
            first_is_better=none.bool(),
            seed=0,
        )

    def _no_frames(self, choose: Choose) -> Tensor:
        """The features of a clip without frames: one frame of zeros, taken as often as the model needs."""
        shape = self._model.encoder.config
        rows = len(choose(1)) * shape.tokens_per_frame
        return torch.zeros(rows, shape.image_width or shape.width)
