"""What a comparison trains: every row over data sets and seeds, each run once, named by what its weights depend on."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from lr2ppo.config.load import config_leaves, load_config
from lr2ppo.config.schema import CompareConfig, RowConfig, RunConfig
from lr2ppo.errors import UserError
from lr2ppo.files import file_fingerprint
from lr2ppo.runs.lookup import PLACE_KEYS, SOURCES, VALIDATED_ON, read_finished
from lr2ppo.runs.stages import STAGES
from lr2ppo.stages.trainings import SEED, Training, belongs, settings_for
from lr2ppo.training.run_folder import run_folder
from lr2ppo.version import __version__

# In the logs folder.
RUNS = "runs"
# Settings that no weights depend on, besides the place of the data; sources are named by what they depend on.
NO_FACTS = ("name", "safety.", *(key for key in PLACE_KEYS if key != "data.root"))
NAME_LENGTH = 12


@dataclass(frozen=True)
class Attempt:
    """One combination of the values that a row tries: the shown runs, [seeds][members]."""

    values: Sequence[str]
    runs: Sequence[Sequence[Training]]

    @property
    def shown(self) -> list[Training]:
        return [training for members in self.runs for training in members]

    def validation(self) -> float:
        """The mean over its runs, all finished, of the metric that selects their weights."""
        found = [read_finished(training.folder) or {} for training in self.shown]
        return float(np.mean([ended.get("best_metric") or 0.0 for ended in found]))


@dataclass(frozen=True)
class Plan:
    """The attempts of every row by data set and row, and all trainings, each once and after those it starts from.

    `contents` are the fingerprints of the annotation files, which are part of the names of the runs.
    """

    attempts: Mapping[str, Mapping[str, Sequence[Attempt]]]
    trainings: Sequence[Training]
    contents: Mapping[Path, str]

    def check_unchanged(self) -> None:
        """Raise `UserError` if an annotation file is not as it was planned with."""
        for path, fingerprint in self.contents.items():
            if _fingerprint(path) != fingerprint:
                raise UserError(f"{path}: changed while runs were made; restore it, or run the same command again")

    def check_validations(self) -> None:
        """Raise `UserError` if runs that a row chooses from have figures of different validation clips.

        Such as where features of some clips are missing, and `data.strict` is false.
        """
        for rows in self.attempts.values():
            for name, attempts in rows.items():
                for runs in zip(*(attempt.shown for attempt in attempts), strict=True):
                    found = {run.name: (read_finished(run.folder) or {}).get(VALIDATED_ON) for run in runs}
                    # Runs of earlier versions do not say it.
                    first = {clips: run for run, clips in found.items() if clips is not None}
                    if len(first) > 1:
                        raise UserError(
                            f"rows.{name}: {' and '.join(first.values())} chose their best steps on different "
                            "validation clips, so their figures choose no value; make the clips of all its data usable "
                            "(sh scripts/check_data.sh), or try fewer values"
                        )


def make_plan(config: CompareConfig) -> Plan:
    """Plan all runs; raises `UserError` if a setting cannot be used or an annotation file is missing."""
    _check_settings(config)
    planner = _Planner(config)
    attempts = {
        data: {
            name: [planner.attempt(row, settings, values) for values in _combinations(row)]
            for name, row in config.trained_rows.items()
        }
        for data, settings in config.data.items()
    }
    return Plan(attempts, list(planner.trainings.values()), planner.contents)


def _check_settings(config: CompareConfig) -> None:
    """Raise `UserError` if a setting is of no stage, or one of a row of none of the row's stages."""
    used = [stage for stage in STAGES if any(stage in row.stages for row in config.trained_rows.values())]
    # Other rows read the data as stage 1 does.
    used = used or ["pointwise"]
    for settings in (config.settings, *config.data.values(), config.overrides):
        _check_known(settings, used, config)
    for name, row in config.trained_rows.items():
        if len(set(row.stages)) < len(row.stages):
            raise UserError(f"rows.{name}.stages: found {row.stages}, wanted each stage once")
        _check_sources(name, row)
        _check_tuned(name, row)
        _check_overrides(name, row, config.overrides)
        _check_known([*row.settings, *(f"{key}={values[0]}" for key, values in row.tune.items())], row.stages, config)


def _check_tuned(name: str, row: RowConfig) -> None:
    """Raise `UserError` if a row tries validation clips: figures of different clips cannot select a value."""
    for key in row.tune:
        if key.rpartition(":")[2] in ("data", "data.root", "data.validation", "data.strict"):
            raise UserError(f"rows.{name}.tune: found {key}, wanted values that are compared on the same clips")


