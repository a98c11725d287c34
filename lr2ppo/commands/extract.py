"""Extract the features of a folder in LRMovieNet's layout into a feature store, with one process per GPU or NPROC.

Several processes write a file each: clean_feat-00-of-04.h5 and so on, in place of clean_feat.h5. A stopped extraction
resumes when started again, with any number of processes. The layout of encoder weights is detected from their content:
pretrained_models/README.md.
"""

import argparse
from pathlib import Path

from lr2ppo.distributed.signals import ended_by_interrupt

EXAMPLE = """lr2ppo extract --data data/mini --text pretrained_models/mini/roberta \\
    --image pretrained_models/mini/vit --frame-tokens patches"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--frame-tokens", choices=("class", "patches"), default="class", help="a frame's features")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="stored number format; 16 bits halve the file",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")


def run(arguments: argparse.Namespace) -> None:
    with ended_by_interrupt():
        from lr2ppo.distributed.launch import run_in_processes
    run_in_processes(lambda: extract(arguments), arguments.command)


def extract(arguments: argparse.Namespace) -> None:
    """Extract in this process, one of those that share the work."""
    with ended_by_interrupt():
        from lr2ppo.encoders.extract import extract_folder

    extract_folder(
        arguments.data,
        arguments.frames_root or arguments.data,
        arguments.out,
        text=arguments.text,
        tokenizer=arguments.tokenizer,
        image=arguments.image,
        frame_tokens=arguments.frame_tokens,
        dtype=arguments.dtype,
        device=arguments.device,
    )
