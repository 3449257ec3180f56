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
    curve: str  # losses and scores while it was trained, a CSV file of the repository
    data: str  # what it was trained on
    licence: str  # of that data
    scores: dict[str, float]  # measured with the shipped file


_CAMVID = 'CamVid train (Brostow et al., 2009)'
_CAMVID_LICENCE = 'CamVid: research use'

PUBLISHED: dict[str, Published] = {
    'drive': Published(
        file='drive.safetensors',
        sha256='7e5617222947432bfd74fc1d23e67b561b68912e214f26a95d73257d6cfd06dd',
        recipe='segmentation.yaml',
        curve='benchmark/training_segmentation.csv',
        data=(
            f'{_CAMVID} without the 8 frames within five seconds of val, and rendered drives, '
            'seeds 0 to 249. Started from the quarter-width VGG-19 of Wang et al. (2020)'
        ),
        licence=f'{_CAMVID_LICENCE}; VGG-19: MIT',
        scores={
            'camvid val mean IoU': 0.6962,
            'camvid val mean IoU in bfloat16': 0.6959,
            'camvid val mean IoU in float16': 0.6962,
            'camvid val mean IoU in OpenVINO int8': 0.6946,
            'rendered drives mean IoU': 0.572,
        },
    ),
    'flow': Published(
        file='flow_simple.safetensors',
        sha256='420148ebc8b0348f2d89ae470d77cedc3fdb6e5283e5687108d664469f79f9d6',
        recipe='flow.yaml',
        curve='benchmark/training_flow.csv',
        data=f'Chairs-style pairs cut from {_CAMVID} and rendered drives, seeds 0 to 59',
        licence=_CAMVID_LICENCE,
        scores={
            'true flow pairs end-point error px': 5.62,
            'true flow pairs end-point error px in bfloat16': 5.62,
            'true flow pairs end-point error px in float16': 5.62,
            'chairs-style pairs end-point error px': 9.84,
            'rendered drives end-point error px': 5.42,
        },
    ),
    'flow_corr': Published(
        file='flow_corr.safetensors',
        sha256='d9b9b5fa12a14feb84b3673a3207bc263b9ef88be7b478beb110296f8b288992',
        recipe='flow_corr.yaml',
        curve='benchmark/training_flow_corr.csv',
        data=f'Chairs-style pairs cut from {_CAMVID} and rendered drives, seeds 0 to 99',
        licence=_CAMVID_LICENCE,
        scores={
            'true flow pairs end-point error px': 7.70,
            'true flow pairs end-point error px in bfloat16': 7.70,
            'true flow pairs end-point error px in float16': 7.70,
            'chairs-style pairs end-point error px': 9.98,
            'rendered drives end-point error px': 6.72,
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
