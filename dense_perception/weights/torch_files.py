"""
Read the tensors of a PyTorch checkpoint without running what it may hold.

`torch.load` with `weights_only` calls no function that a file names, but makes storages as large
as a file says. So the file's pickle is looked through first: it must be made of plain tensors, and
these must not hold more than the file does.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
import pickle
import pickletools
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZIP_STORED, ZipFile

from dense_perception.errors import WeightsError
import torch
from torch import Tensor

ZIP_START = b'PK\x03\x04'  # of a file that torch 1.6 or later wrote
LEGACY_START = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # of a file of earlier versions
_LEGACY_PICKLES = 5  # magic number, protocol, system, what was saved, keys of the storages
_LARGEST_VERSION = 1001  # of torch's own format, which every old file states
_MOST_OPERATIONS = 1_000_000  # in one pickle; state dicts have tens for each tensor
_ERRORS = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError,
    AttributeError, AssertionError, OverflowError, MemoryError, BadZipFile, OSError,
)  # fmt: skip

# All that a state dict of plain tensors names, next to the storage classes of torch.
_ALLOWED = {
    'collections OrderedDict',
    'torch Size',
    'torch._utils _rebuild_parameter',
    'torch._utils _rebuild_tensor',
    'torch._utils _rebuild_tensor_v2',
    'torch.nn.parameter Parameter',
}
_STORAGES = {
    f'torch {kind}Storage'
    for kind in ('BFloat16', 'Bool', 'Byte', 'Char', 'Double', 'Float', 'Half', 'Int', 'Long')
}
_INTEGERS = {'BININT', 'BININT1', 'BININT2', 'INT', 'LONG', 'LONG1', 'LONG4'}
_MEMORIES = {'BINPUT', 'LONG_BINPUT', 'PUT', 'MEMOIZE'}


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """
    Read the state dict of a PyTorch file.

    :returns: tensor per name, on the CPU; a state dict inside a larger dict is found, and the
        prefix `module.` of networks that ran on several devices is dropped.
    :raises WeightsError: the file cannot be read, is damaged, or holds more than plain tensors.
    """
    try:
        with path.open('rb') as file:
            _check(file, path)
        content = torch.load(path, map_location='cpu', weights_only=True)
    except _UnsafeError as error:
        raise WeightsError(f'{path}: not loaded: {error}') from error
    except _ERRORS as error:
        first_line = str(error).partition('\n')[0]
        raise WeightsError(f'{path}: no PyTorch file, or a damaged one: {first_line}') from error
    if isinstance(content, Mapping) and isinstance(content.get('state_dict'), Mapping):
        content = content['state_dict']
    if not isinstance(content, Mapping):
        raise WeightsError(f'{path}: it holds a {type(content).__name__}, not a state dict')
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        problem = f'{", ".join(others[:5])} are no tensors' if others else 'it is empty'
        raise WeightsError(f'{path}: no state dict: {problem}')
    return {str(name).removeprefix('module.'): value for name, value in content.items()}


class _UnsafeError(Exception):
    """Why a file is not loaded."""


def _check(file: BinaryIO, path: Path) -> None:
    """Look through a file's pickles, whichever form the file has."""
    size = path.stat().st_size
    start = file.read(len(LEGACY_START))
    file.seek(0)
    if start == LEGACY_START:
        file.seek(len(start))
        for _ in range(_LEGACY_PICKLES - 1):
            _check_pickle(file, size)
        return
    if not start.startswith(ZIP_START):
        raise _UnsafeError('it does not start as a file of torch.save does')
    with ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != ZIP_STORED for entry in entries):
            raise _UnsafeError('parts of it are compressed, which torch.save never does')
        if sum(entry.file_size for entry in entries) > size:
            raise _UnsafeError('its parts are larger than the file')
        pickles = [entry for entry in entries if entry.filename.endswith('data.pkl')]
        if len(pickles) != 1:
            raise _UnsafeError(f'it has {len(pickles)} data.pkl; a file of torch.save has one')
        with archive.open(pickles[0]) as content:
            _check_pickle(content, size)


def _check_pickle(file: Any, size: int) -> None:
    """
    Read a pickle's operations, without performing them.

    :param size: of the whole file; no number in it can be larger.
    :raises _UnsafeError: it names something else than plain tensors, or more than there is.
    """
    previous, items, number = '', 0, 0
    for name, argument in _operations(file, size):
        if name == 'GLOBAL' and argument not in _ALLOWED | _STORAGES:
            raise _UnsafeError(
                f'it names {str(argument).replace(" ", ".")}; only plain tensors are read'
            )
        if name in ('STACK_GLOBAL', 'INST', 'OBJ', 'NEWOBJ_EX') or name.startswith('EXT'):
            raise _UnsafeError(f'it calls what it names ({name}); only plain tensors are read')
        if name in _INTEGERS:
            number = int(argument)
            if number > max(size, _LARGEST_VERSION):
                raise _UnsafeError(f'it speaks of {number}, but has only {size} bytes')
        elif name in _MEMORIES and previous in _INTEGERS:
            raise _UnsafeError('it stores a number under a name, which torch.save never does')
        elif name in ('BINPERSID', 'PERSID'):
            items += number  # of a storage, the last number of the tuple before it
            if items > size:
                raise _UnsafeError(f'its tensors have {items} numbers or more in {size} bytes')
        previous = name


class _Within:
    """
    A file of which never more is asked than is left of it.

    Python makes room for all that a pickle speaks of before it looks whether that is there.
    """

    def __init__(self, file: Any, size: int) -> None:
        self._file, self._size = file, size
        self.readline, self.tell = file.readline, file.tell

    def read(self, count: int) -> bytes:
        """Return the next bytes, as many as there are."""
        content: bytes = self._file.read(min(count, max(0, self._size - self._file.tell())))
        return content


def _operations(file: Any, size: int) -> Iterator[tuple[str, Any]]:
    within: Any = _Within(file, size)  # genops takes what has read, readline and tell
    for index, (operation, argument, _) in enumerate(pickletools.genops(within)):
        if index >= _MOST_OPERATIONS:
            raise _UnsafeError(f'its pickle has more than {_MOST_OPERATIONS} operations')
        yield operation.name, argument
