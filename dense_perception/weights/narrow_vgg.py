"""Start a compact front end from a published narrow VGG-19."""

from io import BytesIO
import math
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile
import zlib

from dense_perception.errors import WeightsError
from dense_perception.weights.checkpoint import Preprocessing
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
import torch
from torch import Tensor

_LARGEST = 16_000_000  # bytes of an array; the largest of these layers has a tenth of it
_LAYERS = {
    f'conv{stage}{layer}': f'conv{stage}_{layer}'
    for stage, depth in ((1, 2), (2, 2), (3, 4), (4, 4), (5, 1))
    for layer in range(1, depth + 1)
}


def read_narrow_vgg(path: Path, preprocessing: Preprocessing) -> dict[str, Tensor]:
    """
    Read conv1_1 to conv5_1 of the quarter-width VGG-19 of Wang et al. (2020).

    That network first turns RGB of 0 to 1 into BGR minus a mean by a 1x1 convolution. It and the
    front end's preprocessing are folded into conv1_1.

    :param path: .npz with `conv11.weight`, `conv11.bias` and so on.
    :param preprocessing: what the front end's input has been through; RGB.
    :returns: weight and bias per published layer name.
    :raises WeightsError: no such file, a layer is missing, or the preprocessing is for BGR.
    """
    if preprocessing.order != 'rgb':
        raise WeightsError(f'channel order is {preprocessing.order!r}; it must be rgb here')
    try:
        with ZipFile(path) as archive:
            tensors = {
                f'{ours}.{part}': _read(archive, f'{theirs}.{part}', 4 if part == 'weight' else 1)
                for theirs, ours in {**_LAYERS, 'conv0': 'conv0'}.items()
                for part in ('weight', 'bias')
            }
    # Damaged archives raise whatever their first wrong byte leads to.
    except (
        OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error, RuntimeError
    ) as error:  # fmt: skip
        raise WeightsError(f'{path}: no narrow VGG-19: {error}') from error
    color, offset = tensors.pop('conv0.weight'), tensors.pop('conv0.bias')
    weight = tensors['conv1_1.weight']
    if color.shape != (3, 3, 1, 1) or offset.shape != (3,) or weight.shape[1] != 3:
        raise WeightsError(
            f'{path}: no narrow VGG-19: conv0 is {tuple(color.shape)} and {tuple(offset.shape)}, '
            f'not (3, 3, 1, 1) and (3,), or conv11 takes {weight.shape[1]} channels, not 3'
        )
    color = color[:, :, 0, 0]  # (3 BGR, 3 RGB)
    mean = torch.tensor(preprocessing.mean)
    constant = color @ mean / 255 + offset
    tensors['conv1_1.bias'] = tensors['conv1_1.bias'] + torch.einsum('obhw,b->o', weight, constant)
    scaled = color * preprocessing.scale / 255
    tensors['conv1_1.weight'] = torch.einsum('obhw,br->orhw', weight, scaled)
    return tensors


def _read(archive: ZipFile, name: str, dimensions: int) -> Tensor:
    """
    Read one array; nothing is unpickled, and nothing allocated that the archive does not hold.

    :raises ValueError: it is larger than any of these layers, or is no array of numbers.
    :raises KeyError: there is none of that name.
    """
    entry = archive.getinfo(f'{name}.npy')
    if entry.file_size > _LARGEST:
        raise ValueError(f'{name} has {entry.file_size} bytes; {_LARGEST} at most are read')
    with archive.open(entry) as file:
        content = file.read(_LARGEST)
    shape, by_columns, kind, start = _header(content, name)
    if len(shape) != dimensions or kind.kind != 'f':
        raise ValueError(f'{name} is {shape} {kind}; {dimensions} dimensions of floats are needed')
    if math.prod(shape) * kind.itemsize != len(content) - start:
        raise ValueError(f'{name} is {shape} {kind}, but has {len(content) - start} bytes')
    values: NDArray[Any] = np.frombuffer(content, kind, offset=start)
    shaped = values.reshape(shape, order='F' if by_columns else 'C')
    return torch.from_numpy(
        shaped.astype(np.float32, order='C')
    )  # a copy, for bytes are read-only


def _header(content: bytes, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, whether columns run fastest, number type, and where the numbers start."""
    file = BytesIO(content)
    version = npy.read_magic(file)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f'{name} has the format {version}; known are 1.0 and 2.0')
    shape, by_columns, kind = readers[version](file)
    return shape, by_columns, kind, file.tell()
