"""
Read the tensors of a Caffe file (`.caffemodel`), whatever its layers are.

Only the fields that hold weights are described here, with the numbers that Caffe's own description
gives them; all else in a file is skipped. Numbers that a field holds in a row are the same bytes
as one byte string, and as such they are read: no Python object is made for each.
"""

from collections.abc import Iterator
from functools import cache
import math
import mmap
from pathlib import Path
from typing import Any

from dense_perception.errors import WeightsError

# The stubs of protobuf are in a namespace package, which mypy is told not to look for.
from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message,
    message_factory,
)
import numpy as np
import torch
from torch import Tensor

LARGEST_FILE = 2**31 - 1  # bytes; a protobuf message is never larger
_MOST_MESSAGES = 10_000  # layers and blobs together; the largest networks have hundreds
_MOST_DIMENSIONS = 8
_LAYERS_V1, _LAYERS = 2, 100  # fields of NetParameter: before and since October 2014
_BLOBS = {_LAYERS_V1: 6, _LAYERS: 7}  # field of a layer that holds its blobs
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # wire types

_Field = descriptor_pb2.FieldDescriptorProto
# Message: fields, each with its number, type, whether it repeats, and the message that it holds.
_DESCRIPTION: dict[str, dict[str, tuple[int, int, bool, str]]] = {
    'BlobShape': {'dim': (1, _Field.TYPE_INT64, True, '')},
    'BlobProto': {
        'num': (1, _Field.TYPE_INT32, False, ''),
        'channels': (2, _Field.TYPE_INT32, False, ''),
        'height': (3, _Field.TYPE_INT32, False, ''),
        'width': (4, _Field.TYPE_INT32, False, ''),
        'data': (5, _Field.TYPE_BYTES, False, ''),  # packed float
        'shape': (7, _Field.TYPE_MESSAGE, False, 'BlobShape'),
        'double_data': (8, _Field.TYPE_BYTES, False, ''),  # packed double
    },
    'LayerParameter': {
        'name': (1, _Field.TYPE_BYTES, False, ''),
        'type': (2, _Field.TYPE_BYTES, False, ''),
        'blobs': (_BLOBS[_LAYERS], _Field.TYPE_MESSAGE, True, 'BlobProto'),
    },
    'V1LayerParameter': {
        'name': (4, _Field.TYPE_BYTES, False, ''),
        'blobs': (_BLOBS[_LAYERS_V1], _Field.TYPE_MESSAGE, True, 'BlobProto'),
    },
    'NetParameter': {
        'layers': (_LAYERS_V1, _Field.TYPE_MESSAGE, True, 'V1LayerParameter'),
        'layer': (_LAYERS, _Field.TYPE_MESSAGE, True, 'LayerParameter'),
    },
}


@cache
def net_parameter() -> type[Any]:
    """Return the message class of a whole file; its fields are those of `_DESCRIPTION`."""
    package = 'dense_perception.caffe'
    file = descriptor_pb2.FileDescriptorProto(
        name='dense_perception/caffe.proto', package=package, syntax='proto2'
    )
    for name, fields in _DESCRIPTION.items():
        described = file.message_type.add(name=name)
        for field_name, (number, kind, repeats, holds) in fields.items():
            field = described.field.add(name=field_name, number=number, type=kind)
            field.label = _Field.LABEL_REPEATED if repeats else _Field.LABEL_OPTIONAL
            if holds:
                field.type_name = f'.{package}.{holds}'
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName(f'{package}.NetParameter')
    if hasattr(message_factory, 'GetMessageClass'):
        return message_factory.GetMessageClass(found)
    # Before protobuf 4.22, as in Ubuntu 22.04 and 24.04.
    return message_factory.MessageFactory(pool).GetPrototype(found)


