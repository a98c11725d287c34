"""Run the encoders over a folder in LRMovieNet's layout into a feature store; an interrupted run is continued."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from lr2ppo.data import annotations
from lr2ppo.data.annotations import Clip, read_clips
from lr2ppo.data.features import FeatureWriter
from lr2ppo.encoders.image import ImageEncoder
from lr2ppo.encoders.text import TextEncoder, fingerprint
from lr2ppo.engine.processes import choose_device
from lr2ppo.errors import UserError, raise_faults, reports_user_errors

ANNOTATION_FILES = (
    annotations.SOURCE_TRAIN,
    annotations.TARGET_PAIRS,
    annotations.TARGET_TRAIN,
    annotations.VALIDATION,
    annotations.TEST,
)


def find_clips(data: Path) -> list[Clip]:
    """All clips of the folder's annotation files, each id once; raises `UserError` where two files disagree."""
    found = [name for name in ANNOTATION_FILES if (data / name).is_file()]
    if not found:
        raise UserError(f"{data}: found none of the annotation files {', '.join(ANNOTATION_FILES)}")
    clips: dict[str, Clip] = {}
    faults = []
    for name in found:
        for clip in read_clips(data / name, need="labels"):
            known = clips.setdefault(clip.id, clip)
            if (known.labels, known.description, known.images) != (clip.labels, clip.description, clip.images):
                faults.append(f"clip {clip.id} of {name}: another file has it with other labels, text or frames")
    raise_faults(data, faults, "give different clips different ids")
    return list(clips.values())


def check_frames(clips: Sequence[Clip], frames_root: Path) -> None:
    """Raises `UserError` naming the clips whose frames are not there."""
    faults = []
    for clip in clips:
        missing = [image for image in clip.images if not (frames_root / image).is_file()]
        if not clip.images or missing:
            faults.append(f"clip {clip.id}: {f'no file {missing[0]}' if missing else 'names no frames'}")
    raise_faults(frames_root, faults, "check --frames-root")


def extract(
    clips: Sequence[Clip], frames_root: Path, text: TextEncoder, image: ImageEncoder, out: FeatureWriter
) -> int:
    """Write the features of every clip that `out` does not hold yet; returns how many were written."""
    missing = [clip for clip in clips if clip.id not in out]
    for clip in tqdm(missing, desc="extracting features", unit="clip", disable=None):
        tokens = text([(label, clip.description) for label in clip.labels])
        frames = image([_read_image(frames_root / name) for name in clip.images])
        out.write(clip.id, [row.float().cpu().numpy() for row in tokens], frames.float().flatten(0, 1).cpu().numpy())
    return len(missing)


def _read_image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path}: is not a readable image: {error}; replace it and run again") from None


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m lr2ppo.encoders.extract --data data/mini "
        "--text pretrained_models/mini/roberta --image pretrained_models/mini/vit --frame-tokens patches. "
        "Which layout encoder weights have is told by their content: pretrained_models/README.md.",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the annotation files")
    parser.add_argument("--text", type=Path, required=True, help="RoBERTa: Hugging Face folder or TencentPretrain file")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="RoBERTa's tokenizer files (default beside it)"
    )
    parser.add_argument(
        "--image", type=Path, required=True, help="ViT: folder or file of timm, Hugging Face or TencentPretrain"
    )
    parser.add_argument("--out", type=Path, help="feature file to write or continue (default DATA/clean_feat.h5)")
    parser.add_argument("--frames-root", type=Path, help="folder that image paths are relative to (default DATA)")
    parser.add_argument("--frame-tokens", choices=("class", "patches"), default="class", help="what a frame becomes")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    out = arguments.out or arguments.data / "clean_feat.h5"
    frames_root = arguments.frames_root or arguments.data
    text = TextEncoder.load(arguments.text, arguments.tokenizer)
    text.require_tokenizer()
    clips = find_clips(arguments.data)
    check_frames(clips, frames_root)
    device = choose_device(arguments.device)
    text = text.to(device)
    image = ImageEncoder.load(arguments.image, arguments.frame_tokens).to(device)
    torch.backends.cuda.matmul.allow_tf32 = True
    facts: dict[str, str | int] = {
        "text_encoder": f"{arguments.text.name}@{fingerprint(text)}",
        "image_encoder": f"{arguments.image.name}@{fingerprint(image)}",
        "frame_tokens": arguments.frame_tokens,
        "tokens_per_frame": image.tokens_per_frame,
    }
    with FeatureWriter(out, facts) as writer:
        written = extract(clips, frames_root, text, image, writer)
    print(f"{out}: wrote {written} clips, {len(clips) - written} were there already")


if __name__ == "__main__":
    main()
