"""Encoders, and finished and evaluated runs of all stages, made in a second: their weights are random."""

import json
from pathlib import Path

import numpy as np
import torch

from lr2ppo.config.load import dump_config, load_config
from lr2ppo.config.schema import ModelConfig
from lr2ppo.data.annotations import read_clips
from lr2ppo.data.features.encoders import write_features_file
from lr2ppo.encoders import ImageEncoder, TextEncoder, pretrain
from lr2ppo.encoders.extractor import describe_encoding
from lr2ppo.evaluation.comparison import METRIC_NAMES
from lr2ppo.evaluation.results import describe_cases, write_evaluation
from lr2ppo.files import write_json
from lr2ppo.models.weights import KINDS, save_model
from lr2ppo.runs.lookup import TRAINED_ON
from lr2ppo.runs.stages import STAGES
from lr2ppo.training.trained_on import join_trained_on
from tests.conftest import FRAMES, REPOSITORY, WIDTH

CALIBRATION = {
    "mean": 0.5,
    "deviation": 0.4,
    "slope_below": 1.0,
    "slope_above": 3.0,
    "intercept": -1.5,
    "clips": 4,
    "labels": 24,
}
SHAPE = ModelConfig(
    head="pooled",
    attention="scaled",
    width=WIDTH,
    heads=2,
    dropout=0.0,
    text_width=WIDTH,
    image_width=WIDTH,
    frames=FRAMES,
)


def make_untrained_world(root: Path, data: Path) -> None:
    """Write `encoders/` (roberta and vit) and `logs/STAGE/one` into a folder; the runs name `data`, a tiny world."""
    torch.manual_seed(0)
    tokenizer = pretrain.build_tokenizer(["a boat", "label 1", "the sky above a car"], 300)
    text = pretrain.build_text_model(len(tokenizer), width=WIDTH, layers=1, heads=2, max_tokens=40)
    vit, shape = pretrain.build_image_model(width=WIDTH, layers=1, heads=2, size=16, patch=8)
    encoders = root / "encoders"
    pretrain.save(encoders, text, tokenizer, vit, shape)
    for stage in STAGES:
        make_run(root / "logs", stage, data, encoders)


def make_run(logs: Path, stage: str, data: Path, encoders: Path) -> None:
    """Write one run as training and evaluation leave it."""
    folder = logs / stage / "one"
    save_model(folder / "best", KINDS[STAGES[stage].model](SHAPE))
    sources = [f"{key}={logs / usual / 'one'}" for key, (usual, *_) in STAGES[stage].sources.items()]
    sources += [f"data.root={data}", f"logs={logs}", "name=one", f"data.frames={FRAMES}", "device=cpu"]
    config = load_config(REPOSITORY / "configs" / "mini" / f"{stage}.yaml", stage, sources)
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    finished = {
        "steps": 2,
        "best_step": 2,
        "best_metric": 0.7,
        "peak_memory_gib": 0.1,
        "seconds": 1.0,
        "finished": 1.7e9,
        "commit": "none",
        "calibration": None if stage == "reward" else CALIBRATION,
    }
    (folder / "finished.json").write_text(json.dumps(finished), encoding="utf-8")
    (folder / "progress.json").write_text(json.dumps({"step": 2, "steps": 2, "seconds_left": 0.0}), encoding="utf-8")
    validation = {"validation/ndcg": 0.7, "validation/pair_accuracy": 0.6, "validation/temperature": 1.5}
    rows = [{"step": step, "seconds": 0.5, "train/loss": 0.1 * step, **validation} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    clips, dice = read_clips(data / config.data.test, "grades")[:4], np.random.default_rng(0)
    cases = describe_cases(clips, [dice.normal(size=len(clip.labels)) for clip in clips])
    interval = {"mean": 0.7, "low": 0.6, "high": 0.8}
    results = {
        **dict.fromkeys(METRIC_NAMES, interval),
        "chance": dict.fromkeys(METRIC_NAMES, 0.5),
        "annotations": str(data / config.data.test),
        "clips": len(clips),
        "fingerprints": {"test": "0" * 64},
    }
    if stage == "reward":
        gap, bins = {"gap": 1, "pairs": 9, **interval}, {"predicted": 0.8, "observed": 0.7, "pairs": 9}
        results["judgement"] = {"temperature": 1.5, "by_gap": [gap], "calibration": [bins]}
    else:
        bins = {"predicted": 0.8, "observed": 0.7, "labels": 9}
        results["reliability"] = {"calibration_error": 0.1, "brier": 0.2, "relevant": 0.3, "bins": [bins]}
    write_evaluation(folder, "test", results, cases)
    text = TextEncoder.load(encoders / "roberta", None)
    image = ImageEncoder.load(encoders / "vit")
    sources_of = [logs / usual / "one" for usual, *_ in STAGES[stage].sources.values()]
    trained, selecting = (read_clips(data / name) for name in (config.data.train, config.data.validation))
    trained_on = join_trained_on(trained, selecting, sources_of, data)
    write_json(folder / TRAINED_ON, trained_on.model_dump())
    write_features_file(folder, describe_encoding(text, encoders / "roberta", image, encoders / "vit", "float32"), [])
