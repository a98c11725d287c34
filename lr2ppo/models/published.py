"""Checkpoints of the published implementation: read as models of ours, and written back.

`python -m lr2ppo.models.published IN OUT_DIR` makes a run of one; `--to-published` goes back.
"""

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from lr2ppo.config.schema import ModelConfig
from lr2ppo.errors import UserError, reports_user_errors
from lr2ppo.models.rankers import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import M, Model, build_model, load_model, model_shapes
from lr2ppo.tensors import check_tensors, read_tensors, write_tensors

T = TypeVar("T")

HEADS = 8
DROPOUT = 0.1
TEXT_TOKENS = 196
FRAMES = 16

# Published name -> ours, by module; a fusion block's modules come behind the name of their block.
BLOCK = {
    "0.0.0.fn.0.ln_x": "norm_x",
    "0.0.0.fn.0.ln_y": "norm_y",
    "0.0.0.fn.1.queries": "attention.queries",
    "0.0.0.fn.1.keys": "attention.keys",
    "0.0.0.fn.1.values": "attention.values",
    "0.0.0.fn.1.projection": "attention.projection",
    "0.0.1.fn.0": "norm_ffn",
    "0.0.1.fn.1.0": "ffn.0",
    "0.0.1.fn.1.3": "ffn.3",
    "1.0": "norm_out",
}
MODULES = {
    "text_proj.fc1": "encoder.text_proj.fc1",
    "text_proj.fc2": "encoder.text_proj.fc2",
    "img_proj.fc1": "encoder.image_proj.fc1",
    "img_proj.fc2": "encoder.image_proj.fc2",
    **{f"xit.{theirs}": f"encoder.fusion.{ours}" for theirs, ours in BLOCK.items()},
    "out_layer.fc1": "encoder.head.mlp.fc1",
    "out_layer.fc2": "encoder.head.mlp.fc2",
    "pos_emb": "slot_embedding",
    **{f"xitt.{theirs}": f"block.{ours}" for theirs, ours in BLOCK.items()},
    "head": "score",
}
PUBLISHED_MODULES = {ours: theirs for theirs, ours in MODULES.items()}


def load_ranker(path: Path | str, text_tokens: int | None = None, frames: int | None = None) -> RelevanceRanker:
    """Read a published ranker (stage 1, or stage 3's actor), in eval mode.

    The sizes are found from the tensors; of the flatten head they tell only `text_tokens + frames`, so these two are
    given where they are not the published 196 and 16. Raises `UserError` where the file cannot be read safely, holds
    the other model, does not fit those two, or has tensors missing, superfluous or misshapen.
    """
    return _load(Path(path), RelevanceRanker, text_tokens, frames)


def load_partial_order(
    path: Path | str, text_tokens: int | None = None, frames: int | None = None
) -> PartialOrderModel:
    """Read a published reward model or critic, in eval mode; arguments and errors as of `load_ranker`."""
    return _load(Path(path), PartialOrderModel, text_tokens, frames)


def load_published(path: Path, text_tokens: int | None = None, frames: int | None = None) -> Model:
    """Read whichever of the two models a published checkpoint is."""
    tensors = read_tensors(path)
    return _build(_kind_of(tensors), tensors, path, text_tokens, frames)


def published_tensors(model: Model) -> dict[str, Tensor]:
    """The model's weights under their published names; raises ValueError where that program could not use them."""
    config = model.encoder.config
    if (config.head, config.attention, config.heads) != ("flatten", "published", HEADS):
        raise ValueError(
            f"found head {config.head}, attention {config.attention} and {config.heads} heads, but the published "
            f"program knows only head flatten, attention published and {HEADS} heads"
        )
    return rename_modules(model.state_dict(), PUBLISHED_MODULES)


def _load(path: Path, kind: type[M], text_tokens: int | None, frames: int | None) -> M:
    tensors = read_tensors(path)
    found = _kind_of(tensors)
    if found is not kind:
        loader = {RelevanceRanker: "load_ranker", PartialOrderModel: "load_partial_order"}
        raise UserError(f"{path}: holds a {found.__name__}, wanted a {kind.__name__}; read it with {loader[found]}")
    return _build(kind, tensors, path, text_tokens, frames)


def _kind_of(tensors: Mapping[str, Tensor]) -> type[RelevanceRanker] | type[PartialOrderModel]:
    """Only the model over a pair's slots has a block named xitt and embeddings of the slots."""
    judges_orders = any(name.startswith(("xitt.", "pos_emb.")) for name in tensors)
    return PartialOrderModel if judges_orders else RelevanceRanker


