"""
How published files name the tensors of our networks, and what else they hold.

A layout is a table of names where a file is a copy, and a short calculation where it is not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import re
from typing import Any

from dense_perception.errors import WeightsError
from dense_perception.labels import CAMVID
from dense_perception.networks.context import DILATIONS
from dense_perception.networks.crfrnn import from_added_compatibility
from dense_perception.networks.fcn import FCN8s
from dense_perception.networks.layers import bilinear_kernel
from dense_perception.networks.vgg16 import convert_torchvision, SHAPES, TORCHVISION_WEIGHTS
from dense_perception.weights.checkpoint import Shape
import torch
from torch import Tensor
import torchvision

Tensors = dict[str, Tensor]
Shapes = Mapping[str, Shape]

# CamVid's and KITTI's classes in the order of the released dilated networks.
_RELEASED_ROAD_ORDER = (
    'building', 'tree', 'sky', 'car', 'sign', 'road', 'pedestrian', 'fence', 'pole', 'pavement',
    'bicyclist',
)  # fmt: skip


def _nothing(_: Shapes) -> Shapes:
    return {}


def _unchanged(state: Tensors, _: Tensors) -> None:
    """Leave the state as it was copied."""


def _published_width(_: Mapping[str, Tensor]) -> dict[str, Any]:
    return {}


def _any_values(_: Mapping[str, Tensor]) -> bool:
    return True


@dataclass(frozen=True)
class Layout:
    """What tells a file's names from a network's."""

    rename: Callable[[str], str]  # our name to the file's; empty where the file has no such tensor
    # Names and shapes that the file has beyond our network's, from the shapes of the latter.
    extra: Callable[[Shapes], Shapes] = _nothing
    # Complete our state by what is not copied. Takes the state and the file's extra tensors.
    finish: Callable[[Tensors, Tensors], None] = _unchanged
    optional: str = r'(?!)'  # pattern of file names that may be missing; they are zero then
    # The network's arguments that say how wide it is, from the file's tensors.
    width: Callable[[Mapping[str, Tensor]], dict[str, Any]] = _published_width
    # Whether a file of fitting names and shapes is one of these, by its values.
    accepts: Callable[[Mapping[str, Tensor]], bool] = _any_values

    def is_optional(self, name: str) -> bool:
        """Whether a file may lack the tensor of that name."""
        return re.fullmatch(self.optional, name) is not None


def _blob(name: str) -> str:
    """Name a layer's weight and bias as Caffe counts them."""
    layer, _, part = name.rpartition('.')
    return f'{layer}.{("weight", "bias").index(part)}'


