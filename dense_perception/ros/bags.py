"""Rosbag2 recordings, sqlite3 and mcap: raw messages in, camera drives out."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
import re
import shutil
import struct
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Final, NamedTuple

from builtin_interfaces.msg import Time
from dense_perception.arrays import Image
from dense_perception.data.drives import DriveFrame
from dense_perception.errors import InputError
from dense_perception.ros.bag_mending import is_cut, mend
from dense_perception.ros.bag_unpacking import unpack_files, unpacked
from dense_perception.ros.messages import color_message, labels_message
import numpy as np
from numpy.typing import NDArray
from rclpy.exceptions import InvalidTopicNameException
from rclpy.serialization import deserialize_message, serialize_message
from rclpy.validate_full_topic_name import validate_full_topic_name
from rosbags.interfaces import Connection, ConnectionExtRosbag2, QosDurability
from rosbags.rosbag2 import Reader, StoragePlugin, Writer, WriterError
from rosbags.typesys import get_typestore, Stores
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header
import yaml

IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')

# The newest metadata that Humble reads too; 9 writes QoS in a way that only Jazzy understands.
BAG_VERSION: Final = 8


class RawMessage(NamedTuple):
    """One message of a bag, as it was sent."""

    topic: str
    stamp_ns: int  # when it was recorded
    data: bytes  # CDR


@dataclass(frozen=True)
class Topic:
    """What a bag holds of one topic."""

    type_name: str  # package/msg/Name, also where the bag has the old package/Name
    count: int
    latched: bool  # offered as transient local


class Bag:
    """
    Read a rosbag2 recording: its folder, or a single .db3 or .mcap file without metadata.

    Use as a context manager.
    """

    def __init__(self, path: Path, *, mend: bool = False) -> None:
        """
        Name the recording.

        :param mend: read files that were cut short up to there, mcap by whole chunks and sqlite3
            by whole messages; `damage` then tells of it.
        """
        self.path = path
        self.damage: list[str] = []  # what was lost, with the name of its file
        self._mend = mend
        self._packed = False  # each message by itself
        self._copies: TemporaryDirectory[str] | None = None
        self._reader: Reader | None = None
        self._connections: list[Connection] = []

    def __enter__(self) -> 'Bag':
        """
        Open the recording.

        :raises InputError: no such file, not a ROS 2 recording, damaged, or not serialised as CDR.
        """
        try:
            with self._explained():
                self._open()
        except InputError:
            self._remove_copies()
            raise
        return self

    def _open(self) -> None:
        self._reader = Reader(self._readable())
        if self.path.is_dir():
            self._check_metadata()
        self._reader.open()
        storage = self._reader.storage
        # The folder's own list of topics is not used: it knows only metadata.yaml, where QoS
        # may be written otherwise than in the storage, and then no message matches a topic.
        storages = getattr(storage, 'storages', [storage])
        self._connections = [entry for part in storages for entry in part.connections]
        self._packed = storage.metadata.compression_mode == 'message'
        # So that messages come as they lie there; they are unpacked here, to a bounded size.
        storage.metadata = storage.metadata._replace(compression_mode=None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the recording."""
        if self._reader is not None and self._reader.is_open:
            self._reader.close()
        self._reader = None
        self._remove_copies()

    def _remove_copies(self) -> None:
        if self._copies is not None:
            self._copies.cleanup()
            self._copies = None

    @property
    def topics(self) -> dict[str, Topic]:
        """What the bag holds of each topic, sorted by name."""
        found: dict[str, Topic] = {}
        for entry in sorted(self._connections, key=lambda entry: entry.topic):
            before = found.get(entry.topic, Topic('', 0, False))
            found[entry.topic] = Topic(
                full_type_name(entry.msgtype),
                before.count + entry.msgcount,
                before.latched or _is_latched(entry),
            )
        return found

    def image_topics(self) -> list[str]:
        """Names of the topics with raw or compressed images."""
        return [name for name, topic in self.topics.items() if topic.type_name in IMAGE_TYPES]

    @property
    def start_ns(self) -> int:
        """When the first message was recorded; 0 for a bag without messages."""
        return self._opened().start_time if self._opened().message_count else 0

    @property
    def duration_ns(self) -> int:
        """From the first message to the last."""
        return max(0, self._opened().duration - 1)  # rosbags counts up to just after the last

    def messages(self, topics: Collection[str] = ()) -> Iterator[RawMessage]:
        """
        Read messages in the order of their recording.

        :param topics: names; empty for all.
        :raises InputError: no such topic, a topic that is not CDR, or damaged data.
        """
        known = self.topics
        if unknown := sorted(set(topics) - set(known)):
            raise InputError(
                f'{self.path}: no topic {", ".join(unknown)}; it has {", ".join(known) or "none"}'
            )
        wanted = [entry for entry in self._connections if not topics or entry.topic in topics]
        for entry in wanted:
            assert isinstance(entry.ext, ConnectionExtRosbag2)
            self._check_format(entry.topic, entry.ext.serialization_format)
        if not wanted:
            return
        with self._explained():
            for entry, stamp_ns, data in self._opened().messages(wanted):
                content = unpacked(data) if self._packed else bytes(data)
                yield RawMessage(entry.topic, stamp_ns, content)

    def connections(self) -> list[Connection]:
        """Return topics with their definitions and QoS, of a split recording only once."""
        return list({entry.topic: entry for entry in self._connections}.values())

    def _readable(self) -> Path:
        """Return the path to read: that of a copy where files are compressed, or cut short."""
        self._copies = TemporaryDirectory(prefix='dense_perception_')
        folder = Path(self._copies.name)
        path = unpack_files(self.path, folder / 'unpacked', cut=self._mend)
        return self._whole(path, folder / 'mended') if self._mend else path

    def _whole(self, path: Path, target: Path) -> Path:
        """Return the path of a copy in which files that were cut short have an end, if any was."""
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        cut = [file for file in files if is_cut(file)]
        if not cut:
            return path
        target.mkdir()
        for file in cut:
            name = self.path / file.name if path.is_dir() else self.path
            self.damage.append(f'{name}: {mend(file, target / file.name)}')
        if not path.is_dir():
            return target / path.name
        for file in files:
            if file not in cut:
                (target / file.name).symlink_to(file.resolve())
        return target

    def _opened(self) -> Reader:
        assert self._reader is not None, 'a Bag is read inside `with`'
        return self._reader

    def _check_metadata(self) -> None:
        """Name the topic that cannot be read; the reader names only the format."""
        metadata = yaml.safe_load((self.path / 'metadata.yaml').read_text(encoding='utf-8'))
        for entry in metadata['rosbag2_bagfile_information']['topics_with_message_count']:
            topic = entry['topic_metadata']
            self._check_format(topic['name'], topic['serialization_format'])

    def _check_format(self, topic: str, serialization_format: str) -> None:
        if serialization_format != 'cdr':
            raise InputError(
                f'{self.path}: {topic} is serialised as {serialization_format!r}; '
                "only 'cdr' can be read"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn whatever the reader meets in a bad file into an InputError that names the file."""
        try:
            yield
        except InputError:
            raise
        except FileNotFoundError as error:
            raise InputError(f'{self.path}: no such bag, or no metadata.yaml in it') from error
        except Exception as error:  # parsing damaged data fails in every way
            reason = str(error) or type(error).__name__
            raise InputError(f'{self.path}: not a readable ROS 2 bag: {reason}') from error


def stamp_of(data: bytes) -> int:
    """
    Return the stamp of a serialised message that begins with a std_msgs/Header.

    :param data: CDR: four bytes that tell the byte order, int32 seconds, uint32 nanoseconds, rest.
    :returns: nanoseconds.
    :raises InputError: it is too short.
    """
    if len(data) < 12:
        raise InputError(f'{len(data)} bytes that have no header')
    seconds, nanoseconds = struct.unpack_from(f'{"<" if data[1] & 1 else ">"}iI', data, 4)
    return int(seconds) * 10**9 + int(nanoseconds)


def message_class(type_name: str) -> type[Any]:
    """
    Find the Python class of a message type.

    :param type_name: such as sensor_msgs/msg/Image.
    :raises InputError: not such a name, or not installed.
    """
    name = re.fullmatch(r'(\w+)/msg/(\w+)', full_type_name(type_name), re.ASCII)
    if name is None:
        raise InputError(f'message type is {type_name[:80]!r}; it must be package/msg/Name')
    try:
        found: type[Any] = getattr(import_module(f'{name[1]}.msg'), name[2])
    except (ImportError, AttributeError) as error:
        raise InputError(f'message type {type_name} is not installed') from error
    return found


def deserialize(data: bytes, type_name: str) -> Any:
    """
    Turn the CDR bytes of one message into the message.

    :param type_name: such as sensor_msgs/msg/Image.
    :raises InputError: the type is not installed, or the bytes are not such a message.
    """
    kind = message_class(type_name)
    try:
        return deserialize_message(data, kind)
    except Exception as error:  # rclpy raises whatever its middleware does
        raise InputError(f'{len(data)} bytes that are no {type_name}: {error}') from error


def write_drive(
    path: Path,
    frames: Iterable[DriveFrame],
    *,
    image_topic: str = '/camera/image_raw',
    camera_matrix: NDArray[np.float64] | None = None,
    frame_id: str = 'camera',
) -> int:
    """
    Write camera images, and truth where it is known, as a new mcap bag.

    Beside the image topic, in its namespace, stand `camera_info` and `labels_truth` (mono8).

    :param path: folder to create.
    :param frames: in the order of their stamps; sizes may differ.
    :param camera_matrix: (3, 3); None writes no `camera_info`.
    :param frame_id: of every header.
    :returns: how many frames were written.
    :raises InputError: the folder exists, there is no frame, labels and image differ in size, or
        the topic is no full name.
    """
    try:
        validate_full_topic_name(image_topic)
    except InvalidTopicNameException as error:
        raise InputError(
            f'image topic is {image_topic!r}; it must be like /camera/image'
        ) from error
    if path.exists():
        raise InputError(f'{path} exists already; a bag is only written to a new folder')
    try:
        with Writer(path, version=BAG_VERSION, storage_plugin=StoragePlugin.MCAP) as writer:
            drive = _DriveWriter(writer, image_topic, camera_matrix, frame_id)
            count = sum(1 for _ in map(drive.write, frames))
            if count == 0:
                raise InputError(f'{path}: there is no frame to write')
            return count
    except BaseException as error:
        shutil.rmtree(path, ignore_errors=True)  # a bag without its index helps nobody
        if isinstance(error, (OSError, WriterError)):
            raise InputError(f'{path}: cannot be written: {error}') from error
        raise


class _DriveWriter:
    """The topics of one drive in an open bag; each appears with its first message."""

    def __init__(
        self, writer: Writer, image_topic: str, camera_matrix: Any, frame_id: str
    ) -> None:
        self.writer = writer
        self.image_topic = image_topic
        self.namespace = image_topic.rpartition('/')[0]
        self.camera_matrix = camera_matrix
        self.frame_id = frame_id
        self.connections: dict[str, Connection] = {}

    def write(self, frame: DriveFrame) -> None:
        seconds, nanoseconds = divmod(frame.stamp_ns, 10**9)
        header = Header(stamp=Time(sec=seconds, nanosec=nanoseconds), frame_id=self.frame_id)
        if self.camera_matrix is not None:
            info = _camera_info(self.camera_matrix, frame.image, header)
            self._add(f'{self.namespace}/camera_info', frame.stamp_ns, info)
        if frame.labels is not None:
            if frame.labels.shape != frame.image.shape[:2]:
                raise InputError(
                    f'labels are {frame.labels.shape}, their image is {frame.image.shape[:2]}; '
                    'sizes must match'
                )
            labels = labels_message(frame.labels, header)
            self._add(f'{self.namespace}/labels_truth', frame.stamp_ns, labels)
        self._add(self.image_topic, frame.stamp_ns, color_message(frame.image, header))

    def _add(self, topic: str, stamp_ns: int, message: Any) -> None:
        if topic not in self.connections:
            type_name = f'sensor_msgs/msg/{type(message).__name__}'
            self.connections[topic] = self.writer.add_connection(
                topic, type_name, typestore=typestore()
            )
        self.writer.write(self.connections[topic], stamp_ns, serialize_message(message))


@lru_cache(maxsize=1)
def typestore() -> Any:
    """Definitions of the messages that are written, the same in every distribution."""
    return get_typestore(Stores.ROS2_HUMBLE)


def _camera_info(camera_matrix: NDArray[np.float64], image: Image, header: Header) -> CameraInfo:
    """Describe a camera without distortion."""
    info = CameraInfo(header=header, height=image.shape[0], width=image.shape[1])
    info.distortion_model = 'plumb_bob'
    info.d = [0.0] * 5
    info.k = np.asarray(camera_matrix, np.float64).reshape(9)
    info.r = np.eye(3).ravel()
    info.p = np.hstack([np.reshape(info.k, (3, 3)), np.zeros((3, 1))]).ravel()
    return info


def full_type_name(recorded: str) -> str:
    """Give a type its full name; the first ROS 2 recordings leave `msg` out."""
    package, _, name = recorded.rpartition('/')
    return recorded if '/' in package or not package else f'{package}/msg/{name}'


def _is_latched(entry: Connection) -> bool:
    assert isinstance(entry.ext, ConnectionExtRosbag2)
    return any(
        profile.durability == QosDurability.TRANSIENT_LOCAL
        for profile in entry.ext.offered_qos_profiles
    )
