"""A bag copied with results beside its messages."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import shutil
from types import TracebackType
from typing import Any

from dense_perception.errors import InputError
from dense_perception.ros.bags import Bag, BAG_VERSION, full_type_name, RawMessage, typestore
from rclpy.serialization import serialize_message
from rosbags.interfaces import Connection, ConnectionExtRosbag2
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError


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
            self._partial / path.name, version=BAG_VERSION, storage_plugin=StoragePlugin.MCAP
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
                    topic, f'sensor_msgs/msg/{type(message).__name__}', typestore=typestore()
                )
            self._writer.write(connection, stamp_ns, serialize_message(message))

    def _copied(self, source: Connection) -> Connection | None:
        """Announce a topic of the source; None where nothing tells what its type is."""
        kind = full_type_name(source.msgtype)
        definition = source.msgdef.data or None
        known = definition and source.digest
        if not known and kind not in typestore().types:
            self.left_out.append(source.topic)
            return None
        assert isinstance(source.ext, ConnectionExtRosbag2)
        with self._explained():
            return self._writer.add_connection(
                source.topic,
                kind,
                typestore=typestore(),
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
