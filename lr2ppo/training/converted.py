"""Write a published checkpoint as a run's folder, which can be used like a trained run."""

import time
from pathlib import Path

from lr2ppo.config.load import dump_config, load_config
from lr2ppo.errors import UserError
from lr2ppo.files import check_no_links, write_json, write_text
from lr2ppo.models.weights import Model, save_model
from lr2ppo.runs.lock import lock_run
from lr2ppo.runs.lookup import CONFIG, CONVERTED_FROM, FINISHED
from lr2ppo.runs.stages import STAGES, stage_for_model
from lr2ppo.training.provenance import describe_program


def write_converted_run(model: Model, source: Path, out: Path, preset: str, config_file: Path | None = None) -> Path:
    """Write a run's folder for a model that was read from `source`; `out` is `logs/<stage>/NAME` or its `best/`.

    Its data section is that of the stage's YAML file, by default `configs/<preset>/<stage>.yaml`, with as many frames
    as the model takes. Returns the folder. Raises `UserError` if the run exists or another process has locked it, if
    the folder belongs to a stage with the other kind of model, or if the YAML file cannot be used.
    """
    folder = out.parent if out.name == "best" else out
    kind, named = type(model).__name__, folder.resolve().parent.name
    stage = stage_for_model(kind, named)
    if named in STAGES and named != stage.name:
        raise UserError(
            f"{folder}: found a {kind} in {source}, wanted a {STAGES[named].model}, the model of stage {named}; "
            f"use an OUT such as logs/{stage.name}/{folder.name}"
        )
    shape = model.encoder.config
    config = load_config(config_file or Path("configs") / preset / f"{stage.name}.yaml", stage.name)
    _check_unused(folder)
    # Held until this process ends: writing the weights of a large model takes a while.
    lock_run(folder)
    # A training may have ended just before.
    _check_unused(folder)
    check_no_links(out)
    found = {
        "name": folder.name,
        "logs": folder.parent.parent,
        "data": config.data.model_copy(update={"frames": shape.clip_frames}),
        **dict.fromkeys(stage.sources, "none"),
    }
    if "model" in stage.config.model_fields:
        found["model"] = shape
    text = dump_config(config.model_copy(update=found))
    save_model(folder / "best", model)
    finished = {"steps": 0, "best_metric": None, "best_step": 0, "finished": time.time(), CONVERTED_FROM: str(source)}
    write_json(folder / FINISHED, finished | describe_program())
    # Last: an incomplete folder is read as one with only weights, and can be written again.
    write_text(folder / CONFIG, text)
    return folder


def _check_unused(folder: Path) -> None:
    if (folder / CONFIG).exists():
        raise UserError(f"{folder}: found a run of this name already; use another OUT, or remove that folder")
