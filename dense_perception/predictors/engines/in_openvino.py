"""Networks that run in OpenVINO on the CPU: float32, bfloat16, or int8 scaled by calibration."""

import logging
from pathlib import Path
from typing import Any

from dense_perception.predictors.engines.engine import Engine, Inputs, Task
import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor

_FILE = 'network.xml'  # weights beside it in network.bin


def build(task: Task, folder: Path) -> None:
    """Write the network as OpenVINO's graph."""
    import openvino

    openvino.save_model(_converted(task), folder / _FILE, compress_to_fp16=False)


def build_int8(task: Task, folder: Path) -> None:
    """Write the network with int8 convolutions, their ranges those seen in calibration."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    quantized = nncf.quantize(
        _converted(task),
        nncf.Dataset(list(task.calibration), _arrays),
        # Activations after a ReLU have no negative half to waste.
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(task.calibration),
    )
    openvino.save_model(quantized, folder / _FILE, compress_to_fp16=False)


def load(task: Task, folder: Path, *, precision: str) -> Engine:
    """
    Compile what `build` or `build_int8` wrote.

    :param precision: f32 or bf16, for what is not int8.
    """
    import openvino

    request = openvino.Core().compile_model(folder / _FILE, 'CPU', {
        'INFERENCE_PRECISION_HINT': precision,
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        # A thread tied to one core waits for whatever else runs there.
        'ENABLE_CPU_PINNING': False,
    }).create_infer_request()  # fmt: skip

    def run(*inputs: Tensor) -> Tensor:
        request.infer(_arrays(inputs), share_inputs=True)
        # The request writes its next output to the same place.
        return torch.from_numpy(request.get_output_tensor().data.copy())

    return run


def _converted(task: Task) -> Any:
    import openvino

    with torch.no_grad():
        program = torch.export.export(task.network.eval(), task.inputs[0])
        model = openvino.convert_model(program)
    # Left open by the conversion; a graph for one size runs faster.
    model.reshape(dict(enumerate(task.sizes)))
    _forget_places(model)
    return model


def _forget_places(model: Any) -> None:
    """
    Put a plain pooling where torch's also gives the places of its maxima and nobody asks.

    OpenVINO carries int8 through a plain one alone; the convolution behind the other is computed
    in bfloat16.
    """
    from openvino import opset1

    for layer in model.get_ordered_ops():
        if layer.get_type_name() != 'MaxPool' or layer.get_output_size() == 1:
            continue
        form = layer.get_attributes()
        special = any([*form['pads_begin'], *form['pads_end']]) or set(form['dilations']) != {1}
        apart = any(s > k for s, k in zip(form['strides'], form['kernel'], strict=True))
        if layer.output(1).get_target_inputs() or special or apart:
            continue
        plain = opset1.max_pool(
            layer.input_value(0),
            list(form['strides']),
            list(form['pads_begin']),
            list(form['pads_end']),
            list(form['kernel']),
            # They differ in windows that begin beyond the input: if padded, or far apart.
            form['rounding_type'].removesuffix('_torch'),
        )
        plain.set_friendly_name(layer.get_friendly_name())
        layer.output(0).replace(plain.output(0))


def _arrays(inputs: Inputs) -> list[NDArray[np.float32]]:
    return [value.contiguous().numpy() for value in inputs]
