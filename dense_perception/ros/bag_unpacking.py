"""
Compressed recordings, unpacked to a size that is bounded.

A few bytes of zstd may stand for gigabytes; rosbags itself takes them all.
"""

from pathlib import Path
import shutil
import sys
from tempfile import gettempdir
from typing import Any, BinaryIO

from dense_perception.errors import InputError
from rosbags.rosbag2.storage_mcap import DECOMPRESSORS
import yaml

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd  # type: ignore[import-untyped, unused-ignore]

MOST_UNPACKED = 256 * 2**30  # bytes of all files of a recording; 24 minutes of 1080p at 30 Hz
MOST_AT_ONCE = 2**30  # bytes of a message or a chunk; they are unpacked in memory
_LEFT_FREE = 2**30  # bytes of the disk to which files are unpacked
_BLOCK = 2**20


def unpacked(data: bytes, most: int | None = None) -> bytes:
    """
    Unpack a message or a chunk.

    :param data: zstd frames.
    :param most: bytes that are taken; None is MOST_AT_ONCE.
    :raises InputError: it would take more, or ends early.
    :raises zstd.ZstdError: no such frames.
    """
    most = MOST_AT_ONCE if most is None else most
    parts = []
    while data:
        frame = zstd.ZstdDecompressor()
        part = frame.decompress(data, most + 1)
        most -= len(part)
        if most < 0:
            raise InputError(f'{len(data)} bytes of zstd unpack to more than is taken at once')
        if not frame.eof:
            raise InputError(f'{len(data)} bytes of zstd end early')
        parts.append(part)
        data = frame.unused_data
    return b''.join(parts)


def _chunk(data: bytes, size: int) -> bytes:
    """Unpack a chunk of an mcap file, which tells its size; rosbags compares it afterwards."""
    if size > MOST_AT_ONCE:
        raise InputError(f'a chunk of {size} bytes; at most {MOST_AT_ONCE} are taken at once')
    return unpacked(data, size)


# The one place at which rosbags lets chunks be unpacked otherwise.
DECOMPRESSORS['zstd'] = _chunk


def unpack_files(folder: Path, target: Path, *, cut: bool) -> Path:
    """
    Unpack the files of a recording that are compressed as a whole.

    :param folder: of the recording.
    :param target: new folder.
    :param cut: take what is there of a file that ends early.
    :returns: `target`, or `folder` where nothing is to be unpacked.
    :raises InputError: the files would take more than MOST_UNPACKED bytes, or than the disk has.
    """
    metadata = _compressed(folder / 'metadata.yaml')
    if metadata is None:
        return folder
    target.mkdir()
    most = min(MOST_UNPACKED, shutil.disk_usage(gettempdir()).free - _LEFT_FREE)
    information = metadata['rosbag2_bagfile_information']
    for name in information['relative_file_paths']:
        file = folder / Path(name).name
        most -= _unpack_file(file, target / file.stem, most, cut=cut)
    information['relative_file_paths'] = [
        Path(name).stem for name in information['relative_file_paths']
    ]
    information['compression_mode'] = information['compression_format'] = ''
    (target / 'metadata.yaml').write_text(yaml.safe_dump(metadata), encoding='utf-8')
    return target


def _compressed(file: Path) -> dict[str, Any] | None:
    """Read metadata if it tells of compressed files; what is wrong with it tells the reader."""
    try:
        metadata = yaml.safe_load(file.read_text(encoding='utf-8'))
        information = metadata['rosbag2_bagfile_information']
        mode = str(information.get('compression_mode', '')).lower()
        known = information.get('compression_format') == 'zstd'
        return metadata if mode == 'file' and known else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None


def _unpack_file(file: Path, target: Path, most: int, *, cut: bool) -> int:
    """Unpack a file; returns its size."""
    with file.open('rb') as packed, target.open('wb') as opened:
        try:
            with zstd.open(packed, 'rb') as source:
                return _copy(source, opened, most, file)
        except EOFError as error:
            if not cut:
                raise InputError(f'{file}: ends early') from error
            return opened.tell()


def _copy(source: zstd.ZstdFile, target: BinaryIO, most: int, file: Path) -> int:
    size = 0
    while block := source.read(_BLOCK):
        size += len(block)
        if size > most:
            raise InputError(
                f'{file}: unpacks to more than the {max(0, most)} bytes that are left to it, of '
                f'{MOST_UNPACKED} for a recording, or of the disk; unpack it yourself'
            )
        target.write(block)
    return size
