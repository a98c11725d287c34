"""Features kept in memory while a run lasts: one table of all text tokens and one of all frame tokens."""

import os
import secrets
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lr2ppo.data.features.store import FeatureStore
from lr2ppo.distributed.processes import Processes, local_rank
from lr2ppo.errors import UserError

Keep = Literal["auto", "gpu", "memory", "disk"]
Rows = NDArray[np.int64]
# What a run may take of the memory that is free when it starts.
SHARE_OF_MEMORY = 0.5
MEMORY_INFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class KeptClip:
    """Where a clip is in the tables: the first row [labels] and length [labels] of each label, rows of its frames.

    spans [labels, 2], start and stop of each label's words among its tokens; frames [frames, tokens per frame].
    """

    first: Rows
    lengths: Rows
    spans: Rows
    frames: Rows


class KeptFeatures:
    """The features of a run's clips, in the memory of its device or of the machine; row 0 of each table is padding."""

    def __init__(self, text: Tensor, frames: Tensor, clips: dict[str, KeptClip]) -> None:
        self.text, self.frames, self.clips = text, frames, clips
        # The most tokens of a label.
        self.longest = max(int(clip.lengths.max(initial=0)) for clip in clips.values())

    @property
    def on_gpu(self) -> bool:
        return self.text.device.type == "cuda"

    @property
    def gib(self) -> float:
        return (self.text.nbytes + self.frames.nbytes) / 2**30

    def take(self, text: Tensor, frames: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Look up rows of both tables, of any shape, `[...] -> [..., width]`, for a device; nothing waits for a GPU."""
        return _look_up(self.text, text, device), _look_up(self.frames, frames, device)


def _look_up(table: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    flat = rows.flatten()
    if table.device != device:
        pinned = torch.empty(len(flat), table.shape[1], dtype=table.dtype, pin_memory=True)
        found = torch.index_select(table, 0, flat, out=pinned).to(device, non_blocking=True)
    else:
        found = table.index_select(0, flat)
    return found.view(*rows.shape, table.shape[1])


def keep_features(
    keep: Keep, store: FeatureStore, clips: Sequence[str], dtype: torch.dtype, processes: Processes, reserved: int
) -> KeptFeatures | None:
    """Read the features of clips into memory, in the precision `dtype`; None if they stay on disk.

    `auto` takes the GPU if they fit there beside `reserved` bytes; else the machine's memory if they fit in half of
    what is free; its processes share it. Every process must call it. Raises `UserError` if they do not fit where the
    user wants them.
    """
    if keep == "disk":
        return None
    if keep == "gpu" and processes.device.type != "cuda":
        raise UserError(
            f"data.keep: found gpu, but the run computes on the {processes.device.type}; use data.keep=auto, or a GPU"
        )
    shapes = _count_rows(store, clips)
    size = sum(rows * width for rows, width in shapes) * dtype.itemsize
    room = {"gpu": free_gpu_memory(processes.device) - reserved, "memory": int(SHARE_OF_MEMORY * free_memory())}
    wanted = [keep] if keep in room else list(room)
    # All processes must choose the same place.
    fitting = [place for place in wanted if all(processes.gather(size <= room[place]))]
    if fitting:
        return _read(store, clips, shapes, dtype, processes, on_gpu=fitting[0] == "gpu")
    if keep == "auto":
        return None
    raise UserError(
        f"data.keep: found {keep}, where the features' {size / 2**30:.2f} GiB do not fit: there is room for "
        f"{max(0, room[keep]) / 2**30:.2f} GiB beside the models; use data.keep=auto"
    )


def free_gpu_memory(device: torch.device) -> int:
    """The free bytes of a GPU's memory; 0 on a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def free_memory() -> int:
    """The bytes of the machine's memory that programs can still take; 0 if the system does not tell."""
    if not MEMORY_INFO.exists():
        return 0
    lines = dict(line.split(":", 1) for line in MEMORY_INFO.read_text(encoding="utf-8").splitlines() if ":" in line)
    return 1024 * int(lines.get("MemAvailable", "0 kB").split()[0])


def _count_rows(store: FeatureStore, clips: Iterable[str]) -> list[tuple[int, int]]:
    """The shapes of both tables: a row of zeros, then at most so many tokens."""
    shapes = [store.shape(clip) for clip in clips]
    text = sum(shape.labels * shape.tokens for shape in shapes)
    frames = sum(shape.frames * store.tokens_per_frame for shape in shapes)
    return [(1 + text, store.text_width), (1 + frames, store.image_width)]


def _read(
    store: FeatureStore,
    clips: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    processes: Processes,
    on_gpu: bool,
) -> KeptFeatures:
    shared = not on_gpu and processes.world_size > 1
    # On each machine, one process reads for all.
    reads = not shared or local_rank() == 0
    tables = [
        _share(shape, dtype, processes)
        if shared
        else torch.zeros(shape, dtype=dtype, device=processes.device if on_gpu else "cpu")
        for shape in shapes
    ]
    text_table, frame_table = tables
    found: dict[str, KeptClip] = {}
    next_token = next_frame = 1
    progress = tqdm(
        clips, desc="reading the features", unit="clip", leave=False, disable=None if processes.is_main else True
    )
    for clip in progress:
        shape, per_frame = store.shape(clip), store.tokens_per_frame
        labels = list(range(shape.labels))
        lengths = store.lengths(clip, labels)
        tokens, rows = int(lengths.sum()), shape.frames * per_frame
        if reads:
            text = torch.from_numpy(store.text(clip, labels)[0])
            is_token = torch.arange(text.shape[1]) < torch.from_numpy(lengths).unsqueeze(1)
            text_table[next_token : next_token + tokens].copy_(text[is_token])
            frames = torch.from_numpy(store.frames(clip))
            frame_table[next_frame : next_frame + rows].copy_(frames.flatten(0, 1))
        first = next_token + np.cumsum(lengths) - lengths
        # A clip without frames gets one frame of zeros.
        of_frames = np.arange(next_frame, next_frame + rows) if rows else np.zeros(per_frame, np.int64)
        spans = store.label_spans(clip, np.array(labels), lengths)
        found[clip] = KeptClip(first, lengths, spans, of_frames.reshape(-1, per_frame))
        next_token, next_frame = next_token + tokens, next_frame + rows
    processes.barrier()
    return KeptFeatures(text_table, frame_table, found)


def _share(shape: tuple[int, int], dtype: torch.dtype, processes: Processes) -> Tensor:
    """A table in memory that the processes of a machine share: a file without a name, which ends with them."""
    name = processes.gather(f"lr2ppo-{secrets.token_hex(8)}")[0]
    path = Path(tempfile.gettempdir()) / name
    size = shape[0] * shape[1] * dtype.itemsize
    if local_rank() == 0:
        _reserve(path, size)
    processes.barrier()
    pages = np.memmap(path, np.uint8, "r+", shape=(size,))
    processes.barrier()
    if local_rank() == 0:
        path.unlink()
    return torch.from_numpy(pages).view(dtype).view(shape)


def _reserve(path: Path, size: int) -> None:
    """Create a file of this user alone with room for all its bytes: a full disk would end the process later."""
    try:
        with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UserError(
            f"{path.parent}: the features' {size / 2**30:.2f} GiB cannot be shared there: {error.strerror}; set TMPDIR "
            "to a folder with room, or use data.keep=disk"
        ) from None
