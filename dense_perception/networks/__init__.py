"""The networks, by name."""

from dense_perception.networks.context import FrontEndContext
from dense_perception.networks.flownet import FlowNetCorr, FlowNetSimple
from dense_perception.networks.frontend import FrontEnd
from torch import nn

NETWORKS: dict[str, type[nn.Module]] = {
    'front_end': FrontEnd,
    'front_end_context': FrontEndContext,
    'flownet_simple': FlowNetSimple,
    'flownet_corr': FlowNetCorr,
}
