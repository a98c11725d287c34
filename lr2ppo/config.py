"""What a run can be told: one validated tree a stage, from a YAML file and `key.sub=value` overrides."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from lr2ppo.errors import UserError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
FileNames = Annotated[
    tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v), Field(min_length=1)
]


# YAML may repeat a value in a value until no screen could hold it.
SHORTENED = Repr()
SHORTENED.maxstring = SHORTENED.maxother = 100


class Section(BaseModel):
    """A part of the tree: refuses unknown keys and never changes once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            raise ValueError("holds a character that no file's name can")
        return value


class DataConfig(Section):
    """Which clips a stage reads; files are relative to `root`."""

    root: Path
    features: FileNames
    train: str
    validation: str
    test: str
    frames: Count
    frame_order: Literal["even", "random"]
    workers: Annotated[int, Field(ge=0)]
    # Runs made before there was a choice tell none.
    strict: bool = True


class ModelConfig(Section):
    """The shape of a `LabelEncoder` and what is built on it (see `lr2ppo.models`)."""

    head: Literal["flatten", "pooled"]
    attention: Literal["published", "scaled"]
    width: Count
    heads: Count
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    text_tokens: Count = 196
    # Filled in from the features, never written in a YAML file.
    frames: Count = 16
    tokens_per_frame: Count = 1
    text_width: Count | None = None
    image_width: Count | None = None

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"model.width {self.width} is not a multiple of model.heads {self.heads}")
        return self


class OptimizerConfig(Section):
    """AdamW with linear warm-up, then linear decay to 0; gradients of a larger norm are scaled down to it."""

    learning_rate: NotNegative
    weight_decay: NotNegative
    warmup: Fraction
    clip_gradients: Positive | None = None


class PointwiseTraining(OptimizerConfig):
    epochs: Count
    clips_per_batch: Count
    max_labels: Count
    evaluate_every: Count


class PointwiseLoss(Section):
    beta: Positive


class RewardTraining(OptimizerConfig):
    epochs: Count
    clips_per_batch: Count
    pairs_per_clip: Count
    evaluate_every: Count
    validation_pairs: Count


class RewardLoss(Section):
    margin: Positive


class PPOOptimizer(OptimizerConfig):
    """A schedule that advances once an update; laid out over the run's own updates where no number is given."""

    schedule_updates: Count | None


class PPOTraining(Section):
    epochs: Count
    clips_per_batch: Count
    pairs_per_clip: Count
    visits_per_epoch: Count
    batches_per_rollout: Count
    passes: Count
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    evaluate_every: Count
    actor: PPOOptimizer
    critic: PPOOptimizer


class PPOLoss(Section):
    weighting: Literal["batch", "pair"]
    margin: Positive
    reverse_below: float
    kl_weight: NotNegative
    entropy_weight: NotNegative
    value_clip: Positive


Precision = Literal["auto", "fp32", "bf16"]


class ComputeConfig(Section):
    """How the same mathematics is computed: precision, memory and the work of several processes."""

    precision: Precision
    accumulate: Count
    checkpoint_activations: bool
    compile: bool
    strategy: Literal["ddp", "fsdp"]
    compress_gradients: bool


class SafetyConfig(Section):
    """When a run's whole state is written, how many such checkpoints are kept, and what happens to numbers gone bad."""

    checkpoint_steps: Count | None
    checkpoint_minutes: Positive | None
    keep: Count
    on_nonfinite: Literal["stop", "skip"]


class RunConfig(Section):
    """What every training run has; `preset` is the folder of the YAML file where none is given."""

    preset: str
    name: str | None = None
    seed: Seed
    logs: Path
    device: str
    data: DataConfig
    compute: ComputeConfig
    safety: SafetyConfig


class PointwiseConfig(RunConfig):
    """Stage 1."""

    stage: Literal["pointwise"]
    model: ModelConfig
    train: PointwiseTraining
    loss: PointwiseLoss


class RewardConfig(RunConfig):
    """Stage 2; `ranker` names the stage 1 run whose trunk it starts from: `newest`, `none`, a name or a path."""

    stage: Literal["reward"]
    ranker: str
    model: ModelConfig
    train: RewardTraining
    loss: RewardLoss


class PPOConfig(RunConfig):
    """Stage 3; the models' shapes are those of the runs it starts from."""

    stage: Literal["ppo"]
    ranker: str
    reward: str
    train: PPOTraining
    loss: PPOLoss


