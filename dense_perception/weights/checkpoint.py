"""
Our weights files: safetensors with a card that says what the tensors are.

A file holds everything that is needed to use it: network, its arguments, label set, preprocessing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
import json
import math
from pathlib import Path
import struct
from typing import Any

from dense_perception.errors import DensePerceptionError, WeightsError
from dense_perception.labels import LABEL_SETS, LabelClass, LabelSet
from dense_perception.networks import NETWORKS
from safetensors import safe_open, SafetensorError
from safetensors.torch import load, save_file
import torch
from torch import nn, Tensor

Shape = tuple[int, ...]

# What values of a wrong type or size raise: in a network's constructor, and in reading a card.
_CANNOT_BUILD = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
    DensePerceptionError,
)  # fmt: skip
_CANNOT_READ = (
    AttributeError, KeyError, RecursionError, TypeError, ValueError, DensePerceptionError,
)  # fmt: skip

_CARD = 'dense_perception'  # key of the card in the file's metadata
_LARGEST_HEADER = 10_000_000  # bytes; a header that says more is taken for damage
_DEEPEST = 20  # lists and names within each other on a card
_LONGEST = 400  # characters of what is told about a card
_LARGEST_TILE = 8192  # pixels along a side, as in the largest picture; released ones have 1640


@dataclass(frozen=True)
class Preprocessing:
    """How an RGB image of 0 to 255 becomes a network's input: (image[order] - mean) / scale."""

    order: str = 'rgb'  # or 'bgr'
    mean: tuple[float, float, float] = (123.68, 116.779, 103.939)  # in `order`, 0 to 255
    scale: float = 57.375  # grey levels
    second_mean: tuple[float, float, float] | None = None  # of the later of two images, if another
    own_mean: bool = False  # subtract what the images themselves have on average, not `mean`

    def __post_init__(self) -> None:
        if self.order not in ('rgb', 'bgr'):
            raise WeightsError(f'channel order is {self.order!r}; it must be rgb or bgr')
        if not _is_finite(self.scale) or self.scale <= 0:
            raise WeightsError(
                f'preprocessing scale is {self.scale}; it must be above 0 and finite'
            )
        for name in ('mean', 'second_mean'):
            mean = getattr(self, name)
            if mean is None and name == 'second_mean':
                continue
            if len(mean) != 3 or not all(map(_is_finite, mean)):
                raise WeightsError(f'preprocessing {name} is {mean}; it must be three numbers')
            object.__setattr__(self, name, tuple(mean))

    @property
    def of_each(self) -> bool:
        """Whether an image is prepared alike by itself and in any place of a pair."""
        return not self.own_mean and self.second_mean is None

    def mean_of(self, images: Tensor) -> Tensor:
        """
        Return what is subtracted from images.

        :param images: (N, 3, H, W) float, channels in `order`; of two, the second is the later.
        :returns: (1, 3, 1, 1), or (2, 3, 1, 1) where two images have means of their own.
        """
        if self.own_mean:
            return images.mean((0, 2, 3), keepdim=True)
        means = [self.mean]
        if self.second_mean is not None and len(images) == 2:
            means.append(self.second_mean)
        return torch.tensor(means, device=images.device)[:, :, None, None]


def _is_finite(value: Any) -> bool:
    """Whether a value is a number that torch can calculate with."""
    try:
        return math.isfinite(value)
    except (OverflowError, TypeError):  # JSON has integers of any length
        return False


