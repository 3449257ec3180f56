"""What a run tells about itself: a table, and curves for TensorBoard."""

from collections.abc import Mapping
import csv
from pathlib import Path
from typing import Any

LOG = 'log.csv'  # in the run's folder
CURVES = 'tensorboard'  # folder in the run's folder


class Record:
    """The table `log.csv`, with a row for each evaluation, and TensorBoard's curves."""

    def __init__(self, folder: Path, step: int) -> None:
        """
        Go on from a step; what an interrupted run wrote about later ones is forgotten.

        :param folder: of the run.
        :param step: where the run stands.
        """
        self._path = folder / LOG
        self._rows: list[dict[str, Any]] = []
        if step and self._path.exists():
            with self._path.open(newline='', encoding='utf-8') as file:
                self._rows = [row for row in csv.DictReader(file) if int(row['step']) <= step]
        self._curves = _curves(folder / CURVES, step)
        self.curves = self._curves is not None  # whether TensorBoard is there

    def close(self) -> None:
        """Write what is still in memory."""
        if self._curves is not None:
            self._curves.close()

    def curve(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the curve of each name."""
        if self._curves is not None:
            for name, value in values.items():
                self._curves.add_scalar(name, value, step)

    def row(self, values: Mapping[str, float]) -> None:
        """Add a row to the table; its `step` says which step it is about."""
        self._rows.append(dict(values))
        names = list(dict.fromkeys(name for row in reversed(self._rows) for name in row))
        partial = self._path.with_suffix('.partial')
        with partial.open('w', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self._rows)
        partial.replace(self._path)


def _curves(folder: Path, step: int) -> Any:
    """Return a writer of TensorBoard's files; None where that is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
