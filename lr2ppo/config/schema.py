"""The settings of a run: one validated config per stage, from a YAML file and `key.sub=value` overrides."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from lr2ppo.errors import show
from lr2ppo.files import CONTROL, DECIMAL, UNWRITABLE


def _read_number(value: Any) -> Any:
    """The number that a text such as 010 or 1e-4 stands for, which YAML takes for a text; any other value as it is."""
    if not isinstance(value, str) or not DECIMAL.fullmatch(value):
        return value
    return int(value) if value.lstrip("+-").isdigit() else float(value)


def _refuse_blank(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError("is blank, wanted a path")
    return value


def _refuse_lines(value: Any) -> Any:
    if isinstance(value, str) and (UNWRITABLE.search(value) or CONTROL.search(value) or not value.strip()):
        raise ValueError("is blank or holds a control character, wanted a text of one line")
    return value


Number = Annotated[float, BeforeValidator(_read_number)]
WholeNumber = Annotated[int, BeforeValidator(_read_number)]
Fraction = Annotated[Number, Field(ge=0.0, le=1.0)]
Positive = Annotated[Number, Field(gt=0.0)]
NotNegative = Annotated[Number, Field(ge=0.0)]
Count = Annotated[WholeNumber, Field(ge=1)]
# A path is given as a text, which is not yet one.
PathText = Annotated[Path, BeforeValidator(_refuse_blank), Field(strict=False)]
# What every generator of random numbers that is seeded with it takes.
LARGEST_SEED = 2**32 - 1
Seed = Annotated[WholeNumber, Field(ge=0, le=LARGEST_SEED)]
FileNames = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda v: (v,) if isinstance(v, str) else tuple(v) if isinstance(v, list) else v),
    Field(min_length=1),
]


class Section(BaseModel):
    """A section of the config: refuses unknown keys and values of another type, such as true for 1; is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str) and UNWRITABLE.search(text):
                raise ValueError("holds a character that file names cannot have")
            if isinstance(text, str) and CONTROL.search(text):
                raise ValueError("holds a control character, wanted a text of one line")
        return value


def _name_or(default: str) -> Discriminator:
    """Select the member of a union by its `name`; configs of earlier versions have none and get the default."""

    def name_of(value: Any) -> Any:
        if not isinstance(value, dict):
            return getattr(value, "name", None)
        name = value.get("name", default)
        return name if isinstance(name, str) else show(name)

    return Discriminator(name_of)


class DataConfig(Section):
    """Which clips a stage reads; files are relative to `root`."""

    root: PathText
    features: FileNames
    train: str
    validation: str
    test: str
    frames: Count
    frame_order: Literal["even", "random"]
    workers: Annotated[WholeNumber, Field(ge=0)]
    # Configs of earlier versions lack these keys.
    keep: Literal["auto", "gpu", "memory", "disk"] = "auto"
    strict: bool = True