@dataclass(frozen=True)
class Card:
    """What a weights file says about itself."""

    network: str  # a name in NETWORKS
    arguments: Mapping[str, Any]  # for the network's constructor
    preprocessing: Preprocessing
    label_set: str = ''  # a name in LABEL_SETS, or one of the user's own; empty for flow
    # Name and RGB colour of each class of a label set of the user's own, in order.
    label_classes: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    # How scores become pixels. half_pixel: interpolate scores. zoom: interpolate probabilities
    # with `networks.layers.zoom`, as the released Pascal VOC, CamVid and KITTI networks need it.
    upsampling: str = 'half_pixel'
    # Rows and columns of the tiles in which the published code runs the network, reflected margins
    # included; see `predictors.tiling`. None: the whole image at once.
    tile: tuple[int, int] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)  # recipe, data, scores

    def __post_init__(self) -> None:
        if self.upsampling not in ('half_pixel', 'zoom'):
            raise WeightsError(f'upsampling is {self.upsampling!r}; it must be half_pixel or zoom')
        for name in ('arguments', 'notes'):
            if not isinstance(getattr(self, name), Mapping):
                raise WeightsError(f'{name} are {getattr(self, name)!r}; they must have names')
        object.__setattr__(self, 'label_classes', _as_tuples(self.label_classes))
        classes = tuple((name, tuple(color)) for name, color in self.label_classes)
        object.__setattr__(self, 'label_classes', classes)
        if self.tile is not None:
            sizes = tuple(self.tile)
            if len(sizes) != 2 or not all(
                type(size) is int and 0 < size <= _LARGEST_TILE for size in sizes
            ):
                raise WeightsError(
                    f'tile is {sizes}; it must be two numbers of pixels, 1 to {_LARGEST_TILE}'
                )
            object.__setattr__(self, 'tile', sizes)

    def build(self) -> nn.Module:
        """
        Make the network, with weights as its constructor leaves them.

        :raises WeightsError: this package has no such network, or it takes other arguments.
        """
        if self.network not in tuple(NETWORKS):  # a damaged card may name a list
            raise WeightsError(f'network is {self.network!r}; known are {", ".join(NETWORKS)}')
        try:
            return NETWORKS[self.network](**self.arguments)
        except _CANNOT_BUILD as error:
            raise WeightsError(f'{self.network} cannot be built: {error}') from error

    def labels(self) -> LabelSet:
        """
        Return the label set of a segmentation network.

        :raises WeightsError: the file names none, or one that is not known.
        """
        if self.label_classes:
            return _own_labels(self.label_set, self.label_classes)
        if self.label_set not in tuple(LABEL_SETS):
            known = ', '.join(LABEL_SETS)
            raise WeightsError(f'label set is {self.label_set!r}; known are {known}')
        return LABEL_SETS[self.label_set]


def _as_tuples(value: Any) -> Any:
    """Return what JSON has made lists of as it was."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


def own_label_set(label_set: LabelSet) -> dict[str, Any]:
    """Return the arguments by which a card names a label set, and tells it if it is not known."""
    known = LABEL_SETS.get(label_set.name)
    if known is not None and known.names == label_set.names:
        return {'label_set': label_set.name}
    classes = tuple((entry.name, entry.color) for entry in label_set.classes)
    return {'label_set': label_set.name, 'label_classes': classes}


def _own_labels(name: str, classes: Sequence[Any]) -> LabelSet:
    try:
        rows = [LabelClass(str(title), _color(color)) for title, color in classes]
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f'classes of label set {name!r} are {classes!r}; each must be a name and a colour of '
            'three numbers from 0 to 255'
        ) from error
    return LabelSet(name, tuple(rows))


def _color(values: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = values
    if not all(type(value) is int and 0 <= value <= 255 for value in values):
        raise ValueError
    return red, green, blue


def save_weights(
    path: Path, network: nn.Module, card: Card, dtype: torch.dtype = torch.float16
) -> None:
    """Write a network's weights with their card, as numbers of `dtype`."""
    tensors = {
        name: value.detach().to('cpu', dtype if value.is_floating_point() else value.dtype)
        for name, value in network.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix('.partial')
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    save_file(contiguous, partial, metadata={_CARD: json.dumps(asdict(card), sort_keys=True)})
    partial.replace(path)


def read_card(path: Path) -> Card:
    """
    Read what a weights file says about itself, without its tensors.

    :raises WeightsError: missing, damaged, or not written by `save_weights`.
    """
    _check_header(path)
    try:
        with safe_open(path, 'pt') as file:
            text = (file.metadata() or {}).get(_CARD)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f'{path}: damaged: {error}') from error
    if text is None:
        raise WeightsError(f'{path}: no card in it; it was not written by this package')
    try:
        values = json.loads(text)
        _check_depth(values)
        preprocessing = Preprocessing(**values.pop('preprocessing'))
        return Card(preprocessing=preprocessing, **values)
    except _CANNOT_READ as error:
        raise WeightsError(f'{path}: its card cannot be read: {_in_a_line(error)}') from error


