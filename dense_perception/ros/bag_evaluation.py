"""From a bag to a report, with the networks run here on every image."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from builtin_interfaces.msg import Time
from dense_perception.errors import DensePerceptionError
from dense_perception.evaluation.examples import estimated, Results, StreamExamples
from dense_perception.evaluation.many import local_copy, own_name
from dense_perception.evaluation.offline import (
    evaluate_stream,
    known_label_set,
    load_predictors,
    Predictors,
)
from dense_perception.evaluation.report import Report
from dense_perception.evaluation.report_pictures import FrameReader
from dense_perception.evaluation.report_records import SourceRecord
from dense_perception.evaluation.scoring import BOUNDARY_PX, Problems, Result, Sample, Scorer
from dense_perception.ros.bag_copy import BagCopy
from dense_perception.ros.bags import Bag
from dense_perception.ros.calibration_bags import read_calibration_bags
from dense_perception.ros.labelled_bag import BagChoice, BagImages
from dense_perception.ros.messages import flow_message, labels_message
from dense_perception.settings import PerceptionSettings
from std_msgs.msg import Header

_loaded = lru_cache(maxsize=1)(load_predictors)


@dataclass(frozen=True)
class BagEvaluation:
    """How bags are evaluated; may be sent to another process, where it loads its own networks."""

    settings: PerceptionSettings
    choice: BagChoice = BagChoice()
    label_set: str = ''  # of the truth; empty for that of the weights
    boundary_px: float = BOUNDARY_PX
    record: Path | None = None  # folder for a copy of every bag with the results, see `own_name`

    def predictors(self) -> Predictors:
        """Load the networks, once in a process; see `load_predictors`."""
        read_calibration_bags()
        return _loaded(self.settings)

    def images(self, path: Path, name: str) -> BagImages:
        """Return the images of a bag with their truth."""
        segmenter = self.predictors().segmenter
        label_set = known_label_set(self.label_set, segmenter.label_set) if segmenter else None
        return BagImages(path, label_set, self.choice, Problems(), name)

    def scorer(self, images: BagImages) -> Scorer:
        """
        Return what counts the results for a bag.

        :raises InputError: the folder of truth is missing, or its classes are not comparable.
        """
        segmenter = self.predictors().segmenter
        return Scorer(
            SourceRecord(images.name, 'bag'),
            segmenter.label_set if segmenter else None,
            images.compared(),
            boundary_px=self.boundary_px,
        )

    def copy(self, name: str, bag: Bag) -> BagCopy | None:
        """
        Return the copy of a bag that is to have the results; None where none is wanted.

        :raises InputError: its folder exists.
        """
        return BagCopy(self.record / own_name(name), bag) if self.record else None

    def __call__(self, name: str) -> Report:
        """
        Evaluate every image of a bag.

        :param name: path or URL of the bag.
        :raises InputError: it cannot be read, or has no images.
        """
        with local_copy(name) as path:
            return self._evaluate(path, name)

    def examples(self, report: Report) -> FrameReader:
        """Return pictures of the frames that the page of a report of bags shows."""
        examples = StreamExamples(report)
        results = estimated(self.predictors(), report.label_set)
        for name in examples.sources:
            try:
                with local_copy(name) as path, Bag(path, mend=True) as bag:
                    self.gather(examples, bag, name, results)
            except DensePerceptionError as error:
                examples.fail(name, error)
        return examples.reader()

    def gather(self, examples: StreamExamples, bag: Bag, name: str, results: Results) -> None:
        """
        Draw the frames of one bag that the page shows.

        :param name: of the bag, as in the report.
        :raises InputError: an image that the networks do not take.
        """
        images = self.images(bag.path, name)
        images.compared()  # finds the folder of truth
        examples.gather(name, images.samples(bag), results)

    def _evaluate(self, path: Path, name: str) -> Report:
        images = self.images(path, name)
        scorer = self.scorer(images)
        with Bag(path, mend=True) as bag:
            copy = self.copy(name, bag)
            with copy or nullcontext():
                recorder = ResultCopy(copy, images)
                report = evaluate_stream(
                    images.samples(bag, copy), self.predictors(), scorer, recorder.add
                )
        return with_source(report, images, copy)


def with_source(report: Report, images: BagImages, copy: BagCopy | None = None) -> Report:
    """Add to the report of a bag which topics were read and what was met."""
    (source,) = report.sources
    for topic in copy.left_out if copy else ():
        images.problems.add(
            images.name, topic, 'copy', 'not copied: nothing tells what its messages are'
        )
    if not images.images:
        images.problems.add(images.name, images.topic, 'empty', 'no image on it')
    return replace(
        report,
        sources=(replace(source, topics=(images.topic,)),),
        problems=(*report.problems, *images.problems.found()),
    )


@dataclass(frozen=True)
class ResultCopy:
    """Writes results beside the messages of a bag; nothing without a copy."""

    copy: BagCopy | None
    images: BagImages

    def add(self, sample: Sample, result: Result, recorded_ns: int | None = None) -> None:
        """
        Write the results of an image.

        :param recorded_ns: when they went out; None for the moment of the image.
        :raises InputError: the bag cannot be written.
        """
        if self.copy is None:
            return
        assert sample.stamp_ns is not None
        image_ns, frame_id = self.images.recorded[sample.name]
        recorded_ns = image_ns if recorded_ns is None else recorded_ns
        seconds, nanoseconds = divmod(sample.stamp_ns, 10**9)
        header = Header(stamp=Time(sec=seconds, nanosec=nanoseconds), frame_id=frame_id)
        namespace = self.images.choice.results
        if result.labels is not None:
            message = labels_message(result.labels, header)
            self.copy.add(f'{namespace}/labels', recorded_ns, message)
        if result.confidence is not None:
            message = labels_message(result.confidence, header)
            self.copy.add(f'{namespace}/confidence', recorded_ns, message)
        if result.flow is not None:
            self.copy.add(f'{namespace}/flow', recorded_ns, flow_message(result.flow, header))
