"""Where the tables of measurements are kept: named by what was measured, the device, and torch."""

from collections.abc import Iterable, Sequence
import csv
import os
from pathlib import Path
import re

import cv2
from dense_perception.evaluation.report_run import processor
import numpy as np
import torch


def device_name(device: torch.device) -> str:
    """Return the name of the processor, or of the CUDA device."""
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else processor()


def machine(device: torch.device) -> str:
    """Return what times depend on: device, threads, versions and what else it does now."""
    return (
        f'{device_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}, '
        f'numpy {np.__version__}, OpenCV {cv2.__version__}, '
        f'load {os.getloadavg()[0]:.1f} at the start'
    )


def table_path(kind: str, device: torch.device, folder: Path) -> Path:
    """
    Return where a table goes, such as `bench_Some_CPU_torch2.14.1.csv`.

    :param kind: what was measured, such as bench; without an underscore.
    """
    words = f'{kind}_{device_name(device)}_torch{torch.__version__}'
    return folder / f'{re.sub(r"[^A-Za-z0-9.-]+", "_", words)}.csv'


def newest_table(kind: str, folder: Path) -> Path | None:
    """Return the table of a kind that was written last, of whatever device; None without one."""
    found = folder.glob(f'{kind}_*_torch*.csv')
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def write_table(
    path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str
) -> None:
    """Write a table as CSV; the title is the name of a last column, which is empty."""
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow([*columns, title])
        writer.writerows([*row, ''] for row in rows)
