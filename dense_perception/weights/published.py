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
    'drive': Published(
        file='drive.safetensors',
        sha256='9b6b7eae6933b03438ee16f009339803022cb34060350b2b3516d35d488b9647',
        recipe='segmentation.yaml',
        data=(
            'CamVid train (Brostow et al., 2009; research use) without the 8 frames within five '
            'seconds of val, and rendered drives, seeds 0 to 119. Started from the quarter-width '
            'VGG-19 of Wang et al. (2020; MIT)'
        ),
        scores={'camvid val mean IoU': 0.669, 'rendered drives mean IoU': 0.486},
    ),
    'flow': Published(
        file='flow_simple.safetensors',
        sha256='420148ebc8b0348f2d89ae470d77cedc3fdb6e5283e5687108d664469f79f9d6',
        recipe='flow.yaml',
        data=(
            'Chairs-style pairs cut from CamVid train (Brostow et al., 2009; research use) and '
            'rendered drives, seeds 0 to 59; random start'
        ),
        scores={
            'true flow pairs, mean end-point error px': 5.62,
            'rendered drives end-point error px': 5.08,
        },
    ),
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
