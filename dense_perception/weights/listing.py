"""What networks there are, how large they are, and which weights of them can be had."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import inspect
from typing import Any

from dense_perception.errors import InputError, WeightsError
from dense_perception.networks import (
    FLOW_NETWORKS,
    NETWORKS,
    PROPOSAL_NETWORKS,
    SEGMENTATION_NETWORKS,
)
from dense_perception.networks.crfrnn import WithCrfRnn
from dense_perception.networks.flownet import DISPLACEMENTS, FlowNetCorr
from dense_perception.networks.hypercolumns import Hypercolumns
from dense_perception.networks.masks import DeepMask, WINDOW
from dense_perception.networks.zoom_out import WINDOW as SUB_SCENE
from dense_perception.networks.zoom_out import ZoomOut
from dense_perception.weights.checkpoint import read_card
from dense_perception.weights.published import find_weights, PUBLISHED
from dense_perception.weights.sources import SOURCES
import torch
from torch import nn, Tensor
from torch.utils.flop_counter import FlopCounterMode

SIZE = (512, 1024)  # rows and columns of the image for which operations are counted
_CLASSES = 19  # of networks of which no weights are known
_CONVOLUTION = torch.ops.aten.convolution
_PAPERS = {
    'front_end': 'Yu and Koltun (2016)',
    'super_parsing': 'Tighe and Lazebnik (2010)',
    'zoom_out': 'Mostajabi et al. (2015)',
    'hypercolumns': 'Hariharan et al. (2015)',
    'deep_mask': 'Pinheiro et al. (2015)',
    'sharp_mask': 'Pinheiro et al. (2016)',
}


@dataclass(frozen=True)
class Row:
    """One network as some weights have it."""

    network: str
    paper: str
    parameters: int
    gigamacs: float | None  # 10^9 multiply-accumulates; None where it takes no such image
    classes: int | None  # None where it gives none
    weights: tuple[str, ...]  # `*` before those that ship
    runs_in: str


def rows() -> list[Row]:
    """Return every network, as often as its weights differ in their arguments."""
    known: dict[str, tuple[str, Mapping[str, Any], str, list[str]]] = {}

    def add(network: str, arguments: Mapping[str, Any], paper: str, name: str) -> None:
        key = f'{network} {sorted(arguments.items())}'
        known.setdefault(key, (network, arguments, paper, []))[3].append(name)

    for source in SOURCES.values():
        add(source.network, source.arguments, source.paper, source.name)
    papers = {source.network: source.paper for source in reversed(SOURCES.values())} | _PAPERS
    for name in PUBLISHED:
        card = read_card(find_weights(name))
        add(card.network, card.arguments, papers.get(card.network, ''), f'*{name}')
    for network in NETWORKS:
        if not any(entry[0] == network for entry in known.values()):
            takes_classes = 'classes' in inspect.signature(NETWORKS[network]).parameters
            arguments = {'classes': _CLASSES} if takes_classes else {}
            known[network] = (network, arguments, papers.get(network, ''), [])
    order = list(NETWORKS)
    return [
        _row(network, arguments, paper, weights)
        for network, arguments, paper, weights in sorted(
            known.values(), key=lambda entry: order.index(entry[0])
        )
    ]


def _row(network: str, arguments: Mapping[str, Any], paper: str, weights: list[str]) -> Row:
    with torch.device('meta'):
        try:
            built = NETWORKS[network](**arguments).eval()
        except TypeError as error:
            raise WeightsError(f'{network} cannot be built from {arguments}: {error}') from error
    return Row(
        network,
        paper,
        sum(parameter.numel() for parameter in built.parameters()),
        gigamacs(built, *SIZE),
        arguments.get('classes'),
        tuple(weights),
        _runs_in(network),
    )


def _runs_in(network: str) -> str:
    for predictor, networks in (
        ('Segmenter', SEGMENTATION_NETWORKS),
        ('FlowEstimator', FLOW_NETWORKS),
        ('MaskProposer', PROPOSAL_NETWORKS),
    ):
        if network in networks:
            return f'{predictor}, node'
    return 'Python'


def gigamacs(network: nn.Module, height: int, width: int) -> float | None:
    """
    Count the multiply-accumulates of all convolutions and of the correlation for one image.

    A margin that the network needs is added. A dense field after a network is not counted, nor
    are the superpixels that scores are averaged over. Of a mask network, all windows of the image
    at its own scale are counted, without the masks of those that are chosen.

    :param network: on the meta device, so that nothing is computed.
    :returns: 10^9 of them; None if the network takes no image of that size, or has no
        convolutions.
    """
    if isinstance(network, WithCrfRnn):
        return gigamacs(network.network, height, width)
    try:
        operations = _operations(network, height, width)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, InputError):
        return None
    return operations / 1e9


def _operations(network: nn.Module, height: int, width: int) -> float:
    if isinstance(network, ZoomOut):
        local = _counted(lambda image: network.activations(image, network.layers), height, width)
        whole = _counted(lambda image: network.activations(image, ('fc7',)), SUB_SCENE, SUB_SCENE)
        return local + (network.count + 1) * whole  # each sub-scene, and the scene
    if isinstance(network, Hypercolumns):
        return _counted(network.pixel_scores, height, width)
    if isinstance(network, DeepMask):
        return _counted(network.slide, height + WINDOW, width + WINDOW)  # windows reach beyond
    if isinstance(network, FlowNetCorr):
        compared = network.conv3[0]
        assert isinstance(compared, nn.Conv2d)
        matched = DISPLACEMENTS * compared.out_channels * (height // 8) * (width // 8)
        return matched + _counted(lambda image: network(image, image), height, width)
    if type(network) in FLOW_NETWORKS.values():
        return _counted(lambda image: network(image, image), height, width)
    margin = 2 * int(getattr(network, 'margin', 0))
    return _counted(network, height + margin, width + margin)


def _counted(run: Callable[[Tensor], object], height: int, width: int) -> float:
    """Count what a function does with convolutions for one image."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        run(torch.empty(1, 3, height, width, device='meta'))
    return counter.get_flop_counts()['Global'].get(_CONVOLUTION, 0) / 2
