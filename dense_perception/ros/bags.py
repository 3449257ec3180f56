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
_BAG_VERSION: Final = 8

_MCAP_MAGIC = b'\x89MCAP0\r\n'
# A footer without summary: operation 2 of 20 bytes, offsets and checksum all zero.
_MCAP_END = b'\x02' + struct.pack('<Q', 20) + bytes(20) + _MCAP_MAGIC


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

        :param mend: read an mcap file that was cut short up to its last whole chunk; `damage` then
            tells of it.
        """
        self.path = path
        self.damage: list[str] = []  # what was lost, with the name of its file
        self._mend = mend
        self._mended: TemporaryDirectory[str] | None = None
        self._reader: Reader | None = None
        self._connections: list[Connection] = []

    def __enter__(self) -> 'Bag':
        """
        Open the recording.

        :raises InputError: no such file, not a ROS 2 recording, damaged, or not serialised as CDR.
        """
        with self._explained():
            self._reader = Reader(self._whole() if self._mend else self.path)
            if self.path.is_dir():
                self._check_metadata()
            self._reader.open()
            # The folder's own list of topics is not used: it knows only metadata.yaml, where QoS
            # may be written otherwise than in the storage, and then no message matches a topic.
            storages = getattr(self._reader.storage, 'storages', [self._reader.storage])
            self._connections = [entry for part in storages for entry in part.connections]
        return self

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
        if self._mended is not None:
            self._mended.cleanup()
            self._mended = None

    @property
    def topics(self) -> dict[str, Topic]:
        """What the bag holds of each topic, sorted by name."""
        found: dict[str, Topic] = {}
        for entry in sorted(self._connections, key=lambda entry: entry.topic):
            before = found.get(entry.topic, Topic('', 0, False))
            found[entry.topic] = Topic(
                _type_name(entry.msgtype),
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
                yield RawMessage(entry.topic, stamp_ns, bytes(data))

    def connections(self) -> list[Connection]:
        """Return topics with their definitions and QoS, of a split recording only once."""
        return list({entry.topic: entry for entry in self._connections}.values())

    def _whole(self) -> Path:
        """Return the path of a copy in which files that were cut short have an end, if any was."""
        files = sorted(self.path.glob('*.mcap')) if self.path.is_dir() else [self.path]
        cut = [file for file in files if file.suffix == '.mcap' and _is_cut(file)]
        if not cut:
            return self.path
        self._mended = TemporaryDirectory(prefix='dense_perception_')
        folder = Path(self._mended.name)
        for file in cut:
            lost = _copy_whole_records(file, folder / file.name)
            self.damage.append(
                f'{file}: cut short; its last {lost} bytes are lost, what is before is read'
            )
        if not self.path.is_dir():
            return folder / self.path.name
        for file in self.path.iterdir():
            if file not in cut:
                (folder / file.name).symlink_to(file.resolve())
        return folder

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


def _is_cut(file: Path) -> bool:
    """Whether an mcap file begins as one and does not end as one."""
    try:
        with file.open('rb') as opened:
            if opened.read(len(_MCAP_MAGIC)) != _MCAP_MAGIC:
                return False
            opened.seek(max(0, file.stat().st_size - len(_MCAP_END)))
            end = opened.read()
    except OSError:  # the reader tells of it
        return False
    return end[:1] != b'\x02' or not end.endswith(_MCAP_MAGIC)


def _copy_whole_records(file: Path, copy: Path) -> int:
    """Copy what is whole of an mcap file and end it; returns how many bytes are left out."""
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
    name = re.fullmatch(r'(\w+)/msg/(\w+)', _type_name(type_name), re.ASCII)
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
        with Writer(path, version=_BAG_VERSION, storage_plugin=StoragePlugin.MCAP) as writer:
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


class BagCopy:
    """
    Writes what is read from a bag into a new mcap bag, and results beside it.

    Use as a context manager: the bag has its name once it is whole.
    """

    def __init__(self, path: Path, bag: Bag) -> None:
        """
        Name the bag.

        :param path: folder to create.
        :param bag: the opened bag whose messages are copied.
        :raises InputError: the folder exists.
        """
        if path.exists():
            raise InputError(f'{path} exists already; a bag is only written to a new folder')
        self.left_out: list[str] = []  # topics without a definition of their type
        self._path = path
        # rosbag2 names the file in the folder after it, so that the folder above is renamed.
        self._partial = path.with_name(f'{path.name}.partial')
        shutil.rmtree(self._partial, ignore_errors=True)  # of an earlier run that was killed
        self._writer = Writer(
            self._partial / path.name, version=_BAG_VERSION, storage_plugin=StoragePlugin.MCAP
        )
        self._sources = {entry.topic: entry for entry in bag.connections()}
        self._connections: dict[str, Connection | None] = {}

    def __enter__(self) -> 'BagCopy':
        """
        Create the bag.

        :raises InputError: it cannot be written.
        """
        with self._explained():
            self._partial.mkdir(parents=True)
            self._writer.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Complete the bag, or remove what is of it after an error."""
        try:
            with self._explained():
                self._writer.close()
                if error is None:
                    (self._partial / self._path.name).rename(self._path)
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def copy(self, message: RawMessage) -> None:
        """
        Write a message of the source as it was sent.

        :raises InputError: it cannot be written.
        """
        if message.topic not in self._connections:
            self._connections[message.topic] = self._copied(self._sources[message.topic])
        connection = self._connections[message.topic]
        if connection is not None:
            with self._explained():
                self._writer.write(connection, message.stamp_ns, message.data)

    def add(self, topic: str, stamp_ns: int, message: Any) -> None:
        """
        Write a result.

        :param topic: one that the source does not have, or the source's own is left out.
        :param stamp_ns: when it was, or would have been, recorded.
        :param message: of sensor_msgs.
        :raises InputError: it cannot be written.
        """
        with self._explained():
            connection = self._connections.get(topic)
            if connection is None:
                connection = self._connections[topic] = self._writer.add_connection(
                    topic, f'sensor_msgs/msg/{type(message).__name__}', typestore=_typestore()
                )
            self._writer.write(connection, stamp_ns, serialize_message(message))

    def _copied(self, source: Connection) -> Connection | None:
        """Announce a topic of the source; None where nothing tells what its type is."""
        type_name = _type_name(source.msgtype)
        definition = source.msgdef.data or None
        known = definition and source.digest
        if not known and type_name not in _typestore().types:
            self.left_out.append(source.topic)
            return None
        assert isinstance(source.ext, ConnectionExtRosbag2)
        with self._explained():
            return self._writer.add_connection(
                source.topic,
                type_name,
                typestore=_typestore(),
                msgdef=definition if known else None,
                rihs01=source.digest if known else None,
                offered_qos_profiles=source.ext.offered_qos_profiles,
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, WriterError) as error:
            raise InputError(f'{self._path}: cannot be written: {error}') from error


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
                topic, type_name, typestore=_typestore()
            )
        self.writer.write(self.connections[topic], stamp_ns, serialize_message(message))


@lru_cache(maxsize=1)
def _typestore() -> Any:
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


def _type_name(recorded: str) -> str:
    """Give a type its full name; the first ROS 2 recordings leave `msg` out."""
    package, _, name = recorded.rpartition('/')
    return recorded if '/' in package or not package else f'{package}/msg/{name}'


def _is_latched(entry: Connection) -> bool:
    assert isinstance(entry.ext, ConnectionExtRosbag2)
    return any(
        profile.durability == QosDurability.TRANSIENT_LOCAL
        for profile in entry.ext.offered_qos_profiles
    )
