"""A training of a stage: its settings, and the commands that train and evaluate it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lr2ppo.config.load import known_keys
from lr2ppo.config.schema import DataConfig, ModelConfig, RunConfig
from lr2ppo.data.annotations import Need
from lr2ppo.data.features.store import FeatureStore
from lr2ppo.distributed.processes import Processes
from lr2ppo.runs.lookup import FINISHED
from lr2ppo.runs.stages import STAGES, Stage
from lr2ppo.training.inputs import Inputs, open_inputs
from lr2ppo.training.run import open_all

# Replaced by the seed in a setting, such as data.root=data/mini-{seed}.
SEED = "{seed}"


@dataclass(frozen=True)
class Training:
    """A run of a stage, and the settings of its command."""

    stage: Stage
    config: RunConfig
    folder: Path
    settings: Sequence[str]

    @property
    def is_finished(self) -> bool:
        return (self.folder / FINISHED).is_file()

    @property
    def name(self) -> str:
        return f"{self.stage.name}/{self.folder.name}"

    @property
    def sources(self) -> set[str]:
        """The names of the runs that it starts from."""
        return {getattr(self.config, key) for key in self.stage.sources}

    def command(self, preset: Path) -> list[str]:
        """The arguments of `lr2ppo` that train it."""
        return ["train", self.stage.name, f"--config={preset / self.stage.name}.yaml", *self.settings]

    def evaluation(self, preset: Path, split: str) -> list[str]:
        """The arguments of `lr2ppo` that evaluate it on a split of its data."""
        settings = [f"name={self.name}", f"logs={self.config.logs}", f"root={self.config.data.root}", f"split={split}"]
        return ["evaluate", f"--config={preset / 'evaluate'}.yaml", *settings]


class ReadOnce:
    """Takes the place of `open_inputs` where several runs read the same, which is then read once."""

    def __init__(self) -> None:
        self._known: dict[str, Inputs] = {}

    def __call__(
        self,
        data: DataConfig,
        files: Mapping[str, tuple[str, Need]],
        store: FeatureStore,
        model: ModelConfig,
        processes: Processes,
    ) -> Inputs:
        key = json.dumps([data.model_dump(mode="json"), files, model.model_dump(mode="json")])
        if key not in self._known:
            self._known[key] = open_inputs(data, files, store, model, processes)
        return self._known[key]


def check_trained(trainings: Iterable[Training]) -> None:
    """Raise `UserError` if a run has other settings than planned, or other data than there are now."""
    alone = Processes(rank=0, world_size=1, device=torch.device("cpu"))
    read = ReadOnce()
    for training in trainings:
        open_all(training.config, alone, training.folder, read)


def settings_for(stage: Stage, given: Sequence[str]) -> list[str]:
    """Select the settings of a stage: `STAGE:key=value` is of that stage, any other of every stage with its key."""
    return [_bare(setting, stage) for setting in given if belongs(setting, stage)]


def belongs(setting: str, stage: Stage) -> bool:
    """Whether a setting applies to a stage: it names the stage or no stage, and the stage has its key."""
    prefix, colon, rest = setting.partition(":")
    if colon and prefix in STAGES:
        return prefix == stage.name and _has_key(rest, stage)
    return _has_key(setting, stage)


def _has_key(setting: str, stage: Stage) -> bool:
    key = setting.partition("=")[0]
    return any(known == key or known.startswith(f"{key}.") for known in known_keys(stage.config))


def _bare(setting: str, stage: Stage) -> str:
    return setting.removeprefix(f"{stage.name}:")
