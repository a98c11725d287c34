"""Convert checkpoints of the published implementation to our models, and back."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from lr2ppo.config.schema import ModelConfig
from lr2ppo.errors import UserError
from lr2ppo.files import check_output
from lr2ppo.models.rankers import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import M, Model, build_model, load_model, model_shapes
from lr2ppo.tensors import check_tensors, read_tensors, write_tensors
from lr2ppo.terminal import say

T = TypeVar("T")

HEADS = 8
DROPOUT = 0.1
TEXT_TOKENS = 196
FRAMES = 16

# Published name -> ours, by module; the modules of a fusion block are prefixed with the block's name.
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

    The sizes are inferred from the tensors, except that these give only the sum `text_tokens + frames`: pass both if
    they differ from the published 196 and 16. Raises `UserError` if the file cannot be read safely, holds the other
    model, does not fit those two, or has missing, unexpected or misshapen tensors.
    """
    return _load(Path(path), RelevanceRanker, text_tokens, frames)


def load_partial_order(
    path: Path | str, text_tokens: int | None = None, frames: int | None = None
) -> PartialOrderModel:
    """Read a published reward model or critic, in eval mode; arguments and errors are those of `load_ranker`."""
    return _load(Path(path), PartialOrderModel, text_tokens, frames)


def load_published(path: Path, text_tokens: int | None = None, frames: int | None = None) -> Model:
    """Read a published checkpoint of either model."""
    tensors = read_tensors(path)
    return _build(_kind_of(tensors), tensors, path, text_tokens, frames)


def published_tensors(model: Model) -> dict[str, Tensor]:
    """Return the model's weights by their published names; raise ValueError if that program could not use them."""
    config = model.encoder.config
    if (config.head, config.attention, config.heads) != ("flatten", "published", HEADS):
        raise ValueError(
            f"found head {config.head}, attention {config.attention} and {config.heads} heads, but the published "
            f"program knows only head flatten, attention published and {HEADS} heads"
        )
    if config.context != "none":
        raise ValueError(f"found model.context {config.context}, but the published program has none")
    return rename_modules(model.state_dict(), PUBLISHED_MODULES)


def _load(path: Path, kind: type[M], text_tokens: int | None, frames: int | None) -> M:
    tensors = read_tensors(path)
    found = _kind_of(tensors)
    if found is not kind:
        loader = {RelevanceRanker: "load_ranker", PartialOrderModel: "load_partial_order"}
        raise UserError(f"{path}: holds a {found.__name__}, wanted a {kind.__name__}; read it with {loader[found]}")
    return _build(kind, tensors, path, text_tokens, frames)


def _kind_of(tensors: Mapping[str, Tensor]) -> type[RelevanceRanker] | type[PartialOrderModel]:
    """Find the kind of model: only the partial-order model has a block named xitt and slot embeddings."""
    has_slots = any(name.startswith(("xitt.", "pos_emb.")) for name in tensors)
    return PartialOrderModel if has_slots else RelevanceRanker


def _build(kind: type[M], tensors: Mapping[str, Tensor], path: Path, text_tokens: int | None, frames: int | None) -> M:
    config = _find_config(tensors, path, text_tokens or TEXT_TOKENS, frames or FRAMES)
    # Checked by the file's names, which the user can search for.
    check_tensors(rename_modules(model_shapes(kind, config), PUBLISHED_MODULES), tensors, path)
    return build_model(kind, config, rename_modules(tensors, MODULES), path)


def _find_config(tensors: Mapping[str, Tensor], path: Path, text_tokens: int, frames: int) -> ModelConfig:
    """Infer the config from the tensors; raise `UserError` if `text_tokens + frames` does not match them."""
    if not any(name.rpartition(".")[0] in MODULES for name in tensors):
        names = ", ".join(list(tensors)[:3])
        raise UserError(f"{path}: holds {names} and the like, wanted a published ranker, reward model or critic")
    # Most vectors have this width, so one misshapen tensor does not matter.
    lengths = Counter(len(tensor) for tensor in tensors.values() if tensor.dim() == 1)
    width = lengths.most_common(1)[0][0] if lengths else 0
    if width == 0 or width % HEADS:
        raise UserError(f"{path}: found width {width}, wanted a multiple of the {HEADS} attention heads")
    inputs = _inputs(tensors, "out_layer.fc1")
    if inputs is not None and inputs != (text_tokens + frames) * width:
        raise UserError(
            f"{path}: out_layer.fc1.weight takes {inputs} numbers, which at width {width} implies text_tokens + frames "
            f"= {inputs / width:g}, but {text_tokens} + {frames} = {text_tokens + frames} were given; give the "
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
    """The input size of a linear layer; None if its weight is missing or not a matrix."""
    weight = tensors.get(f"{module}.weight")
    return weight.shape[1] if weight is not None and weight.dim() == 2 else None


def rename_modules(named: Mapping[str, T], modules: Mapping[str, str]) -> dict[str, T]:
    """Rename the modules in the names of parameters; modules without a new name keep theirs."""
    renamed = {}
    for name, thing in named.items():
        module, _, parameter = name.rpartition(".")
        renamed[f"{modules.get(module, module)}.{parameter}"] = thing
    return renamed


def write_published(source: Path, out: Path) -> None:
    """Write the model of a run or a `best/` folder as a published checkpoint; `out` may be a folder."""
    # A path that is typed may be a link, what is in its folder may not.
    folder = source / "best" if (source / "best").is_dir() else source.resolve()
    model = load_model(folder)
    try:
        tensors = published_tensors(model)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None
    file = out if out.suffix else out / "model.bin"
    write_tensors(check_output(file) if file == out else file, tensors)
    say(f"{file}: {len(tensors)} tensors of a {type(model).__name__}, as the published program reads it")