def read_caffemodel(path: Path) -> dict[str, Tensor]:
    """
    Read every blob of a Caffe file.

    Nothing is allocated beyond the size of the file, whatever sizes it claims.

    :returns: float32 tensor per layer and place, `conv1_1.0` (weight), `conv1_1.1` (bias). Shapes
        are those of the file; before October 2014 all have four dimensions.
    :raises WeightsError: the file cannot be read, is no Caffe file, or is damaged.
    """
    try:
        if not 0 < path.stat().st_size <= LARGEST_FILE:
            raise WeightsError(f'{path}: no Caffe file; those have 1 to {LARGEST_FILE} bytes')
        with (
            path.open('rb') as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            memoryview(content) as view,
        ):
            _check_messages(view)
            net = net_parameter().FromString(view)
    except OSError as error:
        raise WeightsError(f'{path}: cannot be read: {error.strerror}') from error
    except (_DamagedError, message.DecodeError) as error:
        raise WeightsError(f'{path}: no Caffe file, or a damaged one: {error}') from error
    tensors: dict[str, Tensor] = {}
    for layer in (*net.layers, *net.layer):
        name = layer.name.decode('utf-8', 'backslashreplace')
        for place, blob in enumerate(layer.blobs):
            full_name = f'{name}.{place}'
            if not name or full_name in tensors:
                problem = f'two layers are named {name}' if name else 'a layer has no name'
                raise WeightsError(f'{path}: {problem}; layers with weights need one each')
            try:
                tensors[full_name] = _tensor(blob)
            except _DamagedError as error:
                raise WeightsError(f'{path}: {full_name}: {error}') from error
    if not tensors:
        raise WeightsError(f'{path}: no layer of this Caffe file has weights')
    return tensors


class _DamagedError(Exception):
    """What is wrong, without the file's name."""


def _tensor(blob: Any) -> Tensor:
    """Copy a blob, after its size has been compared with its shape."""
    if blob.HasField('shape'):
        shape = tuple(blob.shape.dim[: _MOST_DIMENSIONS + 1])
    else:
        shape = (blob.num, blob.channels, blob.height, blob.width)
    if len(shape) > _MOST_DIMENSIONS or any(size < 1 for size in shape):
        raise _DamagedError(f'its shape is {shape}')
    doubles = not blob.data and blob.double_data
    content, kind = (blob.double_data, '<f8') if doubles else (blob.data, '<f4')
    items, rest = divmod(len(content), 8 if doubles else 4)
    if rest or items != math.prod(shape):
        raise _DamagedError(f'its shape is {shape}, but it holds {items} numbers')
    return torch.from_numpy(np.frombuffer(content, kind).astype(np.float32).reshape(shape))


def _check_messages(content: memoryview) -> None:
    """
    Walk over layers and blobs before they are parsed, for each becomes an object.

    :raises _DamagedError: they are too many, or a length leads beyond its message.
    """
    count = 0
    for field, kind, start, end in _fields(content, 0, len(content)):
        if field in _BLOBS and kind == _LENGTH:
            inner = _fields(content, start, end)
            count += 1 + sum(number == _BLOBS[field] for number, *_ in inner)
            if count > _MOST_MESSAGES:
                raise _DamagedError(f'it has more than {_MOST_MESSAGES} layers and blobs')


def _fields(content: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Iterate over a message's fields: number, wire type, and where the value starts and ends."""
    place = start
    for _ in range(_MOST_MESSAGES):
        if place >= end:
            return
        tag, value = _varint(content, place, end)
        kind = tag & 7
        if kind == _VARINT:
            after = _varint(content, value, end)[1]
        elif kind == _LENGTH:
            length, value = _varint(content, value, end)
            after = value + length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            after = value + (8 if kind == _EIGHT_BYTES else 4)
        else:
            raise _DamagedError(f'byte {place} starts no field')
        if tag < 8 or after > end:
            raise _DamagedError(f'the field at byte {place} ends beyond what holds it')
        yield tag >> 3, kind, value, after
        place = after
    raise _DamagedError(f'a message has more than {_MOST_MESSAGES} fields')


def _varint(content: memoryview, place: int, end: int) -> tuple[int, int]:
    """Return a number of seven bits per byte, and where it ends."""
    value = 0
    for index in range(10):  # no number has more bytes
        if place + index >= end:
            raise _DamagedError('it ends within a number')
        byte = content[place + index]
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, place + index + 1
    raise _DamagedError(f'byte {place} starts a number that does not end')
