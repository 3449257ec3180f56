"""Built engines kept on disk, each with a record of what it was built from and for."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
import hashlib
import json
from pathlib import Path
import shutil
import tempfile

_RECORD = 'record.json'

Key = Mapping[str, object]  # JSON values: everything that decides what is built


@dataclass(frozen=True)
class Cache:
    """
    A folder of built engines.

    An entry counts only while its record names the same key and its files have the hashes that
    they were written with; whatever else lies there is built anew.
    """

    folder: Path

    def find(self, key: Key) -> Path | None:
        """Return the folder of an entry, or None where there is none or it is damaged."""
        entry = self._entry(key)
        try:
            record = json.loads((entry / _RECORD).read_text(encoding='utf-8'))
            whole = record == {'key': key, 'files': _hashes(entry)}
        except (OSError, ValueError, RecursionError):  # the last: of a record that nests deeply
            return None
        return entry if whole else None

    def make(self, key: Key, build: Callable[[Path], None]) -> Path:
        """
        Build an entry in place of any that is there.

        :param build: writes files into the folder that it is given.
        :raises OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix='partial-', dir=self.folder))
        try:
            build(partial)
            record = {'key': key, 'files': _hashes(partial)}
            (partial / _RECORD).write_text(json.dumps(record, indent=1), encoding='utf-8')
            return self._put(key, partial)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _put(self, key: Key, partial: Path) -> Path:
        entry = self._entry(key)
        shutil.rmtree(entry, ignore_errors=True)
        with suppress(FileNotFoundError):
            entry.unlink(missing_ok=True)  # a file of that name
        try:
            partial.rename(entry)
        except OSError:
            # Another process may have built the same in the meantime.
            if self.find(key) is None:
                raise
        return entry

    def _entry(self, key: Key) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / f'{key.get("engine", "entry")}-{digest[:16]}'


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file but the record."""
    hashes = {}
    for path in sorted(folder.iterdir()):
        if path.name != _RECORD:
            digest = hashlib.sha256()
            with path.open('rb') as file:
                while piece := file.read(1 << 22):
                    digest.update(piece)
            hashes[path.name] = digest.hexdigest()
    return hashes
