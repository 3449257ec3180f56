"""Networks that run in torch itself: as they are, compiled, or replayed as a CUDA graph."""

import copy
from pathlib import Path

from dense_perception.predictors.device import Placement
from dense_perception.predictors.engines.engine import Engine, Task
from dense_perception.predictors.engines.products import choose_convolutions
import torch
from torch import nn, Tensor
from torch.fx.proxy import TraceError


class TorchEngine:
    """A network on its device, in its precision, channels last."""

    def __init__(self, network: nn.Module, placement: Placement) -> None:
        """Take a copy of a network; the original stays as it is."""
        self.network = placement.place(copy.deepcopy(network))
        self.placement = placement

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return what the network gives, in float32."""
        return self.network(*(self._placed(value) for value in inputs)).float()

    def _placed(self, value: Tensor) -> Tensor:
        return value.to(
            self.placement.device, self.placement.dtype, memory_format=torch.channels_last
        )


class GraphEngine(TorchEngine):
    """
    The kernels of one call recorded as a CUDA graph and replayed, without Python between them.

    Each convolution runs in the way that is fastest on the task's inputs; see `products`.
    """

    def __init__(self, task: Task, placement: Placement) -> None:
        """Record a call on the sizes of the task's inputs."""
        super().__init__(task.network, placement)
        self._inputs = [self._placed(value) for value in task.inputs[0]]
        try:
            self.network = choose_convolutions(self.network, *self._inputs)
        except TraceError as error:
            task.tell(f'convolutions stay as they are: {error}')
        stream = torch.cuda.Stream(placement.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(placement.device))
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(3):  # cuDNN chooses its algorithms before the recording
                self.network(*self._inputs)
        torch.cuda.current_stream(placement.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(self._graph):
            self._output = self.network(*self._inputs).float()

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return what the network gives, in float32."""
        for place, value in zip(self._inputs, inputs, strict=True):
            place.copy_(value)
        self._graph.replay()
        return self._output.clone()


def load_torch(task: Task, folder: Path, *, dtype: torch.dtype) -> Engine:
    """Place a network."""
    return TorchEngine(task.network, Placement(task.device, dtype))


def load_compiled(task: Task, folder: Path, *, dtype: torch.dtype) -> Engine:
    """
    Compile a network with torch's inductor, which needs a C++ compiler on a CPU.

    Inductor keeps what it compiled in a cache of its own.
    """
    engine = TorchEngine(task.network, Placement(task.device, dtype))
    engine.network.compile(dynamic=False)
    engine(*task.inputs[0])
    return engine


def load_graph(task: Task, folder: Path, *, dtype: torch.dtype) -> Engine:
    """Record a network's CUDA graph."""
    return GraphEngine(task, Placement(task.device, dtype))