def _check_overrides(name: str, row: RowConfig, overrides: Sequence[str]) -> None:
    """Raise `UserError` if a setting of all runs is one that a row tries values of."""
    for stage, override, tuned in product(map(STAGES.__getitem__, row.stages), overrides, row.tune):
        keys = [setting.partition("=")[0].split(".") for setting in settings_for(stage, [override, f"{tuned}="])]
        # A whole section holds its keys.
        if len(keys) == 2 and all(part == other for part, other in zip(*keys, strict=False)):
            raise UserError(f"{override}: the row {name!r} tries values of this; change its tune in the set")


def _check_sources(name: str, row: RowConfig) -> None:
    """Raise `UserError` if a stage of a row has no stage before it to start from."""
    for place, stage in enumerate(row.stages):
        for allowed in STAGES[stage].sources.values():
            if not set(allowed).intersection(row.stages[:place]):
                raise UserError(
                    f"rows.{name}: {stage} starts from a run of {' or '.join(allowed)}, found {', '.join(row.stages)}; "
                    "add that stage before it"
                )


def _check_known(settings: Sequence[str], stages: Sequence[str], config: CompareConfig) -> None:
    for setting in settings:
        prefix, colon, rest = setting.partition(":")
        key = (rest if colon and prefix in STAGES else setting).partition("=")[0]
        if key in ("name", "seed", "logs", *SOURCES):
            raise UserError(f"{setting}: a comparison sets the {key} of its runs itself; remove this setting")
        if not any(belongs(setting, STAGES[stage]) for stage in stages):
            # Its message names the nearest key.
            load_config(config.preset / f"{stages[-1]}.yaml", stages[-1], [setting.removeprefix(f"{prefix}:")])
            raise UserError(f"{setting}: is not a setting of {' or '.join(stages)}")


def _combinations(row: RowConfig) -> Iterator[list[str]]:
    """Yield every combination of the values that a row tries, as settings."""
    tried = [[f"{key}={value}" for value in values] for key, values in row.tune.items()]
    yield from map(list, product(*tried))


def _member_seed(seed: int, member: int) -> int:
    """The seed of a further member of a row, which no other seed of the row shares."""
    return int.from_bytes(hashlib.sha256(f"{seed}, member {member}".encode()).digest()[:4])


class _Planner:
    """Plans the runs of attempts: one that several depend on is planned once."""

    def __init__(self, config: CompareConfig) -> None:
        self.config = config
        self.trainings: dict[str, Training] = {}
        self.contents: dict[Path, str] = {}

    def attempt(self, row: RowConfig, data: Sequence[str], values: Sequence[str]) -> Attempt:
        """Plan a row's runs with one combination of values."""
        settings = [*self.config.settings, *data, *row.settings, *values, *self.config.overrides]
        runs = []
        for seed in self.config.seeds:
            own = [setting.replace(SEED, str(seed)) for setting in settings]
            seeds = [seed, *(_member_seed(seed, member) for member in range(1, row.members))]
            runs.append([self._chain(row, [*own, f"seed={each}"]) for each in seeds])
        return Attempt(values, runs)

    def _chain(self, row: RowConfig, settings: Sequence[str]) -> Training:
        """Plan a run of each of a row's stages, each from the last ones that it can start from; return the last."""
        made: dict[str, Training] = {}
        for stage in map(STAGES.__getitem__, row.stages):
            sources = {
                key: [training for name, training in made.items() if name in allowed][-1]
                for key, allowed in stage.sources.items()
            }
            own = [*settings_for(stage, settings), f"logs={self.config.logs / RUNS}"]
            own += [f"{key}={source.name}" for key, source in sources.items()]
            config: RunConfig = load_config(self.config.preset / f"{stage.name}.yaml", stage.name, own)
            config = config.model_copy(update={"name": self._identify(config)})
            training = Training(stage, config, run_folder(config), [*own, f"name={config.name}"])
            made[stage.name] = self.trainings.setdefault(training.name, training)
        return made[row.stages[-1]]

    def _identify(self, config: RunConfig) -> str:
        """A hash of all that the weights of a run depend on but its features: those are compared before it is used."""
        # Without defaults, so that a new setting names no earlier run anew; names decide which defaults there are.
        changed = {key for key, _ in config_leaves(config.model_dump(mode="json", exclude_defaults=True))}
        leaves = {
            key: value
            for key, value in config_leaves(config.model_dump(mode="json"))
            if key in changed or key.endswith(".name")
        }
        facts = {key: value for key, value in leaves.items() if not key.startswith(NO_FACTS)}
        if config.safety.on_nonfinite != "stop":
            facts["safety.on_nonfinite"] = config.safety.on_nonfinite
        files = [self._content(config.data.root / name) for name in config.annotations.values()]
        text = json.dumps([__version__, facts, files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:NAME_LENGTH]

    def _content(self, path: Path) -> str:
        if path not in self.contents:
            self.contents[path] = _fingerprint(path)
        return self.contents[path]


def _fingerprint(path: Path) -> str:
    """The fingerprint of a file; raises `UserError` if it cannot be read."""
    try:
        return file_fingerprint(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; check data of the set") from None
