"""The images of a bag with their truth, from topics or from files beside it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern

from dense_perception.arrays import Labels
from dense_perception.data.truth import index_coding, read_flow_file, truth_files, TruthFiles
from dense_perception.errors import InputError
from dense_perception.evaluation.scoring import Problems, Sample, TrueFlow
from dense_perception.labels import LabelSet
from dense_perception.ros.bag_copy import BagCopy
from dense_perception.ros.bags import Bag, deserialize, message_class, RawMessage, stamp_of
from dense_perception.ros.messages import message_to_flow, message_to_labels, to_array
import numpy as np

LABELS_TOPIC, FLOW_TOPIC = 'labels_truth', 'flow_truth'  # in the namespace of the camera
# Truth may come after its image; so many images wait for it.
_WAITING = 10
_MOST_TRUTH = 30  # messages of one topic that wait for their image


@dataclass(frozen=True)
class BagChoice:
    """Which part of a bag is evaluated, and where its truth is."""

    image_topic: str = ''  # empty: the first with images that is no truth
    labels_topic: str = ''  # empty: `labels_truth` in the namespace of the camera
    flow_topic: str = ''  # empty: `flow_truth` there
    truth: Path | None = None  # folder, see `data.truth.LAYOUT`; None: `NAME_truth` if it is there
    results: str = '/dense_perception'  # namespace of results; a copy leaves earlier ones out


@dataclass
class BagImages:
    """
    The images of one bag, in the order of recording, each as a `Sample`.

    What cannot be used is told to `problems`, with file and topic.
    """

    path: Path
    label_set: LabelSet | None  # of truth on topics and in plain files; None reads no labels
    choice: BagChoice
    problems: Problems
    name: str = ''  # as the user gave it
    topic: str = ''  # of the images
    images: int = 0  # read so far, the bad ones among them
    bad: int = 0
    # When a sample was recorded, and the frame_id of its header, by its name; of the samples that
    # wait and of the one in use.
    recorded: dict[str, tuple[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = self.name or str(self.path)
        self._files: TruthFiles | None = None
        self._seen: set[int] = set()  # stamps; all that is kept of every image
        self._after_bad: set[int] = set()  # stamps, of images that wait
        self._last_was_bad = False

    def compared(self) -> LabelSet | None:
        """
        Return the label set of the truth, which files may say themselves.

        :raises InputError: the folder of truth is missing or holds none.
        """
        folder = self.choice.truth
        beside = self.path.with_name(f'{self.path.stem}_truth')
        if folder is None and beside.is_dir():
            folder = beside
        if folder is not None and self.label_set is not None:
            self._files = truth_files(folder, self.label_set)
            return self._files.label_set
        return self.label_set

    def samples(self, bag: Bag, copy: BagCopy | None = None) -> Iterator[Sample]:
        """
        Read the images with their truth; memory does not grow with the bag.

        :param bag: the opened bag.
        :param copy: every message is copied into it.
        :raises InputError: no topic with images, or of that name.
        """
        self.topic = self.choice.image_topic or camera_topic(bag)
        for damage in bag.damage:
            self.problems.add(self.name, self.topic, damage, damage)
        names = self._truth_topics(bag)
        wanted = () if copy is not None else (self.topic, *names)
        self._note_missing_types(bag)
        waiting: list[Sample] = []
        labels: dict[int, RawMessage] = {}
        flows: dict[int, RawMessage] = {}
        patience = _WAITING if names else 0
        for message in self._messages(bag, wanted):
            if copy is not None and not message.topic.startswith(f'{self.choice.results}/'):
                copy.copy(message)
            if message.topic == self.topic:
                sample = self._sample(bag, message)
                if sample is not None:
                    waiting.append(sample)
            elif message.topic in names:
                kept = labels if names[message.topic] == 'labels' else flows
                kept[stamp_of(message.data) or message.stamp_ns] = message
                self._bound(kept)
            while len(waiting) > patience:
                sample = waiting.pop(0)
                yield self._with_truth(bag, sample, labels, flows)
                del self.recorded[sample.name]
        for sample in waiting:
            yield self._with_truth(bag, sample, labels, flows)
            del self.recorded[sample.name]

    def _bound(self, kept: dict[int, RawMessage]) -> None:
        """Forget the truth that has waited longest for its image, where much waits."""
        if len(kept) > _MOST_TRUTH:
            stamp_ns = next(iter(kept))
            topic = kept.pop(stamp_ns).topic
            text = f'truth at {stamp_ns} ns not used: no image of that stamp came in time'
            self.problems.add(self.name, topic, 'early', text)

    def _messages(self, bag: Bag, topics: tuple[str, ...]) -> Iterator[RawMessage]:
        """Read up to the first damage."""
        try:
            yield from bag.messages(topics)
        except InputError as error:
            self.problems.add(self.name, self.topic, 'damage', f'read up to a damage: {error}')

    def _truth_topics(self, bag: Bag) -> dict[str, str]:
        """Return the topics of truth, each with what it tells."""
        namespace = self.topic.removesuffix('/compressed').rpartition('/')[0]
        found = {}
        for kind, asked, usual in (
            ('labels', self.choice.labels_topic, LABELS_TOPIC),
            ('flow', self.choice.flow_topic, FLOW_TOPIC),
        ):
            topic = asked or f'{namespace}/{usual}'
            if topic in bag.topics:
                found[topic] = kind
            elif asked:
                there = ', '.join(bag.topics)
                self.problems.add(
                    self.name, asked, 'missing', f'no such topic of true {kind}; there are {there}'
                )
        return found

    def _note_missing_types(self, bag: Bag) -> None:
        for name, topic in bag.topics.items():
            try:
                message_class(topic.type_name)
            except InputError as error:
                self.problems.add(self.name, name, 'type', f'not read: {error}')

    def _sample(self, bag: Bag, message: RawMessage) -> Sample | None:
        """Decode an image; None where it is bad."""
        self.images += 1
        try:
            decoded = deserialize(message.data, bag.topics[message.topic].type_name)
            image = to_array(decoded)
        except InputError as error:
            self._count_bad()
            self.problems.add(
                self.name, message.topic, 'image', f'image {self.images} not used: {error}'
            )
            return None
        stamp_ns = stamp_of(message.data) or message.stamp_ns
        name = f'{stamp_ns}'
        if stamp_ns in self._seen:
            self._count_bad()
            self.problems.add(
                self.name,
                message.topic,
                'stamp',
                f'image {self.images} not used: an earlier one has its stamp, {stamp_ns} ns',
            )
            return None
        frame_id = intern(str(decoded.header.frame_id))
        self._seen.add(stamp_ns)
        self.recorded[name] = message.stamp_ns, frame_id
        if self._last_was_bad:
            self._after_bad.add(stamp_ns)
        self._last_was_bad = False
        return self._with_files(Sample(name, image, stamp_ns), frame_id)

    def _count_bad(self) -> None:
        self.bad += 1
        self._last_was_bad = True

    def _with_files(self, sample: Sample, frame_id: str) -> Sample:
        """Add the truth that lies in files."""
        files = self._files
        if files is None:
            return sample
        assert sample.stamp_ns is not None
        labels = instances = flow = None
        size = sample.image.shape[:2]
        path = files.find_labels(sample.stamp_ns, frame_id)
        if path is not None:
            try:
                labels = files.read_labels(path)
                instances = files.read_instances(path)
                _check_size('labels', labels.shape, size)
            except InputError as error:
                labels = instances = None
                self.problems.add(self.name, self.topic, 'truth', f'{path}: not used: {error}')
        path = files.find_flow(sample.stamp_ns, frame_id)
        if path is not None:
            try:
                flow = TrueFlow(*read_flow_file(path))
                _check_size('flow', flow.valid.shape, size)
            except InputError as error:
                flow = None
                self.problems.add(self.name, self.topic, 'flow', f'{path}: not used: {error}')
        return Sample(sample.name, sample.image, sample.stamp_ns, labels, instances, flow)

    def _with_truth(
        self,
        bag: Bag,
        sample: Sample,
        labels: dict[int, RawMessage],
        flows: dict[int, RawMessage],
    ) -> Sample:
        """Add the truth that came on topics, and forget what is older."""
        stamp_ns = sample.stamp_ns
        assert stamp_ns is not None
        true_labels, flow = sample.labels, sample.flow
        size = sample.image.shape[:2]
        if true_labels is None and stamp_ns in labels and self.label_set is not None:
            true_labels = self._labels(bag, labels[stamp_ns], size)
        if flow is None and stamp_ns in flows:
            flow = self._flow(bag, flows[stamp_ns], size)
        for kept in (labels, flows):
            for old in [key for key in kept if key <= stamp_ns]:
                del kept[old]
        if stamp_ns in self._after_bad:  # true flow from an image that is not there
            self._after_bad.remove(stamp_ns)
            flow = None
        return Sample(sample.name, sample.image, stamp_ns, true_labels, sample.instances, flow)

    def _labels(self, bag: Bag, message: RawMessage, size: tuple[int, ...]) -> Labels | None:
        assert self.label_set is not None
        try:
            values = message_to_labels(
                deserialize(message.data, bag.topics[message.topic].type_name)
            )
            _check_size('labels', values.shape, size)
            found = index_coding(self.label_set).table.take(values)
        except InputError as error:
            self._truth_problem(message, error)
            return None
        unknown = np.unique(values[found == 0])
        if unknown.size:
            shown = ', '.join(map(str, unknown[:10].tolist()))
            self.problems.add(
                self.name,
                message.topic,
                'ids',
                f'labels at {stamp_of(message.data)} ns not used: ids {shown} are unknown; known '
                f'are 0 to {len(self.label_set) - 1} of {self.label_set.name}, and 255',
            )
            return None
        return values

    def _flow(self, bag: Bag, message: RawMessage, size: tuple[int, ...]) -> TrueFlow | None:
        try:
            flow = message_to_flow(deserialize(message.data, bag.topics[message.topic].type_name))
            _check_size('flow', flow.shape[:2], size)
        except InputError as error:
            self._truth_problem(message, error)
            return None
        return TrueFlow(flow, np.asarray(np.isfinite(flow).all(-1), bool))

    def _truth_problem(self, message: RawMessage, error: InputError) -> None:
        self.problems.add(
            self.name,
            message.topic,
            'truth',
            f'truth at {stamp_of(message.data)} ns not used: {error}',
        )


def camera_topic(bag: Bag) -> str:
    """
    Choose the camera topic of a bag: its first image topic that is neither truth nor a result.

    :raises InputError: it has none.
    """
    ends = (LABELS_TOPIC, FLOW_TOPIC)
    topics = [
        name
        for name in bag.image_topics()
        if name.rpartition('/')[2] not in ends and '/dense_perception/' not in name
    ]
    if not topics:
        raise InputError(
            f'{bag.path}: no image topic; its topics are {", ".join(bag.topics) or "none"}'
        )
    return topics[0]


def _check_size(what: str, size: tuple[int, ...], image: tuple[int, ...]) -> None:
    if tuple(size) != tuple(image):
        raise InputError(f'{what} are {size}, their image is {image}; sizes must match')
