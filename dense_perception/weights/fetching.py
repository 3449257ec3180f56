"""Fetch a file over HTTP: goes on where it stopped, and is checked before it gets its name."""

from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
import re
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from dense_perception.errors import WeightsError
from dense_perception.weights.caffe import LARGEST_FILE
from dense_perception.weights.importing import hash_file

_TIMEOUT_S = 30.0  # without a byte
_PART = 1 << 18  # bytes between two reports of progress
_AGENT = 'dense_perception'  # some servers refuse Python's own
_UNSATISFIABLE = 416  # HTTP status: nothing lies beyond what is here already

Progress = Callable[[int, int], None]  # bytes there, bytes in all or 0 if that is unknown


def _silent(done: int, total: int) -> None:
    pass


def fetch(url: str, path: Path, sha256: str = '', progress: Progress = _silent) -> str:
    """
    Fetch a file, or the rest of it.

    What has arrived is kept beside `path` as `.part` until the file is whole.

    :param sha256: of the file in hexadecimal, or the beginning of that; empty if it is not known.
    :param progress: called as bytes arrive.
    :returns: the file's SHA-256.
    :raises WeightsError: no such file or server, a broken transfer (to be tried again), a file of
        more than 2 GiB, or one with another hash, which is then deleted.
    """
    if urlsplit(url).scheme not in ('http', 'https'):
        raise WeightsError(f'{url}: the address must start with http:// or https://')
    part = path.with_name(path.name + '.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open('ab') as file:
            _receive(url, file, progress)
        digest = hash_file(part)
    except HTTPError as error:
        raise WeightsError(f'{url}: the server says {error.code} {error.reason}') from error
    except (OSError, HTTPException, ValueError) as error:
        raise WeightsError(
            f'{url}: {error}; what has arrived is kept, fetch again to go on'
        ) from error
    if not digest.startswith(sha256.lower()):
        part.unlink()
        raise WeightsError(f'{url}: its SHA-256 is {digest}, not {sha256}; it was deleted')
    part.replace(path)
    return digest


def _receive(url: str, file: BinaryIO, progress: Progress) -> None:
    """Append to a file what it lacks; start anew where the server cannot go on."""
    have = file.tell()
    headers = {'User-Agent': _AGENT, **({'Range': f'bytes={have}-'} if have else {})}
    try:
        response = urlopen(Request(url, headers=headers), timeout=_TIMEOUT_S)
    except HTTPError as error:
        if error.code == _UNSATISFIABLE and _size(error.headers.get('Content-Range')) == have:
            progress(have, have)
            return
        if error.code != _UNSATISFIABLE:
            raise
        file.truncate(0)  # it is longer than the server's file
        file.seek(0)
        _receive(url, file, progress)
        return
    with response:
        if response.status != 206 and have:
            file.truncate(0)
            file.seek(0)
            have = 0
        _copy(response, file, have, progress)


def _copy(response: HTTPResponse, file: BinaryIO, have: int, progress: Progress) -> None:
    length = response.headers.get('Content-Length')
    total = have + int(length) if length else 0
    if total > LARGEST_FILE:
        raise ValueError(f'it has {total} bytes; no file of weights here has over {LARGEST_FILE}')
    progress(have, total)
    while content := response.read(_PART):
        have += len(content)
        if have > LARGEST_FILE:
            raise ValueError(f'more than {LARGEST_FILE} bytes have come')
        file.write(content)
        progress(have, total)
    if total and have != total:
        raise ValueError(f'the transfer broke off after {have} of {total} bytes')


def _size(content_range: str | None) -> int:
    """Return the size that a header like `bytes */1000` names, -1 if it names none."""
    match = re.fullmatch(r'bytes [^/]*/(\d+)', content_range or '')
    return int(match[1]) if match else -1
