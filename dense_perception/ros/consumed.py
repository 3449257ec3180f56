"""What consumers make of the messages of a perception node."""

from collections.abc import Sequence
import json
from typing import Any

from builtin_interfaces.msg import Time as TimeMessage
from dense_perception.errors import InputError
from dense_perception.geometry.camera import Camera
from dense_perception.labels import LabelClass, LabelSet, UNLABELLED
from sensor_msgs.msg import CameraInfo

_KEPT = 4  # images whose messages are still coming; few, as each may be large


class Together:
    """Collects the messages of one image, which have one stamp, in whatever order they come."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._waiting: dict[tuple[int, int], dict[str, Any]] = {}  # oldest arrival first
        self.incomplete = 0  # images of which something never came

    def add(self, name: str, message: Any) -> tuple[Any, ...] | None:
        """Keep a message; returns all of its image in the order of the names, once they are."""
        key = _key(message.header.stamp)
        image = self._waiting.setdefault(key, {})
        image[name] = message
        if len(image) == len(self._names):
            del self._waiting[key]
            return tuple(image[part] for part in self._names)
        if len(self._waiting) > _KEPT:
            # By arrival and not by stamp: after a jump back in time old stamps are the newest.
            del self._waiting[next(iter(self._waiting))]
            self.incomplete += 1
        return None


class Recent:
    """The last few messages of a topic, by stamp."""

    def __init__(self) -> None:
        self._messages: dict[tuple[int, int], Any] = {}

    def add(self, message: Any) -> None:
        """Keep a message, and let go of the oldest arrival."""
        key = _key(message.header.stamp)
        self._messages.pop(key, None)
        self._messages[key] = message
        if len(self._messages) > _KEPT:
            del self._messages[next(iter(self._messages))]

    def find(self, stamp: TimeMessage) -> Any | None:
        """Return the message of a stamp, None if there is none."""
        return self._messages.get(_key(stamp))


class KnownCamera:
    """A camera from its description, built anew only where the description has changed."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._camera: Camera | None = None

    def of(self, info: CameraInfo, *, rectified: bool = False) -> Camera:
        """
        Return the camera; the same object as before where its numbers are the same.

        :param info: of a whole image, such as `~/camera_info`.
        :param rectified: the image was rectified after it was taken.
        :raises InputError: it describes no calibrated camera.
        """
        arrays = (info.k, info.d, info.r, info.p)
        sizes = (rectified, info.width, info.height, info.distortion_model)
        key = (*sizes, *(tuple(array) for array in arrays))
        if self._camera is None or key != self._key:
            camera = Camera.from_info(info)
            self._camera = camera.rectified() if rectified else camera
            self._key = key
        return self._camera


def read_label_info(text: str) -> LabelSet:
    """
    Read the JSON of `~/label_info`.

    :raises InputError: it is not what `label_info_json` writes.
    """
    try:
        content = json.loads(text)
        classes = tuple(
            LabelClass(str(row['name']), (int(red), int(green), int(blue)))
            for row in content['classes']
            for red, green, blue in (row['color'],)
        )
        ids = [row['id'] for row in content['classes']]
        name = str(content['name'])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise InputError(
            f'label_info is {text[:60]!r}: {type(error).__name__}: {error}; it must be JSON with '
            'name and classes, each of id, name and color'
        ) from error
    if not 0 < len(classes) <= UNLABELLED or ids != list(range(len(classes))):
        raise InputError(
            f'label_info {name[:60]!r} has ids {str(ids)[:60]}; they must be 0, 1, 2 ... and at '
            f'most {UNLABELLED} of them'
        )
    for entry in classes:
        if not all(0 <= part <= 255 for part in entry.color):
            raise InputError(
                f'label_info {name[:60]!r} has colour {str(entry.color)[:60]} of '
                f'{entry.name[:60]!r}; each part must be 0 to 255'
            )
    return LabelSet(name, classes)


def _key(stamp: TimeMessage) -> tuple[int, int]:
    return stamp.sec, stamp.nanosec
