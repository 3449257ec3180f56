"""The networks, by name."""

from collections.abc import Callable
from typing import Any

from dense_perception.networks.context import FrontEndContext
from dense_perception.networks.crfrnn import with_crf_rnn
from dense_perception.networks.deconvnet import DeconvNet
from dense_perception.networks.fcn import FCN8s, FCN16s, FCN32s
from dense_perception.networks.flownet import FlowNetCorr, FlowNetSimple
from dense_perception.networks.frontend import FrontEnd
from dense_perception.networks.hypercolumns import Hypercolumns
from dense_perception.networks.masks import DeepMask, SharpMask
from dense_perception.networks.super_parsing import SuperParsing
from dense_perception.networks.vgg16 import Vgg16, Vgg16Convolutions
from dense_perception.networks.zoom_out import ZoomOut
from torch import nn

Builder = Callable[..., nn.Module]  # takes the arguments that a weights file's card holds

_SCORING: dict[str, Builder] = {
    'front_end': FrontEnd,
    'front_end_context': FrontEndContext,
    'fcn32s': FCN32s,
    'fcn16s': FCN16s,
    'fcn8s': FCN8s,
    'deconvnet': DeconvNet,
    'super_parsing': SuperParsing,
    'zoom_out': ZoomOut,
    'hypercolumns': Hypercolumns,
}


def _crf_rnn(classes: int, *, network: str = 'fcn8s', **arguments: Any) -> nn.Module:
    """
    Build a network of which a CRF-RNN is a trained part.

    :param network: name of the network below it.
    :param arguments: of that network and of `with_crf_rnn`.
    """
    return with_crf_rnn(_SCORING[network], classes, **arguments)


# Images to class scores.
SEGMENTATION_NETWORKS: dict[str, Builder] = {**_SCORING, 'crf_rnn': _crf_rnn}
# Two images to flow.
FLOW_NETWORKS: dict[str, Builder] = {
    'flownet_simple': FlowNetSimple,
    'flownet_corr': FlowNetCorr,
}
# Windows of an image to masks of objects.
PROPOSAL_NETWORKS: dict[str, Builder] = {'deep_mask': DeepMask, 'sharp_mask': SharpMask}

# Images to class scores of windows, and the features below these.
CLASSIFIERS: dict[str, Builder] = {'vgg16': Vgg16, 'vgg16_convolutions': Vgg16Convolutions}

NETWORKS: dict[str, Builder] = {
    **SEGMENTATION_NETWORKS,
    **FLOW_NETWORKS,
    **PROPOSAL_NETWORKS,
    **CLASSIFIERS,
}
