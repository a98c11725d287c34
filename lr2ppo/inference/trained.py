"""A trained model in a run or an exported folder: the paths and settings that ranking needs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from lr2ppo.config.schema import Count, Positive, Section
from lr2ppo.data.features.encoders import Encoding, encoding_differences, read_features_file
from lr2ppo.errors import UserError
from lr2ppo.files import read_json, require_own
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import describe_model
from lr2ppo.runs.lookup import (
    EXPORTED,
    explain_missing,
    find_run,
    has_own_weights,
    is_exported,
    read_calibration,
    read_data,
    read_run,
    read_temperature,
    source_runs,
)
from lr2ppo.runs.records import Calibration
from lr2ppo.runs.stages import STAGES

# Subfolders of an exported folder: its reward model, and the stage 1 run it started from.
REWARD, BEFORE = "reward", "before"


class Use(Section):
    """How to use a model: the section `use` of an exported folder's config.json."""

    name: str
    frames: Count
    frame_order: Literal["even", "random"]
    encoders: Encoding | None
    temperature: Positive | None
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Trained:
    """A trained model: `weights` is its folder, `reward` that of its reward model.

    `no_reward` says why there is none; `run` is the run's folder, None for an exported model.
    """

    use: Use
    weights: Path
    reward: Path | None
    no_reward: str
    before: "Trained | None"
    run: Path | None = None

    def by_reward(self) -> "Trained":
        """The reward model in place of the ranker; raises `UserError` if there is none.

        Its scores, the shares of pairs won, are about the other labels of a list: they have no calibration.
        """
        if self.reward is None:
            raise UserError(self.no_reward)
        use = self.use.model_copy(update={"calibration": None})
        return replace(self, use=use, weights=self.reward, before=None)


def open_trained(reference: str | Path, logs: Path) -> Trained:
    """Open a run as named for `find_run`, or an exported folder; raises `UserError` if it is neither, or both."""
    if is_exported(str(reference), logs):
        return _open_exported(Path(reference).resolve())
    return _open_run(find_run(str(reference), STAGES, logs))


def _open_exported(folder: Path) -> Trained:
    require_own([folder / EXPORTED, folder / REWARD, folder / BEFORE])
    try:
        description = read_json(folder / EXPORTED)
        use = Use.model_validate(description["use"])
    except (OSError, ValueError, ValidationError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{folder / 'config.json'}: is not from an exported model ({error}); name a run, or a folder written by "
            "sh scripts/export.sh RUN OUT"
        ) from None
    # A reward model serves as its own, without a second copy.
    reward = folder if description.get("model") == "PartialOrderModel" else folder / REWARD
    has_reward = use.temperature is not None and (reward / EXPORTED).is_file()
    has_before = (folder / BEFORE / EXPORTED).is_file()
    return Trained(
        use=use,
        weights=folder,
        reward=reward if has_reward else None,
        no_reward="" if has_reward else f"{folder}: was exported without a reward model",
        before=_open_exported(folder / BEFORE) if has_before else None,
    )


def _open_run(folder: Path) -> Trained:
    if not has_own_weights(folder):
        raise UserError(f"{folder / 'best'}: has links to other folders; put what they lead to in their places")
    data, encoding = read_data(folder), read_features_file(folder)
    reward, why = _find_reward(folder)
    use = Use(
        name="/".join(folder.resolve().parts[-2:]),
        frames=data.frames,
        frame_order=data.frame_order,
        encoders=encoding,
        temperature=None if reward is None else read_temperature(reward),
        calibration=read_calibration(folder),
    )
    return Trained(
        use=use,
        weights=folder / "best",
        reward=None if reward is None else reward / "best",
        no_reward=why,
        before=_find_before(folder, encoding),
        run=folder,
    )


def _find_reward(folder: Path) -> tuple[Path | None, str]:
    """Return the run of the reward model, or why there is none."""
    if describe_model(folder / "best")[0] is PartialOrderModel:
        return folder, ""
    config, sources = read_run(folder), source_runs(folder)
    if "reward" not in sources:
        return None, f"{folder}: is a {config['stage']} run without a reward model; name a ppo or a reward run"
    found = sources["reward"]
    return found, "" if found else f"{folder}: its reward model {explain_missing(folder, 'reward')}"


def _find_before(folder: Path, encoding: Encoding | None) -> Trained | None:
    """Return the first ranker that a ranker's run started from, directly or not: of stage 1, if that is not removed.

    None if there is none, or if it was trained on other features.
    """
    is_ranker = describe_model(folder / "best")[0] is RelevanceRanker
    found = source_runs(folder).get("ranker") if is_ranker else None
    if found is None:
        return None
    before = _open_run(found)
    others = before.use.encoders is not None and encoding_differences(before.use.encoders, encoding)
    return None if others else before.before or before
