"""Recognise a published weights file by its names and shapes, and convert it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from dense_perception.errors import WeightsError
from dense_perception.weights.caffe import read_caffemodel
from dense_perception.weights.checkpoint import Card, misfits, save_weights, Shape
from dense_perception.weights.sources import Source, SOURCES
from dense_perception.weights.torch_files import LEGACY_START, read_checkpoint, ZIP_START
import torch
from torch import nn, Tensor

# Starts of files that people take for weights of these networks.
_OTHER_FORMATS = {
    b'\x89HDF': 'an HDF5 file, as Keras writes; only Caffe and PyTorch files are read',
    b'\x1f\x8b': 'a gzip archive; unpack it first',
    b'\x80': 'a pickle that torch.save did not write; it is not opened',
    b'<': 'a web page; the download has failed',
}
_SHOWN = 5  # names in a message about a file that is not recognised
_HASHED_AT_ONCE = 1 << 20  # bytes


@dataclass(frozen=True)
class Recognised:
    """A file's tensors, and which published file it is."""

    source: Source
    card: Card
    tensors: dict[str, Tensor]  # by the file's names, in the shapes that our network wants
    sha256: str


@dataclass(frozen=True)
class _Match:
    """How well a file fits one published file."""

    source: Source
    card: Card
    expected: Mapping[str, Shape]  # by the published file's names
    problems: list[str]
    shared: int  # names in both


def read_published(path: Path) -> tuple[str, dict[str, Tensor]]:
    """
    Read a file of another framework.

    :returns: its format, caffe or pytorch, and its tensors.
    :raises WeightsError: it is none of these, or damaged; nothing in it is run.
    """
    try:
        with path.open('rb') as file:
            start = file.read(len(LEGACY_START))
    except OSError as error:
        raise WeightsError(f'{path}: cannot be read: {error.strerror}') from error
    if start == LEGACY_START or start.startswith(ZIP_START):
        return 'pytorch', read_checkpoint(path)
    for other, meaning in _OTHER_FORMATS.items():
        if start.startswith(other):
            raise WeightsError(f'{path}: this is {meaning}')
    return 'caffe', read_caffemodel(path)


def recognise(path: Path, name: str = '') -> Recognised:
    """
    Find out which published file this is.

    :param name: of a source, to choose between those that have the same names; empty to find out.
    :raises WeightsError: the file cannot be read; or it fits no source, and what is missing, extra
        or misshapen is told, or what there is that these networks share; or it fits several.
    """
    if name and name not in SOURCES:
        raise WeightsError(f'no weights are known as {name!r}; known are {", ".join(SOURCES)}')
    kind, tensors = read_published(path)
    wanted = [SOURCES[name]] if name else [s for s in SOURCES.values() if s.format == kind]
    if name and SOURCES[name].format != kind:
        raise WeightsError(
            f'{path}: this is a {kind} file; {name} is a {SOURCES[name].format} one'
        )
    matches = [_match(source, tensors) for source in wanted]
    fitting = [match for match in matches if not match.problems]
    if not fitting:
        raise WeightsError(f'{path}: {_explain(matches, kind, tensors, chosen=bool(name))}')
    digest = hash_file(path)
    by_values = [match for match in fitting if match.source.layout.accepts(tensors)]
    known = [
        match for match in by_values
        if match.source.sha256 and digest.startswith(match.source.sha256)
    ]  # fmt: skip
    chosen = known or by_values
    if len(chosen) != 1:
        names = ', '.join(match.source.name for match in chosen or fitting)
        problem = 'is one of' if chosen else 'has values that do not suit'
        raise WeightsError(f'{path}: it {problem} {names}; say which it is (--as NAME)')
    match = chosen[0]
    shaped = {
        theirs: tensors[theirs].reshape(shape)
        for theirs, shape in match.expected.items()
        if theirs in tensors
    }
    return Recognised(match.source, match.card, shaped, digest)


def convert(recognised: Recognised) -> tuple[nn.Module, Card]:
    """
    Fill our network from a recognised file.

    :returns: the network, in float32, and its card with the file's hash among the notes.
    :raises WeightsError: a value is not finite, or a fixed layer is another than was published.
    """
    layout = recognised.source.layout
    network = _on_meta(recognised.card)
    expected = network.state_dict()
    extra = dict(recognised.tensors)
    state = {}
    for ours, value in expected.items():
        theirs = layout.rename(ours)
        if theirs in extra:
            state[ours] = extra.pop(theirs).to(value.dtype)
        elif theirs:  # optional
            state[ours] = torch.zeros(value.shape, dtype=value.dtype)
    layout.finish(state, extra)
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    if broken:
        raise WeightsError(f'not every value is finite in {", ".join(broken)}')
    network.load_state_dict(state, assign=True)
    notes = {**recognised.card.notes, 'sha256': recognised.sha256}
    return network.eval(), replace(recognised.card, notes=notes)


def import_file(
    path: Path, out: Path, *, name: str = '', dtype: torch.dtype = torch.float32
) -> Card:
    """
    Convert a published file into one of ours.

    :param out: file to write, .safetensors.
    :param name: of the source; empty to find out.
    :param dtype: of the numbers in the new file.
    :raises WeightsError: as `recognise` and `convert`; nothing is written then.
    """
    recognised = recognise(path, name)
    try:
        network, card = convert(recognised)
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from error
    save_weights(out, network, card, dtype)
    return card


def hash_file(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    digest = sha256()
    with path.open('rb') as file:
        while part := file.read(_HASHED_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()


def _on_meta(card: Card) -> nn.Module:
    """Build a network that has shapes, but takes no memory."""
    with torch.device('meta'):
        return card.build()


def _match(source: Source, tensors: Mapping[str, Tensor]) -> _Match:
    card = source.card(tensors)
    layout = source.layout
    ours = {name: tuple(value.shape) for name, value in _on_meta(card).state_dict().items()}
    expected = {layout.rename(name): shape for name, shape in ours.items() if layout.rename(name)}
    expected |= layout.extra(ours)
    shapes = {
        name: _reshaped(tuple(value.shape), expected.get(name)) for name, value in tensors.items()
    }
    needed = {
        name: shape
        for name, shape in expected.items()
        if name in shapes or not layout.is_optional(name)
    }
    shared = sum(name in expected for name in shapes)
    return _Match(source, card, expected, misfits(needed, shapes), shared)


def _reshaped(shape: Shape, expected: Shape | None) -> Shape:
    """Return the expected shape where only sizes of one differ: old Caffe files have four."""
    if expected is not None and _without_ones(shape) == _without_ones(expected):
        return expected
    return shape


def _without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _explain(
    matches: list[_Match], kind: str, tensors: Mapping[str, Tensor], *, chosen: bool
) -> str:
    """Say why a file is none of the sources, or why it is not quite the nearest one."""
    nearest = min(matches, key=lambda match: len(match.problems))
    if chosen or 2 * nearest.shared > len(tensors):
        source = nearest.source
        return f'not {source.name} of {source.paper}: {"; ".join(nearest.problems)}'
    parts = [f'a {kind} file of {len(tensors)} tensors that fits no known network']
    most = max(matches, key=lambda match: match.shared)
    if most.shared:
        common = [name for name in tensors if name in most.expected]
        parts.append(f'{most.shared} names are those of {most.source.name}: {_list(common)}')
    else:
        parts.append(f'none of its names is known; they are {_list(list(tensors))}')
    parts.append(f'known are {", ".join(match.source.name for match in matches)}')
    return '; '.join(parts)


def _list(names: list[str]) -> str:
    return ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')
