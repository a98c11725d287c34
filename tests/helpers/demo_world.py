"""A folder for the demo: untrained tiny runs of all stages, their encoders, and one test clip with two frames."""

from pathlib import Path

import torch
from PIL import Image

from lr2ppo.config.load import dump_config, load_config
from lr2ppo.config.schema import ModelConfig
from lr2ppo.data import Clip, annotations, write_clips
from lr2ppo.data.features.encoders import write_features_file
from lr2ppo.encoders import ImageEncoder, TextEncoder, pretrain
from lr2ppo.encoders.extractor import describe_encoding
from lr2ppo.models.weights import KINDS, save_model
from lr2ppo.runs.stages import STAGES

REPOSITORY = Path(__file__).resolve().parents[2]


def write_demo_world(root: Path) -> None:
    """Write the folder; the runs are called tiny."""
    frames = ["frames/0.png", "frames/1.png"]
    (root / "data" / "frames").mkdir(parents=True)
    for frame, colour in zip(frames, ("red", "blue"), strict=True):
        Image.new("RGB", (48, 32), colour).save(root / "data" / frame)
    write_clips(
        root / "data" / annotations.TEST, [Clip("one", ("sun", "sea, sand"), images=tuple(frames), description="a day")]
    )
    torch.manual_seed(0)
    tokenizer = pretrain.build_tokenizer(["boat car sun sea sand a day out"] * 4, 300)
    model = pretrain.build_text_model(len(tokenizer), width=32, layers=1, heads=2, max_tokens=40)
    pretrain.save(root, model, tokenizer, *pretrain.build_image_model(width=32, layers=1, heads=2, size=64, patch=8))
    text, image = TextEncoder.load(root / "roberta", None), ImageEncoder.load(root / "vit")
    encoding = describe_encoding(text, root / "roberta", image, root / "vit", "float32")
    shape = ModelConfig(
        head="pooled", attention="scaled", width=16, heads=2, dropout=0.0, frames=2, text_width=32, image_width=32
    )
    for stage in STAGES:
        run = root / "logs" / stage / "tiny"
        save_model(run / "best", KINDS[STAGES[stage].model](shape))
        sources = [f"{key}=logs/{usual}/tiny" for key, (usual, *_) in STAGES[stage].sources.items()]
        config = load_config(REPOSITORY / "configs" / "mini" / f"{stage}.yaml", stage, ["data.root=data", *sources])
        (run / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        write_features_file(run, encoding, [])