class ModelConfig(Section):
    """The shape of a `LabelEncoder` and what is built on it (see `lr2ppo.models`)."""

    head: Literal["flatten", "pooled"]
    attention: Literal["published", "scaled"]
    width: Count
    heads: Count
    dropout: Annotated[Number, Field(ge=0.0, lt=1.0)]
    # Whether a reward model adds to the score difference of the ranker that it starts from; earlier versions did not.
    residual: bool = False
    # What a ranker does with the other labels of a clip; configs of earlier versions lack this key.
    context: Literal["none", "dlcm", "gsf", "setrank", "setrank_induced", "prm", "rankformer"] = "none"
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

    @property
    def clip_frames(self) -> int:
        """The number of frames per clip that the frame tokens come from."""
        return max(1, self.frames // self.tokens_per_frame)

    def mismatches(
        self, *, text_width: int, image_width: int, tokens_per_frame: int, frames: int | None = None
    ) -> list[str]:
        """How features differ from what the model takes, each as `what found, wanted other`.

        `frames` is the number of frames read per clip, if known; only the flatten head depends on it.
        """
        wanted = {
            "text width": (text_width, self.text_width or self.width),
            "image width": (image_width, self.image_width or self.width),
            "tokens a frame": (tokens_per_frame, self.tokens_per_frame),
        }
        if self.head == "flatten" and frames is not None:
            wanted["frame tokens a clip"] = (frames * tokens_per_frame, self.frames)
        return [f"{what} {found}, wanted {taken}" for what, (found, taken) in wanted.items() if found != taken]


class OptimizerConfig(Section):
    """AdamW with linear warm-up, then linear decay to 0; `clip_gradients` is the maximum gradient norm."""

    learning_rate: NotNegative
    weight_decay: NotNegative
    warmup: Fraction
    clip_gradients: Positive | None = None


class TrainingSettings(Section):
    """Training settings that every stage has."""

    epochs: Count
    clips_per_batch: Count
    evaluate_every: Count


class RankerTraining(TrainingSettings):
    """Training of a ranker, whose best weights are chosen by the NDCG of validation clips."""

    # How many of its standard errors a gain must exceed for later weights to be taken; negative: the latest that are
    # not clearly worse. Earlier versions lack this key.
    standard_errors: Number = 0.0


class PointwiseTraining(OptimizerConfig, RankerTraining):
    max_labels: Count
    # Earlier versions always filled lists.
    fill_lists: bool = True


class LossConfig(Section):
    """The name of a loss in `lr2ppo.losses`, and its parameters: those of the function, with the same defaults.

    They are written again here because a config is checked before torch is imported.
    """

    name: str

    @property
    def parameters(self) -> dict[str, float | None]:
        return self.model_dump(exclude={"name"})


class SmoothL1(LossConfig):
    name: Literal["smooth_l1"] = "smooth_l1"
    beta: Positive


class Ordinal(LossConfig):
    name: Literal["ordinal"] = "ordinal"
    sigma: Positive = 1.0


class RankNet(LossConfig):
    name: Literal["ranknet"] = "ranknet"


class LambdaRank(LossConfig):
    name: Literal["lambdarank"] = "lambdarank"
    sigma: Positive = 1.0
    k: Count | None = None


class NDCGLoss2pp(LossConfig):
    name: Literal["ndcg_loss2pp"] = "ndcg_loss2pp"
    sigma: Positive = 1.0
    mu: NotNegative = 10.0
    k: Count | None = None


class ListNet(LossConfig):
    name: Literal["listnet"] = "listnet"


class ListMLE(LossConfig):
    name: Literal["listmle"] = "listmle"


class Softmax(LossConfig):
    name: Literal["softmax"] = "softmax"


class ApproxNDCG(LossConfig):
    name: Literal["approx_ndcg"] = "approx_ndcg"
    alpha: Positive = 10.0


class NeuralNDCG(LossConfig):
    name: Literal["neural_ndcg"] = "neural_ndcg"
    temperature: Positive = 1.0
    k: Count | None = None


RankingLoss = Annotated[
    Annotated[SmoothL1, Tag("smooth_l1")]
    | Annotated[Ordinal, Tag("ordinal")]
    | Annotated[RankNet, Tag("ranknet")]
    | Annotated[LambdaRank, Tag("lambdarank")]
    | Annotated[NDCGLoss2pp, Tag("ndcg_loss2pp")]
    | Annotated[ListNet, Tag("listnet")]
    | Annotated[ListMLE, Tag("listmle")]
    | Annotated[Softmax, Tag("softmax")]
    | Annotated[ApproxNDCG, Tag("approx_ndcg")]
    | Annotated[NeuralNDCG, Tag("neural_ndcg")],
    _name_or("smooth_l1"),
]


class PairTraining(OptimizerConfig, TrainingSettings):
    """Training on label pairs."""

    pairs_per_clip: Count


class FinetuneTraining(PairTraining, RankerTraining):
    # Annotations in data.root whose graded clips are trained on beside the pairs; earlier versions lack these keys.
    graded: str | None = None
    graded_weight: NotNegative = 1.0


class RewardTraining(PairTraining):
    validation_pairs: Count


class Hinge(LossConfig):
    name: Literal["hinge"] = "hinge"
    margin: Positive


class Logistic(LossConfig):
    name: Literal["logistic"] = "logistic"


class DPO(LossConfig):
    name: Literal["dpo"] = "dpo"
    beta: Positive = 1.0


class IPO(LossConfig):
    name: Literal["ipo"] = "ipo"
    beta: Positive = 1.0


PreferenceLoss = Annotated[Annotated[Hinge, Tag("hinge")] | Annotated[Logistic, Tag("logistic")], _name_or("hinge")]
FinetuningLoss = Annotated[
    Annotated[Hinge, Tag("hinge")]
    | Annotated[Logistic, Tag("logistic")]
    | Annotated[DPO, Tag("dpo")]
    | Annotated[IPO, Tag("ipo")],
    _name_or("hinge"),
]


class DistillTraining(PairTraining, RankerTraining):
    visits_per_epoch: Count


class Distillation(Section):
    """The parameters of `distillation_loss`."""

    temperature: Positive
    scale: Positive


class PPOOptimizer(OptimizerConfig):
    """An optimizer whose schedule advances once per update; null spans the run's own updates."""

    schedule_updates: Count | None


class PPOTraining(RankerTraining):
    pairs_per_clip: Count
    visits_per_epoch: Count
    batches_per_rollout: Count
    passes: Count
    dropout: Annotated[Number, Field(ge=0.0, lt=1.0)]
    actor: PPOOptimizer
    # Only of the policy partial_order; null: as the actor's.
    critic: PPOOptimizer | None = None
    # Whether only the layers above the label encoder learn; earlier versions lack this key.
    frozen_trunk: bool = False


class PPOLoss(Section):
    """The parameters of `ppo_losses`, with the published values as defaults."""

    weighting: Literal["batch", "pair"] = "batch"
    margin: Positive = 0.01
    reverse_below: Number = -0.1
    kl_weight: NotNegative = 0.001
    entropy_weight: NotNegative = 0.001
    value_clip: Positive = 0.5


class PartialOrder(Section):
    """The published policy; its parameters are in `loss`, its critic's optimizer in `train.critic`."""

    name: Literal["partial_order"] = "partial_order"


class Exact(Section):
    """A policy over the two orders of a pair, whose expected advantage and gradient are computed exactly."""

    name: Literal["exact"]
    # Null: fitted to the validation clips before training.
    kl_weight: Positive | None = 0.1


class SampledLists(Section):
    """A Plackett-Luce policy over the orders of a list, which learns from sampled lists and their rewards."""

    labels_per_list: Annotated[WholeNumber, Field(ge=2)] = 10
    lists_per_clip: Count = 8
    temperature: Positive = 1.0
    kl_weight: NotNegative = 0.01
    # Of a list: the mean over its pairs or the NDCG that the reward model expects, or the NDCG by the clips' grades.
    reward: Literal["pairs", "ndcg", "grades"] = "pairs"


class PlackettLuce(SampledLists):
    name: Literal["plackett_luce"]
    lists_per_clip: Annotated[WholeNumber, Field(ge=2)] = 8
    ratio_clip: Positive = 0.2


class GRPO(SampledLists):
    name: Literal["grpo"]
    lists_per_clip: Annotated[WholeNumber, Field(ge=2)] = 8
    ratio_clip: Positive = 0.2


class Reinforce(SampledLists):
    name: Literal["reinforce"]


PolicyConfig = Annotated[
    Annotated[PartialOrder, Tag("partial_order")]
    | Annotated[Exact, Tag("exact")]
    | Annotated[PlackettLuce, Tag("plackett_luce")]
    | Annotated[GRPO, Tag("grpo")]
    | Annotated[Reinforce, Tag("reinforce")],
    _name_or("partial_order"),
]


Precision = Literal["auto", "fp32", "bf16"]


class ComputeConfig(Section):
    """How the computation runs: precision, memory and parallelism over processes."""

    precision: Precision
    accumulate: Count
    checkpoint_activations: bool
    compile: bool
    strategy: Literal["ddp", "fsdp"]
    compress_gradients: bool


class SafetyConfig(Section):
    """When checkpoints are written, how many are kept, and what to do if a loss or gradient is not finite."""

    checkpoint_steps: Count | None
    checkpoint_minutes: Positive | None
    keep: Count
    on_nonfinite: Literal["stop", "skip"]


class RunConfig(Section):
    """Settings that every training run has; `preset` defaults to the name of the YAML file's folder."""

    stage: str
    preset: str
    name: str | None = None
    seed: Seed
    logs: PathText
    device: str
    data: DataConfig
    train: TrainingSettings
    compute: ComputeConfig
    safety: SafetyConfig

    @property
    def annotations(self) -> dict[str, str]:
        """The annotation files in `data.root` that a run reads, by what they are for."""
        return {"train": self.data.train, "validation": self.data.validation}

    @property
    def reads_grades(self) -> bool:
        """Whether the training clips must be graded though their stage reads no grades."""
        return False


class PointwiseConfig(RunConfig):
    """Stage 1."""

    stage: Literal["pointwise"]
    model: ModelConfig
    train: PointwiseTraining
    loss: RankingLoss

    @model_validator(mode="after")
    def _check_residual(self) -> Self:
        if self.model.residual:
            raise ValueError("model.residual: found True, wanted False: only reward models add to a ranker's scores")
        return self


class FinetuneConfig(RunConfig):
    """Direct fine-tuning; the model has the shape of the stage 1 run it starts from."""

    stage: Literal["finetune"]
    ranker: str
    train: FinetuneTraining
    loss: FinetuningLoss

    @property
    def annotations(self) -> dict[str, str]:
        """The annotation files in `data.root` that a run reads, by what they are for."""
        graded = {} if self.train.graded is None else {"graded": self.train.graded}
        return super().annotations | graded


class RewardConfig(RunConfig):
    """Stage 2; `ranker` names the stage 1 run whose trunk it starts from: `newest`, `none`, a name or a path."""

    stage: Literal["reward"]
    ranker: str
    model: ModelConfig
    train: RewardTraining
    loss: PreferenceLoss

    @model_validator(mode="after")
    def _check_context(self) -> Self:
        if self.model.context != "none":
            raise ValueError(f"model.context: found {self.model.context}, wanted none: only rankers have a context")
        if self.model.residual and self.ranker == "none":
            raise ValueError("model.residual: found True with ranker none, wanted a ranker to add to")
        return self


class DistillConfig(RunConfig):
    """Distillation of the reward model; the ranker has the shape of the run it starts from."""

    stage: Literal["distill"]
    ranker: str
    reward: str
    train: DistillTraining
    loss: Distillation


class PPOConfig(RunConfig):
    """Stage 3; the models have the shapes of the runs it starts from."""

    # Sections that belong to the policy which a file names: they leave with it.
    of_policy: ClassVar = ("loss", "train.critic")

    stage: Literal["ppo"]
    ranker: str
    reward: str
    train: PPOTraining
    # Configs of earlier versions lack this section.
    policy: PolicyConfig = PartialOrder()
    # Only of the policy partial_order, which has the published values by default.
    loss: PPOLoss | None = None

    @property
    def reads_grades(self) -> bool:
        return isinstance(self.policy, SampledLists) and self.policy.reward == "grades"

    @model_validator(mode="before")
    @classmethod
    def _fill_loss(cls, tree: Any) -> Any:
        policy = tree.get("policy") if isinstance(tree, dict) else None
        usual = "partial_order"
        is_published = policy is None or (isinstance(policy, dict) and policy.get("name", usual) == usual)
        if isinstance(tree, dict) and is_published and tree.get("loss") is None:
            return tree | {"loss": {}}
        return tree

    @model_validator(mode="after")
    def _check_policy(self) -> Self:
        if not isinstance(self.policy, PartialOrder):
            for key, section in (("loss", self.loss), ("train.critic", self.train.critic)):
                if section is not None:
                    raise ValueError(f"{key}: is read only by policy.name=partial_order; remove it")
        return self


class EvaluateConfig(Section):
    """Which run is evaluated on which split; if `root` is null, on the data that the run was trained on."""

    stage: Literal["evaluate"]
    preset: str
    name: str | None = None
    split: Literal["val", "test"]
    root: PathText | None
    logs: PathText
    device: str
    precision: Precision
    clips_per_batch: Count
    workers: Annotated[WholeNumber, Field(ge=0)]
    bootstrap_samples: Count
    seed: Seed


StageName = Literal["pointwise", "finetune", "reward", "distill", "ppo"]
Setting = Annotated[str, Field(pattern="=")]
# Part of the names of files.
DataName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$")]
# Shown in tables, each in one line.
RowName = Annotated[str, BeforeValidator(_refuse_lines)]
Values = Annotated[list[str | int | float], Field(min_length=1)]


class RowConfig(Section):
    """A row of a comparison: it shows the runs of the last of its stages; each stage starts from the ones before it.

    A setting applies to every stage with its key, STAGE:key=value only to that stage. Of all combinations of the values
    in `tune`, the one is shown whose runs are best on the validation split. A row of `members` above 1 orders by the
    mean of the scores of as many runs with different seeds.
    """

    stages: Annotated[list[StageName], Field(min_length=1)]
    settings: list[Setting] = []
    tune: dict[str, Values] = {}
    members: Count = 1


class ZeroShotConfig(Section):
    """A row of a comparison that is not trained: a CLIP or SigLIP model of transformers in a folder.

    `prompt` is the text of a label, which takes the place of `{label}`; image paths are relative to `frames_root`, by
    default to `data.root`.
    """

    zero_shot: PathText
    prompt: Annotated[str, Field(pattern=r"\{label\}")] = "{label}"
    frames_root: PathText | None = None


def _row_kind(value: Any) -> str:
    is_zero_shot = isinstance(value, ZeroShotConfig) or (isinstance(value, dict) and "zero_shot" in value)
    return "zero_shot" if is_zero_shot else "trained"


AnyRow = Annotated[
    Annotated[RowConfig, Tag("trained")] | Annotated[ZeroShotConfig, Tag("zero_shot")], Discriminator(_row_kind)
]


class CompareConfig(Section):
    """A comparison: rows, each with a run per seed and data set; `against` is the row that the others are compared to.

    `preset` is the folder of the stages' files, `data` has the settings of each data set, `settings` are those of all
    runs, and `overrides` too, which win over those of data sets and rows; `{seed}` in one stands for the seed.
    `parallel` runs are made at a time. `axis` says what differs between data sets whose names are numbers.
    """

    stage: Literal["compare"]
    preset: PathText
    split: Literal["val", "test"]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    logs: PathText
    parallel: Count = 1
    against: str
    axis: str | None = None
    settings: list[Setting] = []
    overrides: list[Setting] = []
    data: Annotated[dict[DataName, list[Setting]], Field(min_length=1)]
    rows: Annotated[dict[RowName, AnyRow], Field(min_length=2)]

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if self.against not in self.rows:
            raise ValueError(f"against: found {show(self.against)}, wanted one of the rows: {', '.join(self.rows)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: found {self.seeds}, wanted different ones")
        if self.axis is not None:
            for name in self.data:
                if not DECIMAL.fullmatch(name):
                    raise ValueError(f"data: found {show(name)}, wanted a number, as there is an axis")
        return self

    @property
    def trained_rows(self) -> dict[str, RowConfig]:
        """The rows whose runs are trained."""
        return {name: row for name, row in self.rows.items() if isinstance(row, RowConfig)}

    @property
    def zero_shot_rows(self) -> dict[str, ZeroShotConfig]:
        """The rows that are not trained."""
        return {name: row for name, row in self.rows.items() if isinstance(row, ZeroShotConfig)}


TrainingConfig = PointwiseConfig | FinetuneConfig | RewardConfig | DistillConfig | PPOConfig
StageConfig = TrainingConfig | EvaluateConfig | CompareConfig
CONFIGS: dict[str, type[StageConfig]] = {
    "pointwise": PointwiseConfig,
    "finetune": FinetuneConfig,
    "reward": RewardConfig,
    "distill": DistillConfig,
    "ppo": PPOConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
}
