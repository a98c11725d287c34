"""A published checkpoint as a run's folder, which all that reads runs takes like one that was trained here."""

import time
from pathlib import Path

from lr2ppo.config.load import dump_config, load_config
from lr2ppo.errors import UserError
from lr2ppo.files import write_json, write_whole
from lr2ppo.models.weights import Model, save_model
from lr2ppo.runs.lookup import CONFIG, CONVERTED_FROM, FINISHED
from lr2ppo.runs.stages import STAGES, stage_for_model
from lr2ppo.training.provenance import describe_program


def write_converted_run(model: Model, source: Path, out: Path, preset: str, config_file: Path | None = None) -> Path:
    """Write a run's folder, `logs/<stage>/NAME` or the `best/` in it, around a model that was read from `source`.

    Its data are those of the stage's YAML file, `configs/<preset>/<stage>.yaml` where none is given, with as many
    frames as the model takes. Returns the folder. Raises `UserError` where there is a run already, where the folder is
    one of a stage that keeps other models, or where the YAML file cannot be used.
    """
    folder = out.parent if out.name == "best" else out
    if (folder / CONFIG).exists():
        raise UserError(f"{folder}: found a run of this name already; give another OUT, or remove that folder")
    kind, named = type(model).__name__, folder.resolve().parent.name
    stage = stage_for_model(kind, named)
    if named in STAGES and named != stage.name:
        raise UserError(
            f"{folder}: found a {kind} in {source}, wanted a {STAGES[named].model}, as runs of stage {named} keep one; "
            f"give an OUT such as logs/{stage.name}/{folder.name}"
        )
    shape = model.encoder.config
    config = load_config(config_file or Path("configs") / preset / f"{stage.name}.yaml", stage.name)
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
    # Last: a folder that is only partly written is taken for weights alone, and can be written again.
    write_whole(folder / CONFIG, lambda partial: partial.write_text(text, encoding="utf-8"))
    return folder
