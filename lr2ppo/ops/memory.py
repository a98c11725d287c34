"""Memory reuse between steps."""

import ctypes
import platform

import torch

# Options of glibc's mallopt(3), and the value that disables trimming.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
NEVER = -1


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, make large tensors reuse freed memory: fresh pages cost a third of a step's time.

    Peak memory grows by about a fifth because of fragmentation. Does nothing if the C library is not glibc.
    """
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for setting, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_ARENA_MAX, 1)):
            libc.mallopt(setting, value)