def _vgg_width(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tell a narrow copy of a published network from its first layer."""
    first = tensors.get('conv1_1.0', tensors.get('conv1_1.weight'))
    channels = len(first) if first is not None and first.dim() else 0
    widths = [name for name, shape in SHAPES.items() if shape.widths[0] == channels]
    return {'width': widths[0]} if widths and widths[0] != 'full' else {}


# Yu and Koltun (2016)


def dilation(layers: int, *, prefix: str = 'ctx', final: str = 'final') -> Layout:
    """
    Front end and context module of the released dilated networks.

    :param layers: of the context module.
    :param prefix: of the names of its layers.
    :param final: the front end's last layer.
    """
    last = len(DILATIONS[layers]) - 1
    names = {0: 'conv1_1', 1: 'conv1_2', last: 'fc1'}
    names |= {index: f'conv{index}_1' for index in range(2, last)}

    def rename(ours: str) -> str:
        part, _, name = ours.partition('.')
        if part == 'front_end':
            return _blob(name.replace('final', final))
        if name.startswith('layers.'):
            _, index, kind = name.split('.')
            name = f'{names[int(index)]}.{kind}'
        return _blob(f'{prefix}_{name}')

    if layers == 10:
        return Layout(rename, _upsampling_shape, _check_upsampling, width=_vgg_width)
    finish = _reorder_classes if prefix == 'ctx' else _unchanged
    return Layout(rename, finish=finish, width=_vgg_width)


def _upsampling_shape(shapes: Shapes) -> Shapes:
    return {'ctx_upsample.0': (shapes['context.final.bias'][0], 1, 16, 16)}


def _check_upsampling(_: Tensors, extra: Tensors) -> None:
    """Make sure that the last layer interpolates; here that is done outside the network."""
    weight = extra['ctx_upsample.0']
    if not torch.allclose(weight, bilinear_kernel(8).expand_as(weight), atol=1e-6):
        raise WeightsError('ctx_upsample does not enlarge by bilinear interpolation')


def _reorder_classes(state: Tensors, _: Tensors) -> None:
    """Bring the classes into the order of our label set."""
    order = [_RELEASED_ROAD_ORDER.index(name) for name in CAMVID.names]
    for part in ('weight', 'bias'):
        state[f'context.final.{part}'] = state[f'context.final.{part}'][order]


# Long et al. (2015), and Zheng et al. (2015) who built on the first release

FCN = Layout(_blob, width=_vgg_width)

_FIRST_RELEASE = {
    'score_fr': 'score-fr',
    'upscore2': 'score2',
    'score_pool4': 'score-pool4',
    'upscore_pool4': 'score4',
    'score_pool3': 'score-pool3',
    'upscore8': 'upsample',
}
_FIELD = ('spatial_ker_weights', 'bilateral_ker_weights', 'compatibility_matrix')


def _at_once_shapes(shapes: Shapes) -> Shapes:
    return {
        f'scale_{fusion.pool}.0': (shapes[f'score_{fusion.pool}.weight'][1],)
        for fusion in FCN8s.fusions
    }


def _check_scales(_: Tensors, extra: Tensors) -> None:
    for fusion in FCN8s.fusions:
        name = f'scale_{fusion.pool}.0'
        if not torch.allclose(extra[name], torch.tensor(fusion.scale), rtol=1e-4, atol=0):
            raise WeightsError(f'{name} is not {fusion.scale}, by which this network scales')


FCN_AT_ONCE = Layout(_blob, _at_once_shapes, _check_scales, width=_vgg_width)


def _first_release(ours: str) -> str:
    layer, _, part = ours.removeprefix('network.').rpartition('.')
    if layer == 'crfrnn':
        return f'inference1.{_FIELD.index(part)}'
    return _blob(f'{_FIRST_RELEASE.get(layer, layer)}.{part}')


def _bias_layout(
    rename: Callable[[str], str], bias: str, prefix: str, *, added: bool = False
) -> Layout:
    """
    FCN-8s whose first enlargement has a bias.

    What follows adds the scores of pool4, so their bias can carry it.

    :param bias: the file's name for it.
    :param prefix: of our names of the FCN's layers.
    :param added: whether the file's CRF-RNN adds the compatibility, where ours subtracts it.
    """
    target = f'{prefix}score_pool4.bias'

    def extra(shapes: Shapes) -> Shapes:
        return {bias: shapes[target]}

    def finish(state: Tensors, tensors: Tensors) -> None:
        state[target] = state[target] + tensors[bias]
        if added:
            state.update(from_added_compatibility(state))

    return Layout(rename, extra, finish, width=_vgg_width)


FCN_FIRST_RELEASE = _bias_layout(_first_release, 'score2.1', '')
CRF_RNN = _bias_layout(_first_release, 'score2.1', 'network.')
CRF_RNN_PYTORCH = _bias_layout(
    lambda ours: ours.removeprefix('network.'), 'upscore2.bias', 'network.', added=True
)


# Noh et al. (2015)


def _deconvnet_name(ours: str) -> str:
    return '' if ours.rpartition('.')[2] not in ('weight', 'bias') else _blob(ours)


def _undo_normalisation(state: Tensors, _: Tensors) -> None:
    """
    Give the statistics that make batch normalisation scale and shift, and no more.

    The released file has its statistics folded into scale and shift.
    """
    for name, weight in list(state.items()):
        layer = name.removesuffix('.weight')
        if layer != name and weight.dim() == 1:
            state[f'{layer}.running_mean'] = torch.zeros_like(weight)
            state[f'{layer}.running_var'] = torch.full_like(weight, 1 - 1e-5)  # and epsilon is 1
            state[f'{layer}.num_batches_tracked'] = torch.tensor(0)


DECONVNET = Layout(_deconvnet_name, finish=_undo_normalisation, width=_vgg_width)


# Dosovitskiy et al. (2015)


def _flownet_width(first: str) -> Callable[[Mapping[str, Tensor]], dict[str, Any]]:
    def width(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        channels = len(tensors[first]) if first in tensors and tensors[first].dim() else 64
        return {} if channels == 64 else {'width': channels / 64}

    return width


def _flownet_caffe_name(ours: str) -> str:
    name = ours.removeprefix('refinement.')
    if match := re.fullmatch(r'predict_flow(\d)\.(\w+)', name):
        return _blob(f'Convolution{7 - int(match[1])}.{match[2]}')
    if match := re.fullmatch(r'upsampled_flow(\d)_to_(\d)\.(\w+)', name):
        return _blob(f'upsample_flow{match[1]}to{match[2]}.{match[3]}')
    return _blob(name.replace('.0.', '.'))


def _flownet_pytorch_name(ours: str) -> str:
    return ours.removeprefix('refinement.')


# Biases that are frozen at zero.
FLOWNET_CAFFE = Layout(
    _flownet_caffe_name, optional=r'(deconv|upsample_flow).*\.1', width=_flownet_width('conv1.0')
)
# Files of torch before 0.4.1 do not count batches.
FLOWNET_PYTORCH = Layout(
    _flownet_pytorch_name,
    optional=r'.*\.num_batches_tracked',
    width=_flownet_width('conv1.0.weight'),
)
# FlowNet2-S does without the biases of the layers that enlarge flow.
FLOWNET2 = Layout(
    _flownet_pytorch_name,
    optional=r'upsampled_flow.*\.bias',
    width=_flownet_width('conv1.0.weight'),
)


# Simonyan and Zisserman (2015)


def torchvision_mean(weights: str) -> tuple[float, float, float]:
    """Return the mean that torchvision subtracts, as blue, green and red of 0 to 255."""
    red, green, blue = (255 * value for value in TORCHVISION_WEIGHTS[weights].mean)
    return blue, green, red


def vgg16(weights: str) -> Layout:
    """
    VGG-16 of torchvision.

    :param weights: a name in TORCHVISION_WEIGHTS; the one without a usable classifier has numbers
        there that are none.
    """

    def extra(_: Shapes) -> Shapes:
        with torch.device('meta'):
            state = torchvision.models.vgg16(init_weights=False).state_dict()
        return {name: tuple(value.shape) for name, value in state.items()}

    def finish(state: Tensors, tensors: Tensors) -> None:
        state.update(convert_torchvision(tensors, weights, torchvision_mean(weights)))

    def accepts(tensors: Mapping[str, Tensor]) -> bool:
        finite = all(
            bool(value.isfinite().all())
            for name, value in tensors.items()
            if name.startswith('classifier.')
        )
        return finite == TORCHVISION_WEIGHTS[weights].classifier

    return Layout(lambda ours: '', extra, finish, accepts=accepts)
