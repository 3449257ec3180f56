"""Networks that run in ONNX Runtime, on the CPU in float32."""

from pathlib import Path

from dense_perception.predictors.engines.engine import Engine, Task
from dense_perception.predictors.engines.onnx_export import export_onnx
import torch
from torch import Tensor

_FILE = 'network.onnx'


def build(task: Task, folder: Path) -> None:
    """Write the network as ONNX."""
    export_onnx(task, folder / _FILE)


def load(task: Task, folder: Path) -> Engine:
    """Make a session from what `build` wrote."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin while they wait would take the cores from everything else on a robot.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    session = onnxruntime.InferenceSession(
        str(folder / _FILE), options, providers=['CPUExecutionProvider']
    )
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        arrays = [value.contiguous().numpy() for value in inputs]
        (output,) = session.run(None, dict(zip(names, arrays, strict=True)))
        return torch.from_numpy(output)

    return run
