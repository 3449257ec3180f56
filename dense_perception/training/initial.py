"""Starting a segmentation network from weights of another."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dense_perception.errors import WeightsError
from dense_perception.labels import LabelSet
from dense_perception.networks.vgg16 import convert_torchvision, TORCHVISION_WEIGHTS
from dense_perception.weights.checkpoint import Card, load_weights, Preprocessing
from dense_perception.weights.narrow_vgg import read_narrow_vgg
from dense_perception.weights.published import find_weights
from dense_perception.weights.torch_files import read_checkpoint
import torch
from torch import nn, Tensor

# Layers with a row for each class; all that stands behind them mixes classes.
_CLASSIFIERS = ('final', 'score_fr', 'score_pool4', 'score_pool3', 'seg-score-voc')
_MIXING = ('context.', 'upscore', 'crfrnn.')
_FRONT_END = 'front_end.'  # of a network that a context module follows
_BEFORE_CRF = 'network.'  # of one that a CRF-RNN follows


@dataclass(frozen=True)
class Initial:
    """Weights to start from, and what the network was that they are of."""

    source: str
    tensors: Mapping[str, Tensor]
    preprocessing: Preprocessing
    card: Card | None = None  # None: an ImageNet classifier


def read_initial(source: str) -> Initial:
    """
    Read weights to start from.

    :param source: a name of shipped weights; a weights file of this package; torchvision's VGG-16
        (`.pth`); or the narrow VGG-19 (`.npz`).
    :raises WeightsError: there is no such file, or it cannot be used.
    """
    suffix = Path(source).suffix
    if suffix == '.npz':
        preprocessing = Preprocessing()
        return Initial(source, read_narrow_vgg(Path(source), preprocessing), preprocessing)
    if suffix in ('.pth', '.pt'):
        return _read_torchvision(Path(source))
    network, card = load_weights(find_weights(source))
    if not card.label_set:
        raise WeightsError(f'{source}: {card.network} is no segmentation network')
    return Initial(source, network.state_dict(), card.preprocessing, card)


def _read_torchvision(path: Path) -> Initial:
    tensors = read_checkpoint(path)
    # The file of features alone has a classifier that is not a number.
    classifier = tensors.get('classifier.0.weight')
    usable = classifier is not None and bool(torch.isfinite(classifier).all())
    kind = 'IMAGENET1K_V1' if usable else 'IMAGENET1K_FEATURES'
    # Torchvision's own mean, so that a padded border is what it was.
    mean = [255 * value for value in reversed(TORCHVISION_WEIGHTS[kind].mean)]
    try:
        converted = convert_torchvision(tensors, kind, mean)
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from error
    return Initial(str(path), converted, Preprocessing('bgr', (mean[0], mean[1], mean[2]), 1.0))


@torch.no_grad()
def fill_from(
    network: nn.Module, initial: Initial, label_set: LabelSet, *, fresh_context: bool = False
) -> list[str]:
    """
    Copy every layer that the two networks share; the others stay as they are.

    Where the classes differ, those of the same name keep their weights, and layers that mix
    classes stay as they are.

    :param label_set: what the network scores.
    :param fresh_context: leave the context module as it is.
    :returns: names of the tensors that were not filled.
    :raises WeightsError: a shared layer has another shape, or nothing is shared.
    """
    theirs = None if initial.card is None else initial.card.labels().names
    same = theirs == label_set.names
    fresh, problems = [], []
    for name, value in network.state_dict().items():
        found = _find(name, initial.tensors)
        leave = (fresh_context and 'context.' in name) or (
            any(part in name for part in _MIXING) and not same
        )
        if found is None or leave:
            fresh.append(name)
        elif f'.{name}'.split('.')[-2] in _CLASSIFIERS and theirs is not None and not same:
            known = [title in theirs for title in label_set.names]
            rows = [theirs.index(title) for title in label_set.names if title in theirs]
            if found.shape[1:] != value.shape[1:]:
                problems.append(f'{name} is {tuple(found.shape)}, not {tuple(value.shape)}')
            else:
                value[torch.tensor(known)] = found[rows].to(value)
            if not all(known):
                fresh.append(name)
        elif found.shape != value.shape:
            problems.append(f'{name} is {tuple(found.shape)}, not {tuple(value.shape)}')
        else:
            value.copy_(found)
    kind = type(network).__name__
    if problems:
        raise WeightsError(f'{initial.source} does not fit {kind}: {"; ".join(problems)}')
    if len(fresh) == len(network.state_dict()):
        raise WeightsError(f'{initial.source} has no layer in common with {kind}')
    return fresh


def _find(name: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Return the tensor of a layer, whether or not a context module or CRF follows its network."""
    alone = name.removeprefix(_BEFORE_CRF)
    for other in (name, alone, alone.removeprefix(_FRONT_END), f'{_FRONT_END}{alone}'):
        if other in tensors:
            return tensors[other]
    return None
