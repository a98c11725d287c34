"""Use a trained model: rank the labels of a clip, and predict which of two labels people prefer.

ranker = lr2ppo.LabelRanker.load("ppo/quickstart")
ranker.rank("holiday.mp4", ["beach", "car", "night"], "two friends by the sea")

"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from reprlib import repr as shortened
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lr2ppo.data.dataset import ClipBatch, ClipItem, choose_frames, collate, frames_seed
from lr2ppo.data.frames import Choose, Frames, prepare_frames
from lr2ppo.distributed.processes import choose_device
from lr2ppo.encoders.extractor import ClipEncoder, EncoderPaths, open_encoders
from lr2ppo.errors import UserError, path_errors_as_user_errors
from lr2ppo.evaluation.relevance import relevance_probabilities
from lr2ppo.evaluation.scoring import Scores, preference_table, score_batch
from lr2ppo.files import UNWRITABLE, WEIGHTS_FILE
from lr2ppo.inference.labels import RankedLabel, check_labels, check_texts
from lr2ppo.inference.trained import Trained, open_trained
from lr2ppo.models import PartialOrderModel
from lr2ppo.models.weights import describe_model, load_kind, load_model
from lr2ppo.ops.linear import use_fast_linear
from lr2ppo.tensors import fingerprint

CLIPS_AT_ONCE = 8
# What orders the labels: the run's model, or the reward model that it learned from.
ORDERED_BY = ("ranker", "reward")


@dataclass(frozen=True)
class Preference:
    """The label that people would put first, and the probability of it, from 0.5 to 1."""

    first: str
    second: str
    probability: float


@dataclass(frozen=True, eq=False)
class Query:
    """A clip and the labels to rank for it.

    `frames` is a folder of images, a video, an image, or a clip's frames in time order: paths, PIL images or arrays
    [height, width, 3] of uint8; None for a clip without frames. `id` is the clip's, which draws the frames of models
    that take them in random order.
    """

    frames: Frames | None
    labels: Sequence[str]
    description: str = ""
    id: str = ""


def _require_finite(scores: NDArray[np.floating], weights: Path) -> None:
    """Raise `UserError` naming the folder of the weights unless all scores are finite: others have no order."""
    if not np.isfinite(scores).all():
        raise UserError(
            f"{weights / WEIGHTS_FILE}: found scores that are not finite, wanted numbers; its weights, or those of the "
            "encoders, are damaged or too large: restore them, or train the model again"
        )


def _check_queries(queries: Sequence[Query]) -> None:
    if not isinstance(queries, list | tuple) or not all(isinstance(query, Query) for query in queries):
        raise UserError(f"queries: found {shortened(queries)}, wanted a list of lr2ppo.Query")


class LabelRanker:
    """A trained model and the encoders of its features, loaded once and never changed."""

    def __init__(self, trained: Trained, clips: ClipEncoder, device: torch.device) -> None:
        self._trained, self._use, self._clips, self._device = trained, trained.use, clips, device
        self._model = use_fast_linear(load_model(trained.weights)).to(device)
        self._exact = self._model.encoder.config.head == "flatten"

    @classmethod
    @path_errors_as_user_errors()
    def load(
        cls,
        run: str | Path,
        *,
        logs: str | Path = Path("logs"),
        text: str | Path | None = None,
        tokenizer: str | Path | None = None,
        image: str | Path | None = None,
        by: Literal["ranker", "reward"] = "ranker",
        device: str = "auto",
    ) -> Self:
        """Load a run of any stage (NAME, STAGE/NAME or a path), or a folder that `lr2ppo export` wrote.

        With `by="reward"`, labels are ordered by its reward model: a score is the share of pairs that the label wins.
        The encoders are those that the run names, at the paths used at extraction or at `text`, `tokenizer` and
        `image`. If the run's features name none, the given ones are used and `warning` says so. Raises `UserError` if
        something is missing or is not what the run names.
        """
        given = {"run": run, "logs": logs, "text": text, "tokenizer": tokenizer, "image": image, "device": device}
        for name, value in given.items():
            if not isinstance(value, str | PathLike) and (value is not None or name in ("run", "logs", "device")):
                raise UserError(f"{name}: found {shortened(value)}, wanted a text{' or a path' * (name != 'device')}")
        if by not in ORDERED_BY:
            raise UserError(f"by: found {shortened(by)}, wanted {' or '.join(ORDERED_BY)}")
        trained = open_trained(run, Path(logs))
        if by == "reward":
            trained = trained.by_reward()
        paths = EncoderPaths(*(None if path is None else Path(path) for path in (text, tokenizer, image)))
        _, shape = describe_model(trained.weights)
        chosen = choose_device(device)
        return cls(trained, open_encoders(trained.use.name, trained.use.encoders, paths, shape, chosen), chosen)

    @property
    def name(self) -> str:
        """The run's name, as STAGE/NAME."""
        return self._use.name

    @property
    def warning(self) -> str:
        """A warning about the encoders; empty if they are those that the run names."""
        if self._use.encoders is not None:
            return ""
        return (
            f"{self.name}: the features it was trained on name no encoders; cannot check that the given ones "
            "are the same"
        )

    def identity(self) -> dict[str, str | int | float | None]:
        """Return what determines scores and probabilities: the run, its model, frames, encoders and calibration.

        Weights and encoders are given by their fingerprints.
        """
        kind, shape = describe_model(self._trained.weights)
        calibration = self._use.calibration
        return {
            "run": self.name,
            "weights": fingerprint(self._model.state_dict()),
            "kind": kind.__name__,
            **{f"model.{key}": value for key, value in shape.model_dump().items()},
            "frames": self._use.frames,
            "frame_order": self._use.frame_order,
            **self._clips.encoding.fingerprints(),
            "calibration": None if calibration is None else calibration.model_dump_json(),
        }

    @property
    def has_preferences(self) -> bool:
        """Whether there is a reward model for `compare` and `preferences`."""
        return self._trained.reward is not None

    @cached_property
    def before(self) -> "LabelRanker | None":
        """The stage 1 run that a run started from, directly or not, with the same encoders; None if there is none."""
        before = self._trained.before
        return None if before is None else LabelRanker(before, self._clips, self._device)

    def rank(self, frames: Frames | None, labels: Sequence[str], description: str = "") -> list[RankedLabel]:
        """Rank the labels of a clip, best first; `frames` as in `Query`.

        Raises `UserError` if frames cannot be read, or if there are no labels, or empty or repeated ones.
        """
        return self.rank_batch([Query(frames, labels, description)])[0]

    def rank_batch(self, queries: Sequence[Query]) -> list[list[RankedLabel]]:
        """Rank the labels of several clips, each best first."""
        _check_queries(queries)
        for query in queries:
            check_labels(query.labels)
        ranked = []
        for query, scores in zip(queries, self.score_batch(queries), strict=True):
            order = np.argsort(-scores, kind="stable")
            found = self.probabilities(scores)
            probabilities = [None] * len(scores) if found is None else found.tolist()
            ranked.append(
                [RankedLabel(query.labels[place], float(scores[place]), probabilities[place]) for place in order]
            )
        return ranked

    def probabilities(self, scores: Scores) -> Scores | None:
        """Return the probability that labels of these scores are relevant, as in `RankedLabel`; None if unknown."""
        calibration = self._use.calibration
        return None if calibration is None else relevance_probabilities(calibration, scores)

    @torch.inference_mode()
    def score_batch(self, queries: Sequence[Query]) -> list[Scores]:
        """Score several clips' labels in the order given, `[labels]` each, as in evaluation.

        Labels may be repeated, as in annotation files.
        """
        _check_queries(queries)
        for query in queries:
            check_texts(query.labels)
        scores = []
        for start in range(0, len(queries), CLIPS_AT_ONCE):
            scores += score_batch(self._model, self.encode(queries[start : start + CLIPS_AT_ONCE]))
        for of_clip in scores:
            _require_finite(of_clip, self._trained.weights)
        return scores

    def compare(self, frames: Frames | None, a: str, b: str, description: str = "") -> Preference:
        """Predict which of two labels people put first, by the reward model; raises `UserError` if there is none."""
        wins = float(self.preferences(frames, [a, b], description)[0, 1])
        return Preference(a, b, wins) if wins >= 0.5 else Preference(b, a, 1 - wins)

    @torch.inference_mode()
    def preferences(self, frames: Frames | None, labels: Sequence[str], description: str = "") -> NDArray[np.float64]:
        """Return the probability that people put row before column: `[labels, labels]`, 0.5 on the diagonal."""
        reward_model = self._reward_model
        check_labels(labels)
        batch = self.encode([Query(frames, labels, description)])
        vectors = reward_model.encoder(**batch.inputs())
        table = preference_table(reward_model, vectors, self._use.temperature or 1.0)[0]
        preferences: NDArray[np.float64] = table.cpu().numpy()
        _require_finite(preferences, self._trained.reward or self._trained.weights)
        return preferences

    @cached_property
    def _reward_model(self) -> PartialOrderModel:
        if isinstance(self._model, PartialOrderModel):
            return self._model
        if self._trained.reward is None:
            raise UserError(self._trained.no_reward)
        return use_fast_linear(load_kind(self._trained.reward, PartialOrderModel)).to(self._device)

    def encode(self, queries: Sequence[Query]) -> ClipBatch:
        """Encode several clips as the batch that models read, as from a data set."""
        return collate([self._item(place, query) for place, query in enumerate(queries)]).to(self._device)

    def _item(self, place: int, query: Query) -> ClipItem:
        if not isinstance(query.description, str) or UNWRITABLE.search(query.description):
            raise UserError(f"description: found {shortened(query.description)}, wanted a text")
        seed, use = frames_seed(str(query.id)), self._use
        choose = partial(choose_frames, max_frames=use.frames, order=use.frame_order, exact=self._exact, seed=seed)
        frames = [] if query.frames is None else prepare_frames(query.frames, choose, self._clips.image.prepare)
        encoded = self._clips(query.labels, query.description, frames)
        none = torch.zeros(0, dtype=torch.long)
        return ClipItem(
            id=str(place),
            clip=place,
            labels=torch.arange(len(encoded.text)),
            text=pad_sequence(encoded.text, batch_first=True),
            lengths=torch.tensor([len(tokens) for tokens in encoded.text]),
            label_span=encoded.label_span,
            frames=encoded.frames if frames else self._no_frames(choose),
            grades=torch.zeros(len(encoded.text)),
            listed=none,
            pairs=none.reshape(0, 2),
            first_is_better=none.bool(),
            seed=seed,
        )

    def _no_frames(self, choose: Choose) -> Tensor:
        """Return the features of a clip without frames: one frame of zeros, repeated as the model needs."""
        shape = self._model.encoder.config
        rows = len(choose(1)) * shape.tokens_per_frame
        return torch.zeros(rows, shape.image_width or shape.width)
