"""The folder of every world: reproducible, in LRMovieNet's layout, and unchanged for the uniform world."""

import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from lr2ppo.cli import main
from lr2ppo.data import annotations
from lr2ppo.data.annotations import Need, graded, read_clips
from lr2ppo.data.mini import WORLDS, write_mini, write_table
from lr2ppo.data.mini.folder import OTHER_SHARES

SIZES = {"source": 4, "target": 4, "validation": 2, "test": 3, "pretraining": 5}
FILES: dict[str, tuple[str, Need, int]] = {
    "source": (annotations.SOURCE_TRAIN, "grades", 4),
    "target": (annotations.TARGET_TRAIN, "labels", 4),
    "pairs": (annotations.TARGET_PAIRS, "pairs", 4),
    "validation": (annotations.VALIDATION, "grades", 2),
    "test": (annotations.TEST, "grades", 3),
    "pretraining": (annotations.CAPTIONS, "images", 5),
}
# Of the annotation files of seed 7 as they were before there was another world.
UNIFORM_FINGERPRINT = "71553e3ee1586c3e7e087d15e2392b443b830c574e82b7ec48c23ce073c79213"
REGIMES_FINGERPRINT = "5eee675d8b6b5f6f42c2826f3e6fa05739681c990f844f59f7e16dfcb014e522"


@pytest.fixture(scope="module", params=WORLDS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def world(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mini") / "seed 7"
    write_mini(root, 7, SIZES, name)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def fingerprint(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


def test_the_same_seed_writes_the_same_bytes(name: str, world: Path, tmp_path: Path) -> None:
    write_mini(tmp_path, 7, SIZES, name)
    assert contents(tmp_path) == contents(world)


def test_another_seed_writes_other_clips_and_pictures(name: str, world: Path, tmp_path: Path) -> None:
    write_mini(tmp_path, 8, SIZES, name)
    mine, other = contents(world), contents(tmp_path)
    # A clip of the varied world may have more frames than with another seed.
    assert all(mine[file] != other[file] for file in mine.keys() & other.keys())
    assert {file for file in mine if file.endswith(".json")} == {file for file in other if file.endswith(".json")}


def test_a_larger_split_starts_with_the_clips_of_a_smaller_one_and_changes_no_other(
    name: str, world: Path, tmp_path: Path
) -> None:
    write_mini(tmp_path, 7, SIZES | {"source": 6}, name)
    mine, larger = contents(world), contents(tmp_path)
    assert {file for file in mine if larger[file] != mine[file]} == {annotations.SOURCE_TRAIN}
    before = read_clips(world / annotations.SOURCE_TRAIN)
    after = read_clips(tmp_path / annotations.SOURCE_TRAIN)
    assert [(clip.labels, list(graded(clip))) for clip in after[:4]] == [
        (clip.labels, list(graded(clip))) for clip in before
    ]


@pytest.mark.parametrize("split", FILES)
def test_each_file_reads_with_what_its_stage_needs(world: Path, split: str) -> None:
    file, need, count = FILES[split]
    clips = read_clips(world / file, need)
    assert len(clips) == count
    for clip in clips:
        assert clip.description
        assert all((world / image).is_file() for image in clip.images)


def test_frames_are_jpeg_pictures_of_one_size_each_named_by_one_clip(world: Path) -> None:
    named: list[str] = []
    for split in ("source", "target", "validation", "test", "pretraining"):
        for clip in read_clips(world / FILES[split][0], "images"):
            assert clip.images
            named += clip.images
    assert len(set(named)) == len(named)
    assert set(named) == {str(path.relative_to(world)) for path in world.rglob("*.jpg")}
    for image in named:
        with Image.open(world / image) as picture:
            assert (picture.format, picture.size, picture.mode) == ("JPEG", (64, 64), "RGB")


def test_splits_share_no_clip_and_the_pair_file_repeats_the_target_clips(world: Path) -> None:
    clips = {split: read_clips(world / file, need) for split, (file, need, _) in FILES.items()}
    pairs, target = clips.pop("pairs"), clips["target"]
    ids = [clip.id for split in clips.values() for clip in split]
    assert len(set(ids)) == len(ids)
    known = {clip.id: clip for clip in target}
    for clip in pairs:
        same = known[clip.id]
        assert (clip.labels, clip.description, clip.images) == (same.labels, same.description, same.images)


def test_a_smaller_share_of_annotated_pairs_is_part_of_a_larger_one(world: Path) -> None:
    shares = {
        share: {
            clip.id: set(map(tuple, clip.pairs.tolist()))
            for clip in read_clips(world / annotations.PAIRS_OF_SHARE.format(share=share), "pairs")
        }
        for share in OTHER_SHARES
    }
    for (less, smaller), (more, larger) in itertools.pairwise(shares.items()):
        assert less < more
        assert smaller.keys() <= larger.keys()
        assert all(pairs <= larger[clip] for clip, pairs in smaller.items())


def test_the_uniform_world_is_what_it_was(tmp_path: Path) -> None:
    write_mini(tmp_path, seed=7, sizes=SIZES)
    regimes = set(tmp_path.rglob("first_second_data_pair_*x*.json"))
    assert len(regimes) == 4
    assert fingerprint(set(tmp_path.rglob("*.json")) - regimes) == UNIFORM_FINGERPRINT
    assert fingerprint(regimes) == REGIMES_FINGERPRINT


def test_a_table_has_a_row_for_each_label(name: str, tmp_path: Path) -> None:
    write_table(tmp_path, seed=3, clips=3, world=name)
    header, *rows = (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()
    assert header == "clip,frames,description,label,grade"
    assert {row.split(",")[0] for row in rows} == {"clip-000", "clip-001", "clip-002"}


def test_the_command_writes_the_world_it_names(name: str, world: Path, tmp_path: Path) -> None:
    sizes = [f"--{split}={size}" for split, size in SIZES.items()]
    main(["mini", str(tmp_path / "made"), "--seed=7", f"--world={name}", *sizes])
    assert contents(tmp_path / "made") == contents(world)
