"""Start a compact front end from a published narrow VGG-19."""

from pathlib import Path
from zipfile import BadZipFile

from dense_perception.errors import WeightsError
from dense_perception.weights.checkpoint import Preprocessing
import numpy as np
import torch
from torch import Tensor

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
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        tensors = {
            f'{ours}.{part}': torch.from_numpy(arrays[f'{theirs}.{part}'])
            for theirs, ours in _LAYERS.items()
            for part in ('weight', 'bias')
        }
        color = torch.from_numpy(arrays['conv0.weight'])[:, :, 0, 0]  # (3 BGR, 3 RGB)
        offset = torch.from_numpy(arrays['conv0.bias'])
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise WeightsError(f'{path}: no narrow VGG-19: {error}') from error
    weight = tensors['conv1_1.weight']
    mean = torch.tensor(preprocessing.mean)
    constant = color @ mean / 255 + offset
    tensors['conv1_1.bias'] = tensors['conv1_1.bias'] + torch.einsum('obhw,b->o', weight, constant)
    scaled = color * preprocessing.scale / 255
    tensors['conv1_1.weight'] = torch.einsum('obhw,br->orhw', weight, scaled)
    return tensors
