"""Steps replayed on a GPU as CUDA graphs: it computes a step faster than a program can ask for its parts."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lr2ppo.ops.trees import map_tensors, shape_of, tensors_of
from lr2ppo.training.learner import Learner
from lr2ppo.training.writer import WRITING

D = TypeVar("D", bound=Any)
Outputs = dict[str, Tensor]
# Before a capture, libraries and the optimizer set up what they need.
WARM_UPS = 2
# Each graph takes a second to capture; batches of further shapes are computed without one.
MOST_GRAPHS = 64


@dataclass(frozen=True)
class Captured:
    """A captured call, and the tensors that it reads and writes: its scalars as one tensor, the rest by name."""

    graph: torch.cuda.CUDAGraph
    inputs: Sequence[Tensor]
    names: Sequence[str]
    scalars: Tensor
    others: Outputs
    outcomes: Sequence[Tensor | None]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Within the context, Python collects no garbage: freeing what was on a GPU would break a capture."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Replayed(Generic[D]):
    """A function of a batch or a rollout, which may make steps of learners; a GPU captures it once per shape.

    It must not wait for the GPU, and returns tensors, by name.
    """

    def __init__(self, function: Callable[[D], Outputs], *learners: Learner[Any]) -> None:
        self._function, self._learners = function, learners
        self._captured: dict[object, Captured] = {}
        self._pool: Any = None

    def __call__(self, given: D) -> Outputs:
        if not all(learner.can_replay for learner in self._learners):
            return self._function(given)
        shape = shape_of(given)
        if shape not in self._captured and len(self._captured) < MOST_GRAPHS:
            self._captured[shape] = self._capture(given)
        captured = self._captured.get(shape)
        return self._function(given) if captured is None else self._replay(captured, given)

    def _capture(self, given: D) -> Captured:
        """Capture the call for inputs of this shape; weights and random numbers stay as they are."""
        inputs: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            inputs.append(tensor.clone())
            return inputs[-1]

        own = map_tensors(given, keep)
        random, stream = torch.cuda.get_rng_state(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), ExitStack() as held:
            for learner in self._learners:
                held.enter_context(learner.held())
            for _ in range(WARM_UPS):
                self._function(own)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.set_rng_state(random)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with WRITING, _no_collection(), torch.cuda.graph(graph, pool=self._pool):
            outputs = self._function(own)
            names = [name for name, output in outputs.items() if output.dim() == 0]
            # One tensor, which is copied at once.
            scalars = torch.stack([outputs[name].detach().double() for name in names]) if names else torch.empty(0)
        others = {name: output for name, output in outputs.items() if output.dim() > 0}
        return Captured(graph, inputs, names, scalars, others, [learner.outcome for learner in self._learners])

    def _replay(self, captured: Captured, given: D) -> Outputs:
        by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for own, tensor in zip(captured.inputs, tensors_of(given), strict=True):
            targets, sources = by_type.setdefault(own.dtype, ([], []))
            targets.append(own)
            sources.append(tensor)
        for targets, sources in by_type.values():
            torch._foreach_copy_(targets, sources)
        for learner, outcome in zip(self._learners, captured.outcomes, strict=True):
            learner.optimizer.follow_schedule()
            learner.outcome = outcome
        captured.graph.replay()
        # The next replay writes into the same memory.
        scalars = dict(zip(captured.names, captured.scalars.clone().unbind(), strict=True))
        return scalars | {name: output.clone() for name, output in captured.others.items()}