def _build(kind: type[M], tensors: Mapping[str, Tensor], path: Path, text_tokens: int | None, frames: int | None) -> M:
    config = _find_config(tensors, path, text_tokens or TEXT_TOKENS, frames or FRAMES)
    # Checked under the file's own names, which are those that its owner can look for.
    check_tensors(rename_modules(model_shapes(kind, config), PUBLISHED_MODULES), tensors, path)
    return build_model(kind, config, rename_modules(tensors, MODULES), path)


def _find_config(tensors: Mapping[str, Tensor], path: Path, text_tokens: int, frames: int) -> ModelConfig:
    """The shape that the tensors have; raises `UserError` where the flatten head's two sizes do not add up to it."""
    if not any(name.rpartition(".")[0] in MODULES for name in tensors):
        names = ", ".join(list(tensors)[:3])
        raise UserError(f"{path}: holds {names} and the like, wanted a published ranker, reward model or critic")
    # Most vectors are of the width, so that one misshapen tensor does not lead astray.
    lengths = Counter(len(tensor) for tensor in tensors.values() if tensor.dim() == 1)
    width = lengths.most_common(1)[0][0] if lengths else 0
    if width == 0 or width % HEADS:
        raise UserError(f"{path}: found width {width}, wanted a multiple of the {HEADS} attention heads")
    inputs = _inputs(tensors, "out_layer.fc1")
    if inputs is not None and inputs != (text_tokens + frames) * width:
        raise UserError(
            f"{path}: out_layer.fc1.weight takes {inputs} numbers, which at width {width} implies text_tokens + frames "
            f"= {inputs / width:g}, but {text_tokens} + {frames} = {text_tokens + frames} were asked for; give the "
            "text_tokens and frames that the checkpoint was trained with"
        )
    return ModelConfig(
        head="flatten",
        attention="published",
        width=width,
        heads=HEADS,
        dropout=DROPOUT,
        text_tokens=text_tokens,
        frames=frames,
        text_width=_inputs(tensors, "text_proj.fc1") or width,
        image_width=_inputs(tensors, "img_proj.fc1") or width,
    )


def _inputs(tensors: Mapping[str, Tensor], module: str) -> int | None:
    """How many numbers a linear layer takes; None where its weight is missing or is no matrix."""
    weight = tensors.get(f"{module}.weight")
    return weight.shape[1] if weight is not None and weight.dim() == 2 else None


def rename_modules(named: Mapping[str, T], modules: Mapping[str, str]) -> dict[str, T]:
    """The same things, of which each stands under the other name of its module where that has one."""
    renamed = {}
    for name, thing in named.items():
        module, _, parameter = name.rpartition(".")
        renamed[f"{modules.get(module, module)}.{parameter}"] = thing
    return renamed


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(
        description="Turn a published checkpoint into a run; with --to-published, a run into one.",
        epilog="example: python -m lr2ppo.models.published pointwise.bin logs/pointwise/published && "
        "sh ppo_eval.sh pointwise/published",
    )
    parser.add_argument("source", type=Path, metavar="IN", help="published checkpoint; or a run or its best/ folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="run to write; with --to-published a file to write")
    parser.add_argument("--to-published", action="store_true", help="write a run's model as a published checkpoint")
    parser.add_argument("--text-tokens", type=int, help=f"tokens of the flatten head (default {TEXT_TOKENS})")
    parser.add_argument("--frames", type=int, help=f"frames of the flatten head (default {FRAMES})")
    parser.add_argument(
        "--preset", default="lrmovienet", help="folder under configs/ whose data the run has (default lrmovienet)"
    )
    parser.add_argument("--config", type=Path, help="the stage's YAML file, in place of the preset's")
    arguments = parser.parse_args()
    if arguments.to_published:
        write_published(arguments.source, arguments.out)
        return
    # Runs are written by a room above this one, where this command is to go.
    from lr2ppo.training.converted import write_converted_run

    model = load_published(arguments.source, arguments.text_tokens, arguments.frames)
    folder = write_converted_run(model, arguments.source, arguments.out, arguments.preset, arguments.config)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{folder}: a {type(model).__name__} of {weights:,} weights; evaluate it with: sh ppo_eval.sh {folder}")


def write_published(source: Path, out: Path) -> None:
    """Write a run's model, or that of a `best/` folder, as a published checkpoint; `out` may be a folder too."""
    folder = source / "best" if (source / "best").is_dir() else source
    model = load_model(folder)
    try:
        tensors = published_tensors(model)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None
    file = out if out.suffix else out / "model.bin"
    write_tensors(file, tensors)
    print(f"{file}: {len(tensors)} tensors of a {type(model).__name__}, as the published program reads it")


if __name__ == "__main__":
    main()
