"""The networks, by name."""

from dense_perception.networks.context import FrontEndContext
from dense_perception.networks.deconvnet import DeconvNet
from dense_perception.networks.fcn import FCN8s, FCN16s, FCN32s
from dense_perception.networks.flownet import FlowNetCorr, FlowNetSimple
from dense_perception.networks.frontend import FrontEnd
from torch import nn

NETWORKS: dict[str, type[nn.Module]] = {
    'front_end': FrontEnd,
    'front_end_context': FrontEndContext,
    'fcn_32s': FCN32s,
    'fcn_16s': FCN16s,
    'fcn_8s': FCN8s,
    'deconvnet': DeconvNet,
    'flownet_simple': FlowNetSimple,
    'flownet_corr': FlowNetCorr,
}
