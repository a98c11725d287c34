"""What the files of a run must hold, so that a damaged or hostile one is refused where it is read."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lr2ppo.errors import FAULTS_SHOWN, shorten_middle, show

# Far more than any run makes, and exact as a float.
Whole = Annotated[int, Field(ge=0, le=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
# Negative where the clock was set back.
Seconds = Annotated[Finite, Field(ge=-1e12, le=1e12)]
# A loss may be infinite; a finite one is a 32-bit number.
Logged = Annotated[float, Field(ge=-4e38, le=4e38)] | Annotated[float, Field(allow_inf_nan=True)]

Share = Annotated[float, Field(ge=0, le=1)]
# Within these bounds the log-odds of every 32-bit score are finite.
STEEPEST = 1e6
Slope = Annotated[float, Field(ge=0, le=STEEPEST)]


class Record(BaseModel):
    """A part of a file: values have their types exactly, and further keys are kept."""

    model_config = ConfigDict(strict=True, extra="allow")


class Machine(Record):
    """The machine that a run was trained on."""

    device: str
    processor: str
    cores: Whole
    memory_gib: Finite
    processes: Whole


class Calibration(Record):
    """How a ranker's scores become probabilities of relevance, fitted on the validation clips.

    With `z = (score - mean) / deviation`, the log-odds are `intercept + slope_below * log(sigmoid(z)) - slope_above *
    log(sigmoid(-z))`.
    """

    mean: Annotated[float, Field(ge=-4e38, le=4e38)]
    deviation: Annotated[float, Field(ge=1e-60, le=4e38)]
    slope_below: Slope
    slope_above: Slope
    intercept: Finite
    clips: Whole
    labels: Whole


class Finished(Record):
    """`finished.json`; runs that were not trained here lack most of it."""

    steps: Whole
    best_step: Whole
    best_metric: Finite | None = None
    seconds: Seconds = 0.0
    finished: Finite = 0.0
    # The median of this process's steps, without evaluations and files; its seconds by activity.
    seconds_per_step: Finite | None = None
    spent: dict[str, Finite] = {}
    peak_memory_gib: Finite = 0.0
    warnings: list[str] = []
    commit: str | None = None
    machine: Machine | None = None
    calibration: Calibration | None = None


class Progress(Record):
    """`progress.json`."""

    step: Whole = 0
    steps: Whole | None = None
    seconds_left: Seconds | None = None


class Interval(Record):
    """A mean with its interval."""

    mean: float
    low: float
    high: float


class Gap(Interval):
    """Accuracy on the pairs of one grade gap."""

    gap: Whole
    pairs: Whole


class Bin(Record):
    """Accuracy on the pairs of one confidence."""

    predicted: Finite
    observed: Finite
    pairs: Annotated[Whole, Field(ge=1)]


class Judgement(Record):
    """How reliable a reward model is."""

    temperature: Annotated[Finite, Field(gt=0)]
    by_gap: Annotated[list[Gap], Field(min_length=1)]
    calibration: Annotated[list[Bin], Field(min_length=1)]


class ReliabilityBin(Record):
    """Labels of about one probability, and the share of them that is relevant."""

    predicted: Share
    observed: Share
    labels: Annotated[Whole, Field(ge=1)]


class Reliability(Record):
    """How reliable a ranker's probabilities of relevance are."""

    calibration_error: Share
    brier: Share
    relevant: Share
    bins: Annotated[list[ReliabilityBin], Field(min_length=1)]


class TrainedOn(Record):
    """`trained_on.json`: ids of clips that a run and its sources were trained on, and those runs whose are unknown.

    `selected_on` are the clips that selected the best weights of these runs.
    """

    clips: list[str]
    unknown: list[str]
    selected_on: list[str] = []


class Evaluated(Record):
    """What a split's part of `results.json` is about: fingerprints of the weights and of the split's files."""

    fingerprints: dict[str, str] = {}


class SplitResult(Evaluated):
    """A split's part of `results.json`, beside an interval for each metric."""

    clips: Whole
    annotations: str
    settings: dict[str, str | int] = {}
    chance: dict[str, float]
    left_out: list[str] = []
    last: dict[str, Finite] = {}
    trained_on: list[str] = []
    trained_on_unknown: list[str] = []
    selected_on: list[str] = []
    judgement: Judgement | None = None
    reliability: Reliability | None = None


class Case(Record):
    """A clip in `cases.json`."""

    id: str
    labels: Annotated[list[str], Field(min_length=1)]
    grades: list[Annotated[int, Field(ge=0, le=10)]]
    scores: list[Finite]
    order: list[Whole]
    description: str = ""
    images: list[str] = []


def check_record(kind: Any, found: Any, file: str = "it") -> None:
    """Raise ValueError naming each value of a file that is missing or not as the type `kind` wants."""
    try:
        TypeAdapter(kind).validate_python(found)
    except ValidationError as error:
        raise ValueError(f"{file} is damaged ({explain_faults(error)})") from None


def explain_faults(error: ValidationError) -> str:
    """Name the values that are missing or not as wanted, in one line."""
    return shorten_middle("; ".join(map(_explain, error.errors()[:FAULTS_SHOWN])), 500)


def _explain(fault: Mapping[str, Any]) -> str:
    place = ".".join(map(str, fault["loc"]))
    return f"{place} is missing" if fault["type"] == "missing" else f"{place}: found {show(fault['input'])}"


def check_row(row: Any, place: str) -> None:
    """Raise ValueError unless a row of `metrics.jsonl` has a step, and numbers for all metrics."""
    if not isinstance(row, Mapping) or "step" not in row:
        raise ValueError(f"{place}, has no step")
    metrics = {name: value for name, value in row.items() if "/" in name}
    check_record(dict[str, Logged], metrics, place)
    check_record(Whole, row["step"], place)
