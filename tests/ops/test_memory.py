"""How much memory and how many fresh pages computing takes, as the operating system counts them."""

import os
import platform
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="memory is counted as Linux counts it")

FLATTEN_HEAD = """
import re, sys, torch
from lr2ppo.models.encoder import FlattenHead
from lr2ppo.ops import linear
if sys.argv[1] == "fast":
    linear.mkl_lacks_avx512 = torch.backends.mkldnn.is_available
head = FlattenHead(64, text_tokens=900, frames=100)
if sys.argv[1] == "fast":
    linear.use_fast_linear(head)
fused, frames = torch.randn(1, 2, 900, 64, requires_grad=True), torch.randn(1, 100, 64, requires_grad=True)
def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
# 5 sets the peak back to what is used now: see proc(5).
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
head(fused, frames).sum().backward()
print((status("VmHWM") - before) / head.mlp.fc1.weight.nbytes)
"""

RECYCLED = """
import resource, sys, torch
from lr2ppo.ops.linear import recycled
size = torch.Size([2**24])
make = {"recycled": lambda: recycled(size, torch.float32), "fresh": lambda: torch.empty(size)}[sys.argv[1]]
for _ in range(2):
    make().fill_(1)
pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = pages()
for _ in range(5):
    make().fill_(1)
print(pages() - before)
"""


def measure(code: str, way: str) -> float:
    # Pages of 4 KiB, so that what is counted does not depend on the system's mood.
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "THP_MEM_ALLOC_ENABLE": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, way], env=environment, capture_output=True, check=True)
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["plain", "fast"])
def test_the_flatten_head_takes_no_memory_of_its_weights_size_but_their_gradient(way: str) -> None:
    assert 0.9 < measure(FLATTEN_HEAD, way) < 1.6


@pytest.mark.slow
def test_recycled_tensors_take_no_fresh_pages() -> None:
    assert measure(RECYCLED, "recycled") < 0.2 * measure(RECYCLED, "fresh")
