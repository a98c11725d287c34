"""Export a run's model as a self-contained folder, which `LabelRanker.load` takes."""

from pathlib import Path

from lr2ppo.files import atomic_folder, read_json, write_json
from lr2ppo.inference.model_card import write_card
from lr2ppo.inference.onnx import OnnxReport, export_onnx, require_packages
from lr2ppo.inference.trained import BEFORE, REWARD, Trained
from lr2ppo.models import PartialOrderModel
from lr2ppo.models.weights import load_model, save_model
from lr2ppo.version import __version__


def export(trained: Trained, out: Path, with_onnx: bool = False) -> OnnxReport | None:
    """Write a model, its reward model and the stage 1 run it started from, with a model card, all or nothing.

    `with_onnx` adds the ranker as an ONNX graph and returns how it compares. Raises `UserError` if `out` exists and is
    not empty, a package for the graph is missing or too old, or the graph's scores differ.
    """
    if with_onnx:
        require_packages()
    with atomic_folder(out) as folder:
        is_ranker = _write_model(trained, folder)
        if trained.reward is not None and is_ranker:
            save_model(folder / REWARD, load_model(trained.reward))
        if trained.before is not None:
            _write_model(trained.before, folder / BEFORE)
        report = export_onnx(trained, folder / "ranker.onnx") if with_onnx else None
        write_card(trained, folder / "README.md", out, report)
    return report


def _write_model(trained: Trained, folder: Path) -> bool:
    """Write the weights, and their use into config.json; return whether it is a ranker."""
    model = load_model(trained.weights)
    save_model(folder, model)
    path = folder / "config.json"
    description = read_json(path)
    write_json(path, description | {"use": trained.use.model_dump(mode="json"), "lr2ppo": __version__})
    return not isinstance(model, PartialOrderModel)
