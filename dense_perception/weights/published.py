"""The weights that ship with the package."""

from dataclasses import dataclass
from pathlib import Path

from dense_perception.errors import WeightsError

FOLDER = Path(__file__).parent / 'files'


@dataclass(frozen=True)
class Published:
    """Record of one shipped file."""

    file: str  # in FOLDER
    sha256: str
    recipe: str  # in config/
    data: str  # what it was trained on, and the licence of that
    scores: dict[str, float]  # measured with the shipped file


PUBLISHED: dict[str, Published] = {
    'drive': Published('drive.safetensors', '', 'segmentation.yaml', '', {}),
    'flow': Published('flow_simple.safetensors', '', 'flow.yaml', '', {}),
}


def find_weights(name: str) -> Path:
    """
    Return the path of weights that are named or are a file.

    :param name: a name in `PUBLISHED`, or the path of a file.
    :raises WeightsError: neither.
    """
    if name in PUBLISHED:
        return FOLDER / PUBLISHED[name].file
    path = Path(name).expanduser()
    if not path.is_file():
        known = ', '.join(PUBLISHED)
        raise WeightsError(f'{name}: no such file, and no shipped weights; those are {known}')
    return path
