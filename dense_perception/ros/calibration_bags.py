"""Bags as frames that scale int8."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dense_perception.arrays import Image
from dense_perception.errors import InputError
from dense_perception.predictors.engines.calibration import pick, read_bags_with
from dense_perception.ros.bags import Bag, deserialize, RawMessage
from dense_perception.ros.labelled_bag import camera_topic
from dense_perception.ros.messages import to_array


@dataclass(frozen=True)
class BagFrames:
    """The images of a bag's camera topic, in the order of recording; memory holds one of them."""

    path: Path
    topic: str
    type_name: str
    count: int

    @classmethod
    def of(cls, path: Path) -> 'BagFrames':
        """
        Look into a bag.

        :raises InputError: no such bag, a damaged one, or no topic with images.
        """
        with Bag(path) as bag:
            name = camera_topic(bag)
            topic = bag.topics[name]
            return cls(path, name, topic.type_name, topic.count)

    def __len__(self) -> int:
        """Return how many images the bag says that it has."""
        return self.count

    def read(self, wanted: Sequence[int]) -> Iterator[Image]:
        """
        Read some images; the others are passed over undecoded.

        :param wanted: their places, rising.
        :raises InputError: the bag is damaged before the last of them, or one is no image.
        """
        with Bag(self.path) as bag:
            for message in pick(bag.messages((self.topic,)), wanted):
                yield self._image(message)

    def _image(self, message: RawMessage) -> Image:
        try:
            return to_array(deserialize(message.data, self.type_name))
        except InputError as error:
            raise InputError(
                f'{self.path}: image at {message.stamp_ns} ns on {self.topic}: {error}'
            ) from error


def read_calibration_bags() -> None:
    """Let `calibration_frames` name a bag, in this process."""
    read_bags_with(BagFrames.of)
