"""A network as an ONNX file, which several engines read."""

import copy
from pathlib import Path

from dense_perception.predictors.engines.engine import Task
import torch

OPSET = 18  # ONNX operators of 2022; read by ONNX Runtime from 1.14 and TensorRT from 8.6 on


def export_onnx(task: Task, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """
    Write a network for inputs of the task's size, with its weights in the same file.

    :raises ImportError: onnx or onnxscript is not installed.
    :raises RuntimeError: the network holds what ONNX cannot say.
    """
    network = copy.deepcopy(task.network).eval().to(dtype)
    inputs = tuple(value.to(dtype) for value in task.inputs[0])
    names = [f'input{index}' for index in range(len(inputs))]
    torch.onnx.export(
        network,
        inputs,
        path,
        input_names=names,
        output_names=['output'],
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
