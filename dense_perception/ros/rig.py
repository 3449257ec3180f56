"""The cameras of a rig, as a file names them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dense_perception.errors import SettingError
from dense_perception.settings import PerceptionSettings, read_mapping, setting, Settings


@dataclass(frozen=True)
class RigCamera(Settings):
    """Where one camera of a rig publishes."""

    namespace: str = setting('', 'namespace of the camera; empty: its name, as in /front')
    image_topic: str = setting('image_raw', 'image topic in that namespace')
    info_topic: str = setting('camera_info', 'topic of its calibration in that namespace')


def read_rig(path: Path) -> dict[str, RigCamera]:
    """
    Read a file of the form of `config/rig.yaml`.

    :returns: the cameras by name, in the order of the file.
    :raises SettingError: no such file, no cameras in it, or a name or value that cannot be.
    """
    content = read_mapping(path)
    cameras = content.get('cameras')
    if not isinstance(cameras, dict) or set(content) != {'cameras'} or not cameras:
        raise SettingError(f'{path}: must hold `cameras:` alone, with a name for each camera')
    PerceptionSettings.from_mapping({'cameras': list(cameras)}, str(path))
    rig = {}
    for name, values in cameras.items():
        if not isinstance(values or {}, dict):
            raise SettingError(f'{path}: {name} is {values!r}; it must be names and values')
        rig[name] = RigCamera.from_mapping(values or {}, f'{path}: {name}')
    return rig


def remappings(rig: Mapping[str, RigCamera]) -> list[tuple[str, str]]:
    """Return what the topics that the node listens to become, as pairs of names."""
    pairs = []
    for name, camera in rig.items():
        place = camera.namespace.rstrip('/') or f'/{name}'
        image = f'{place}/{camera.image_topic}'
        pairs += [
            (f'{name}/image', image),
            (f'{name}/image/compressed', f'{image}/compressed'),
            (f'{name}/camera_info', f'{place}/{camera.info_topic}'),
        ]
    return pairs
