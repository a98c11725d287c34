"""Train and evaluate the stages of LR2PPO, also over seeds; finished runs are skipped, stopped runs resume."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from lr2ppo.config.load import load_config
from lr2ppo.config.schema import EvaluateConfig, PPOConfig, RunConfig
from lr2ppo.distributed.commands import run_command
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.runs.lookup import FINISHED, is_newest
from lr2ppo.runs.stages import LR2PPO, STAGES, Stage
from lr2ppo.stages.evaluate import is_evaluated
from lr2ppo.stages.trainings import SEED, Training, belongs, check_trained, settings_for
from lr2ppo.terminal import say
from lr2ppo.training.run_folder import find_source, run_folder

SPLIT = "test"
FRESH = "--fresh"


def run_pipeline(
    name: str,
    preset: Path,
    settings: Sequence[str] = (),
    seeds: Sequence[int] = (),
    stages: Sequence[str] = (),
    options: Sequence[str] = (),
    evaluates: bool = True,
) -> list[str]:
    """Train and evaluate the stages of LR2PPO of the run NAME, or NAME-SEED for each seed, that are not finished.

    Without `stages`, all that the preset's stage 3 needs. A setting applies to every stage with its key,
    `STAGE:key=value` only to that stage; `{seed}` in it is replaced by the seed. A run starts from those of the same
    name, unless `ranker` or `reward` is given. `options` are those of `lr2ppo train`; with `--fresh`, finished runs are
    trained again. Returns the runs as STAGE/NAME. Raises `UserError` before any run starts if a setting cannot be used,
    a given run is missing, or a finished run has other settings or other data; exits with the exit code of a command
    that fails.
    """
    planned = [STAGES[stage] for stage in stages] or stages_of(preset)
    _check_own_keys(settings, seeds)
    evaluation: EvaluateConfig = load_config(preset / "evaluate.yaml", "evaluate", [f"split={SPLIT}"])
    trainings = [training for run in _runs(name, seeds) for training in _plan(*run, preset, planned, settings)]
    _check_sources(trainings)
    finished = [training for training in trainings if training.is_finished and FRESH not in options]
    _check_finished(finished)
    for training in trainings:
        if training in finished:
            say(f"== {training.name}: finished already")
        else:
            _start(*training.command(preset), *options)
    # The preset and the data may have changed meanwhile: the rows of a table must be of the same.
    check_trained(trainings)
    alone = Processes(rank=0, world_size=1, device=torch.device("cpu"))
    for training in trainings if evaluates else ():
        if is_evaluated(training.folder, evaluation, training.config.data, alone):
            say(f"== {training.name}: evaluated already")
        else:
            _start(*training.evaluation(preset, SPLIT))
    return [training.name for training in trainings]


def stages_of(preset: Path) -> list[Stage]:
    """The stages that lead to the preset's stage 3, in training order.

    Direct fine-tuning is one of them if the preset's stage 3 starts from a fine-tuned ranker.
    """
    ppo: PPOConfig = load_config(preset / "ppo.yaml", "ppo")
    return [stage for stage in STAGES.values() if stage.name in LR2PPO or ppo.ranker.startswith(f"{stage.name}/")]


def _runs(name: str, seeds: Sequence[int]) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each run, and its additional settings."""
    if not seeds:
        yield name, []
    for seed in seeds:
        yield f"{name}-{seed}", [f"seed={seed}"]


def _check_own_keys(settings: Sequence[str], seeds: Sequence[int]) -> None:
    """Raise `UserError` if a setting is one that the pipeline itself gives every run."""
    own = {"name": "its NAME"} | ({"seed": "--seeds"} if seeds else {})
    for setting in settings:
        prefix, colon, rest = setting.partition(":")
        key = (rest if colon and prefix in STAGES else setting).partition("=")[0]
        if key in own:
            raise UserError(f"{setting}: the pipeline gives every run its {key}, by {own[key]}; remove this setting")


def _plan(
    name: str, own: Sequence[str], preset: Path, stages: Sequence[Stage], settings: Sequence[str]
) -> Iterator[Training]:
    """Yield the training of each stage of a run, after its config is checked."""
    seed = own[0].partition("=")[2] if own else SEED
    given = [setting.replace(SEED, seed) for setting in settings]
    unknown = [setting for setting in given if not any(belongs(setting, stage) for stage in stages)]
    if unknown:
        # The first stage's message names the nearest key.
        load_config(preset / f"{stages[0].name}.yaml", stages[0].name, [unknown[0].partition(":")[2] or unknown[0]])
        raise UserError(f"{unknown[0]}: is not a setting of any stage")
    for stage in stages:
        file = load_config(preset / f"{stage.name}.yaml", stage.name)
        sources = {key: _source_stage(getattr(file, key), allowed) for key, allowed in stage.sources.items()}
        # The given ones last, so that they win.
        mine = [f"name={name}", *own]
        mine += [f"{key}={source}/{name}" for key, source in sources.items() if STAGES[source] in stages]
        mine += settings_for(stage, given)
        config: RunConfig = load_config(preset / f"{stage.name}.yaml", stage.name, mine)
        yield Training(stage, config, run_folder(config), mine)


def _source_stage(reference: str, allowed: Sequence[str]) -> str:
    """The stage of the run that a preset's key names: the usual one, unless it is `STAGE/newest`."""
    return next((stage for stage in allowed if reference.startswith(f"{stage}/")), allowed[0])


def _check_sources(trainings: Sequence[Training]) -> None:
    """Raise `UserError` if a run would start from one that is neither finished nor trained before it."""
    before: set[Path] = set()
    for training in trainings:
        config = training.config
        for key, (usual, *_) in training.stage.sources.items():
            reference: str = getattr(config, key)
            places = {config.logs / usual / reference, config.logs / reference, Path(reference)}
            # Others are known once the run starts.
            if not is_newest(reference) and not before & places:
                find_source(config, key, reference)
        before.add(training.folder)


def _check_finished(trainings: Sequence[Training]) -> None:
    """Raise `UserError` if a finished run is not the one that its command would train now."""
    for training in trainings:
        missing = [source for source in _sources(training) if not (source / FINISHED).is_file()]
        if missing:
            raise UserError(
                f"{training.folder}: is finished, but {missing[0]}, which it starts from, is not; use another name, or "
                "remove this run"
            )
    check_trained(trainings)


def _sources(training: Training) -> list[Path]:
    """The folders of the runs of the same name that a run starts from."""
    name, logs = training.folder.name, training.config.logs
    references = [getattr(training.config, key) for key in training.stage.sources]
    return [logs / reference for reference in references if Path(reference).name == name and reference != name]


def _start(*arguments: str) -> None:
    say(f"== lr2ppo {shlex.join(arguments)}")
    run_command(*arguments)
