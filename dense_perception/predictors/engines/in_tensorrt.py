"""
Networks that run in TensorRT on a CUDA device, in float16.

Its calls are those of TensorRT 10 and 11 (compared with the bindings 10.13 and 11.4); neither run
nor measured on a device yet.
"""

from pathlib import Path
from typing import Any

from dense_perception.predictors.engines.engine import Engine, Task
from dense_perception.predictors.engines.onnx_export import export_onnx
import torch
from torch import Tensor

_FILE = 'network.plan'


def build(task: Task, folder: Path) -> None:
    """
    Write TensorRT's plan, which fits this device and this version only.

    :raises RuntimeError: TensorRT cannot read the network or build it.
    """
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    # Strongly typed: float16 because the exported network is, not by a flag that newer ones lack.
    typed = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    definition = builder.create_network(typed)
    parser = tensorrt.OnnxParser(definition, logger)
    source = folder / 'network.onnx'
    export_onnx(task, source, torch.float16)
    if not parser.parse(source.read_bytes()):
        errors = '; '.join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise RuntimeError(f'the network cannot be read: {errors}')
    source.unlink()
    with torch.cuda.device(task.device):
        plan = builder.build_serialized_network(definition, builder.create_builder_config())
    if plan is None:
        raise RuntimeError('no plan was built; the log says why')
    (folder / _FILE).write_bytes(plan)


class TensorRTEngine:
    """A plan with its buffers on the device."""

    def __init__(self, plan: bytes, task: Task) -> None:
        """
        Read a plan for the task's sizes.

        :raises RuntimeError: it was built for another device or version.
        """
        import tensorrt

        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise RuntimeError('the plan does not fit this device or version')
        self._context: Any = engine.create_execution_context()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        *inputs, output = names  # in the order of the network's definition
        buffers = {
            name: torch.empty(
                tuple(engine.get_tensor_shape(name)), dtype=torch.float16, device=task.device
            )
            for name in names
        }
        for name, buffer in buffers.items():
            self._context.set_tensor_address(name, buffer.data_ptr())
        self._inputs, self._output = [buffers[name] for name in inputs], buffers[output]

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """
        Return what the network gives, in float32.

        :raises RuntimeError: the device failed.
        """
        for place, value in zip(self._inputs, inputs, strict=True):
            place.copy_(value)
        stream = torch.cuda.current_stream(self._output.device)
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError('TensorRT could not run the network')
        return self._output.float()


def load(task: Task, folder: Path) -> Engine:
    """Read what `build` wrote."""
    with torch.cuda.device(task.device):
        return TensorRTEngine((folder / _FILE).read_bytes(), task)