def _check_depth(value: Any, left: int = _DEEPEST) -> None:
    """Refuse what is nested too deep to be printed or copied."""
    if not isinstance(value, dict | list):
        return
    if not left:
        raise WeightsError(f'lists or names lie more than {_DEEPEST} deep in each other')
    for part in value.values() if isinstance(value, dict) else value:
        _check_depth(part, left - 1)


def _in_a_line(error: Exception) -> str:
    """Return what an error says without line breaks, and no more than anyone reads."""
    text = ' '.join(str(error).split())
    half = _LONGEST // 2  # what is wrong stands first, what would be right last
    return text if len(text) <= _LONGEST else f'{text[:half]} ... {text[-half:]}'


def load_weights(path: Path) -> tuple[nn.Module, Card]:
    """
    Build a file's network and fill it, in float32 and ready for inference.

    :raises WeightsError: as `read_card`; or tensors are missing, extra or misshapen, all named.
    """
    card = read_card(path)
    try:
        if card.label_set:
            _check_classes(card)
        with torch.device('meta'):  # takes no memory, whatever size the card asks for
            described = card.build()
    except WeightsError as error:
        raise WeightsError(f'{path}: {_in_a_line(error)}') from error
    _check_shapes(path, described)
    network = card.build()
    # `safe_open` 0.8 leaves some memory behind for each tensor that it gives.
    fill(network, load(path.read_bytes()), str(path))
    return network.eval(), card


def _check_shapes(path: Path, network: nn.Module) -> None:
    """Refuse a file whose tensors are not the network's, without reading them."""
    with safe_open(path, 'pt') as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    _refuse_misfits(network, shapes, str(path))


def _refuse_misfits(network: nn.Module, shapes: Mapping[str, Shape], source: str) -> None:
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if problems := misfits(expected, shapes):
        raise WeightsError(
            f'{source} does not fit {type(network).__name__}: {"; ".join(problems)}'
        )


def _check_classes(card: Card) -> None:
    """Refuse a network that scores other classes than its label set has."""
    expected = len(card.labels())
    classes = card.arguments.get('classes', expected)
    if classes != expected:
        raise WeightsError(f'network scores {classes} classes; {card.label_set} has {expected}')


def fill(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """
    Copy tensors into a network by name, all or none.

    :param source: where they come from, for the message.
    :raises WeightsError: names are missing, extra or misshapen; every one is told.
    """
    _refuse_misfits(network, {name: tuple(value.shape) for name, value in tensors.items()}, source)
    expected = network.state_dict()
    network.load_state_dict({name: tensors[name].to(value) for name, value in expected.items()})


def misfits(expected: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> list[str]:
    """Tell every name that is missing, extra or misshapen."""
    problems = [f'missing {name}' for name in expected if name not in shapes]
    problems += [f'extra {name}' for name in shapes if name not in expected]
    problems += [
        f'{name} is {shapes[name]}, not {shape}'
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    return problems


def _check_header(path: Path) -> None:
    """Look at a file's first bytes before any reader allocates what they ask for."""
    try:
        size = path.stat().st_size
        with path.open('rb') as file:
            start = file.read(8)
    except OSError as error:
        raise WeightsError(f'{path}: cannot be read: {error.strerror}') from error
    header = struct.unpack('<Q', start)[0] if len(start) == 8 else 0
    if not 2 <= header <= min(size - 8, _LARGEST_HEADER):
        raise WeightsError(f'{path}: no safetensors file, or a truncated one')