class EvaluateConfig(Section):
    """Which run is evaluated on which split; where `root` is null, on the clips the run itself was made for."""

    stage: Literal["evaluate"]
    preset: str
    name: str | None = None
    split: Literal["val", "test"]
    root: Path | None
    logs: Path
    device: str
    precision: Precision
    clips_per_batch: Count
    workers: Annotated[int, Field(ge=0)]
    bootstrap_samples: Count
    seed: Seed


TrainingConfig = PointwiseConfig | RewardConfig | PPOConfig
StageConfig = TrainingConfig | EvaluateConfig
STAGES: dict[str, type[PointwiseConfig] | type[RewardConfig] | type[PPOConfig] | type[EvaluateConfig]] = {
    "pointwise": PointwiseConfig,
    "reward": RewardConfig,
    "ppo": PPOConfig,
    "evaluate": EvaluateConfig,
}


def load_config(path: Path, stage: str, overrides: Sequence[str] = ()) -> Any:
    """Read a stage's YAML file and apply overrides; returns that stage's config class.

    Raises `UserError` naming every key at fault, what was found there and what was wanted.
    """
    tree = _read_yaml(path)
    found_stage = tree.get("stage")
    if found_stage != stage:
        raise UserError(f"{path}: stage: found {found_stage!r}, wanted {stage!r}; give this stage's own YAML file")
    tree.setdefault("preset", path.resolve().parent.name)
    schema = STAGES[stage]
    for override in overrides:
        _apply_override(tree, override, schema)
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        faults = "\n".join(f"  {_explain(fault, schema)}" for fault in error.errors())
        raise UserError(f"{path} with the overrides given cannot be used:\n{faults}") from None


def dump_config(config: Section) -> str:
    """The resolved tree as YAML, in the order of the schema."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        presets = sorted(str(found) for found in path.parent.parent.glob(f"*/{path.name}"))
        known = f"; there are: {', '.join(presets)}" if presets else ""
        raise UserError(f"{path}: no such config file{known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except Exception as error:
        # What is wrong with a single value, a date of month 13 or a number without digits, YAML lets through as it is.
        raise UserError(f"{path}: is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: found {type(tree).__name__}, wanted a YAML mapping of keys to values")
    return tree


def _apply_override(tree: dict[str, Any], override: str, schema: type[Section]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r}: wanted an override key=value, such as seed=1 or train.epochs=3")
    known = list(_known_keys(schema))
    if key not in known and not any(name.startswith(key + ".") for name in known):
        raise UserError(f"{override}: unknown key {key!r}{_nearest(key, known)}")
    try:
        # What is to be a text stays one: a run may be called 7 or on.
        value = text if _is_text(key, schema) else yaml.safe_load(text)
    except Exception as error:
        raise UserError(f"{override}: the value is not YAML: {error}") from None
    *sections, last = key.split(".")
    place = tree
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UserError(f"{override}: {section} is {place!r} in the config file, wanted a section of keys")
    place[last] = value


def _explain(fault: Mapping[str, Any], schema: type[Section]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(key, list(_known_keys(schema)))}"
    if fault["type"] == "missing":
        return f"{key}: is missing"
    return f"{key}: found {SHORTENED.repr(fault['input'])}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"


def _nearest(key: str, known: Sequence[str]) -> str:
    """`; did you mean ...?`, looking first among whole keys, then among their last parts."""
    sections = {name.rpartition(".")[0] for name in known} - {""}
    close = difflib.get_close_matches(key, [*sections, *known], n=1, cutoff=0.75)
    if not close:
        last_parts = {name.rpartition(".")[2]: name for name in known}
        close = [last_parts[part] for part in difflib.get_close_matches(key.rpartition(".")[2], last_parts, n=1)]
    return f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(known)}"


def _is_text(key: str, schema: type[BaseModel]) -> bool:
    """Whether a key's value is a text, or a text that may be missing."""
    name, _, rest = key.partition(".")
    field = schema.model_fields.get(name)
    if field is None:
        return False
    if rest:
        return (
            isinstance(field.annotation, type)
            and issubclass(field.annotation, BaseModel)
            and _is_text(rest, field.annotation)
        )
    return field.annotation in (str, str | None)


def _known_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name
