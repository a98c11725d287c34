"""Measure feature bytes read per pair in stages 2 and 3, on a store of many shards with a cold page cache.

Three ways: every pair reads its whole clip; every pair is a separate item and reads its two labels; pairs of a clip
share its labels and frames, as in the presets. Prints a table, for a float32 and a float16 store.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from lr2ppo.data import Clip, ClipDataset, FeatureStore, FeatureWriter
from lr2ppo.data.dataset import ClipRequest, collate
from lr2ppo.data.features.store import MAX_OPEN_FILES
from lr2ppo.data.features.writer import StoredType
from lr2ppo.data.samplers import Draw, EpochSampler, annotated_pairs, random_pairs
from lr2ppo.errors import reports_user_errors

WIDTH, FRAMES = 768, 16
ANNOTATED, DRAWN = 20, 80  # pairs per clip and epoch in stages 2 and 3, as published
CLIPS_PER_BATCH = 4


def random_clips(count: int, labels: int) -> list[Clip]:
    """Clips with random annotated pairs."""
    rng = np.random.default_rng(0)
    first = rng.integers(labels, size=(count, ANNOTATED))
    second = (first + rng.integers(1, labels, size=first.shape)) % labels
    names = tuple(f"label {label}" for label in range(labels))
    return [
        Clip(f"clip-{i:05}", names, pairs=np.stack(pairs, 1)) for i, pairs in enumerate(zip(first, second, strict=True))
    ]


def write_store(folder: Path, clips: list[Clip], tokens: int, shards: int, dtype: StoredType) -> list[Path]:
    """Write random features of the clips to shards; return the shards' paths."""
    rng = np.random.default_rng(0)
    text = [rng.standard_normal((tokens, WIDTH), dtype=np.float32) for _ in clips[0].labels]
    frames = rng.standard_normal((FRAMES, WIDTH), dtype=np.float32)
    paths = [folder / f"{dtype}-{shard:03}-of-{shards:03}.h5" for shard in range(shards)]
    for path, share in zip(paths, (clips[shard::shards] for shard in range(shards)), strict=True):
        with FeatureWriter(path, {}, dtype) as writer:
            for clip in share:
                writer.write(clip.id, text, frames)
    return paths


def drop_page_cache(paths: list[Path]) -> None:
    """Drop the files from the system's page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_bytes() -> int:
    """Bytes that this process has read from disk."""
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["read_bytes"])


def whole_clip(draw: Draw, clips: list[Clip]) -> Draw:
    """Return the same requests, each reading all labels of its clip."""

    def drawn(rng: np.random.Generator) -> list[ClipRequest]:
        return [
            ClipRequest(request.clip, np.arange(len(clips[request.clip].labels)), pairs=request.pairs)
            for request in draw(rng)
        ]

    return drawn


def measure(paths: list[Path], clips: list[Clip], draw: Draw, pairs_per_item: int, max_pairs: int) -> str:
    """Return one row's figures, over the first `max_pairs` pairs of an epoch."""
    drop_page_cache(paths)
    store = FeatureStore(paths)
    dataset = ClipDataset(clips, store, frames=FRAMES)
    sampler = EpochSampler(draw, batch_size=max(1, CLIPS_PER_BATCH * ANNOTATED // pairs_per_item), seed=7)
    batches: Iterator[list[ClipRequest]] = islice(sampler, max_pairs // (sampler.batch_size * pairs_per_item))
    # List every file's clips now, so that it does not count as reading features.
    all(clip.id in store for clip in clips)
    on_disk, started, pairs = disk_bytes(), time.perf_counter(), 0
    for requests in batches:
        pairs += int(collate([dataset[request] for request in requests]).pair_mask.sum())
    seconds = time.perf_counter() - started
    kib = store.bytes_read / pairs / 1024, (disk_bytes() - on_disk) / pairs / 1024
    return f"{kib[0]:>12.1f}{kib[1]:>14.1f}{1000 * seconds / pairs:>14.2f}"


def ways(clips: list[Clip]) -> Iterator[tuple[str, Draw, int]]:
    """Yield the name, requests and pairs per item of each way."""
    makers: dict[int, Callable[[int], Draw]] = {
        2: lambda pairs: annotated_pairs(clips, pairs),
        3: lambda pairs: random_pairs(clips, pairs, DRAWN // pairs),
    }
    for stage, shared in ((2, (4, 20)), (3, (8, 80))):
        single = makers[stage](1)
        yield f"stage {stage}, whole clip per pair", whole_clip(single, clips), 1
        yield f"stage {stage}, each pair's labels", single, 1
        for pairs in shared:
            yield f"stage {stage}, {pairs} pairs share a clip", makers[stage](pairs), pairs


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: .venv/bin/python scripts/reading.py")
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--labels", type=int, default=20, help="labels per clip (default 20)")
    parser.add_argument("--tokens", type=int, default=60, help="text tokens per label (default 60)")
    parser.add_argument("--shards", type=int, default=100, help=f"files (default 100; {MAX_OPEN_FILES} stay open)")
    parser.add_argument("--pairs", type=int, default=4000, help="pairs read per way (default 4000)")
    parser.add_argument("--folder", type=Path, help="folder for the temporary stores (default: the system's)")
    arguments = parser.parse_args()
    clips = random_clips(arguments.clips, arguments.labels)
    types: tuple[StoredType, ...] = ("float32", "float16")
    for dtype in types:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            paths = write_store(Path(folder), clips, arguments.tokens, arguments.shards, dtype)
            size = sum(path.stat().st_size for path in paths) / 2**30
            print(f"{dtype} store of {len(clips)} clips in {len(paths)} files, {size:.2f} GiB")
            print(f"{'':40}{'KiB/pair':>12}{'from disk':>14}{'ms/pair':>14}")
            for name, draw, pairs_per_item in ways(clips):
                print(f"{name:40}" + measure(paths, clips, draw, pairs_per_item, arguments.pairs), flush=True)


if __name__ == "__main__":
    main()
