"""Recordings that were cut short, made readable up to there."""

from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
import sqlite3
import struct
from typing import Any

_MCAP_MAGIC = b'\x89MCAP0\r\n'
# A footer without summary: operation 2 of 20 bytes, offsets and checksum all zero.
_MCAP_END = b'\x02' + struct.pack('<Q', 20) + bytes(20) + _MCAP_MAGIC
_SQLITE_MAGIC = b'SQLite format 3\0'
_SQLITE_TABLES = ('schema', 'metadata', 'topics', 'message_definitions')


def is_cut(file: Path) -> bool:
    """Whether an mcap or sqlite3 file begins as one and does not go on to its end."""
    check = {'.mcap': _is_cut_mcap, '.db3': _is_cut_sqlite}.get(file.suffix)
    try:
        return check is not None and check(file)
    except OSError:  # the reader tells of it
        return False


def mend(file: Path, copy: Path) -> str:
    """
    Copy what is whole of a file that was cut short, as a whole file.

    :param copy: does not exist yet.
    :returns: what was lost, for people to read.
    :raises OSError: it cannot be read or written.
    :raises sqlite3.Error: not even the list of topics is left.
    """
    if file.suffix == '.mcap':
        lost = _mend_mcap(file, copy)
        return f'cut short; its last {lost} bytes are lost, what is before is read'
    return f'cut short; the {_mend_sqlite(file, copy)} messages before the cut are read'


def _is_cut_mcap(file: Path) -> bool:
    with file.open('rb') as opened:
        if opened.read(len(_MCAP_MAGIC)) != _MCAP_MAGIC:
            return False
        opened.seek(max(0, file.stat().st_size - len(_MCAP_END)))
        end = opened.read()
    return end[:1] != b'\x02' or not end.endswith(_MCAP_MAGIC)


def _mend_mcap(file: Path, copy: Path) -> int:
    """Copy the whole records and end the file; returns how many bytes are left out."""
    size = file.stat().st_size
    with file.open('rb') as source, copy.open('wb') as target:
        target.write(source.read(len(_MCAP_MAGIC)))
        while len(head := source.read(9)) == 9:
            length = struct.unpack('<xQ', head)[0]
            # Operations 2 and 15 begin the end of the data; the index behind it may be cut.
            if head[0] in (0x02, 0x0F) or source.tell() + length > size:
                break
            target.write(head)
            target.write(source.read(length))
        lost = size - target.tell()
        target.write(_MCAP_END)
    return lost


def _is_cut_sqlite(file: Path) -> bool:
    with file.open('rb') as opened:
        head = opened.read(100)
    if len(head) < 100 or not head.startswith(_SQLITE_MAGIC):
        return False
    (pages,) = struct.unpack_from('>I', head, 28)
    return pages * _page_bytes(head) > file.stat().st_size


def _page_bytes(head: bytes) -> int:
    size = int(struct.unpack_from('>H', head, 16)[0])
    return 65536 if size == 1 else size


def _mend_sqlite(file: Path, copy: Path) -> int:
    """
    Copy the messages in the order of their ids up to the first that is not whole.

    The index by time is made anew, as its pages lie everywhere in the file.

    :returns: how many messages were copied.
    """
    pages = copy.with_name(f'{copy.name}.pages')
    _copy_whole_pages(file, pages)
    try:
        source = sqlite3.connect(f'{pages.as_uri()}?immutable=1', uri=True)
        with closing(source), closing(sqlite3.connect(copy)) as target:
            for table in _SQLITE_TABLES:
                _copy_table(source, target, table)
            kept = _copy_table(source, target, 'messages', 'ORDER BY id')
            target.execute('CREATE INDEX timestamp_idx ON messages (timestamp)')
            target.commit()
    finally:
        pages.unlink()
    return kept


def _copy_whole_pages(file: Path, copy: Path) -> None:
    """Copy whole pages and have the header tell their number, so that others are missed."""
    with file.open('rb') as source, copy.open('wb') as target:
        head = source.read(100)
        size = _page_bytes(head)
        count = file.stat().st_size // size
        source.seek(0)
        for _ in range(count):
            target.write(source.read(size))
        target.seek(28)
        target.write(struct.pack('>I', count))


def _copy_table(
    source: sqlite3.Connection, target: sqlite3.Connection, table: str, order: str = ''
) -> int:
    """Copy the rows of a table up to a damage; returns their number, 0 if there is no table."""
    columns = [str(row[1]) for row in source.execute(f'PRAGMA table_info({table})')]
    if not columns:
        return 0
    names = ', '.join('"{}"'.format(name.replace('"', '""')) for name in columns)
    target.execute(f'CREATE TABLE {table} ({names})')
    marks = ', '.join('?' for _ in columns)
    rows = _until_damage(source, f'SELECT {names} FROM {table} NOT INDEXED {order}')
    kept = target.executemany(f'INSERT INTO {table} VALUES ({marks})', rows)
    return max(0, kept.rowcount)


def _until_damage(source: sqlite3.Connection, query: str) -> Iterator[tuple[Any, ...]]:
    with suppress(sqlite3.DatabaseError):
        yield from source.execute(query)
