"""
The frames that a page shows, read and estimated anew once it is known which they are.

Nothing is kept while the networks run, so that memory does not grow with the set or stream.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dense_perception.arrays import Flow, Labels
from dense_perception.data.flow import FlowFolder
from dense_perception.data.segmentation import LabelledFolder
from dense_perception.errors import DensePerceptionError, InputError, SettingError
from dense_perception.evaluation.offline import frame_name, Predictors
from dense_perception.evaluation.report import Report
from dense_perception.evaluation.report_pictures import (
    flow_choices,
    flow_pictures,
    FrameReader,
    label_pictures,
    labelled_choices,
    Pictures,
    smaller,
)
from dense_perception.evaluation.report_records import FrameRecord
from dense_perception.evaluation.scoring import Sample
from dense_perception.labels import conversion, LabelSet


def labelled_reader(folder: LabelledFolder, predictors: Predictors) -> FrameReader:
    """
    Return what finds images of a data set again and labels them, as `evaluate_labelled` did.

    :raises SettingError: no segmentation weights are named.
    """
    segmenter = predictors.segmenter
    if segmenter is None:
        raise SettingError('segmentation_weights are empty; images with labels need them')
    table = conversion(segmenter.label_set, folder.label_set)
    places = {frame_name(path): index for index, (path, _) in enumerate(folder.pairs)}

    def read(frame: FrameRecord) -> Pictures:
        sample = folder[places[frame.name]]
        labels = table[segmenter.segment(sample.image).labels]
        return label_pictures(sample.image, sample.labels, labels, folder.label_set)

    return FrameReader(labels=read)


def pairs_reader(folder: FlowFolder, predictors: Predictors) -> FrameReader:
    """
    Return what finds pairs of a data set again and their flow, as `evaluate_pairs` did.

    :raises SettingError: no flow weights are named.
    """
    estimator = predictors.flow_estimator
    if estimator is None:
        raise SettingError('flow_weights are empty; pairs with flow need them')
    places = {files.name: index for index, files in enumerate(folder.files)}

    def read(frame: FrameRecord) -> Pictures:
        pair = folder[places[frame.name]]
        flow = estimator.estimate(pair.first, pair.second)
        return flow_pictures(pair.first, pair.flow, pair.valid, flow)

    return FrameReader(flow=read)


@dataclass(frozen=True)
class Results:
    """How the results for an image of a stream are found again."""

    labels: Callable[[Sample], Labels]  # in the classes of the truth
    flow: Callable[[Sample, Sample], Flow]  # from the image before to the image


def estimated(predictors: Predictors, compared: LabelSet | None) -> Results:
    """
    Return results that are estimated anew.

    :param compared: the classes of the truth; None where nothing is labelled.
    """

    def labels(sample: Sample) -> Labels:
        segmenter = predictors.segmenter
        assert segmenter is not None
        assert compared is not None
        predictors.prepare_labels(sample.image)
        found = segmenter.segment(sample.image).labels
        return conversion(segmenter.label_set, compared)[found]

    def flow(previous: Sample, sample: Sample) -> Flow:
        assert predictors.flow_estimator is not None
        predictors.prepare_flow(previous.image, sample.image)
        return predictors.flow_estimator.estimate(previous.image, sample.image)

    return Results(labels, flow)


class StreamExamples:
    """Pictures of the frames that the page of a report shows, gathered stream by stream."""

    def __init__(self, report: Report) -> None:
        self._label_set = report.label_set
        self._labels = {choice.frame.key for choice in labelled_choices(report)}
        self._flow = {choice.frame.key for choice in flow_choices(report)}
        self._found: dict[tuple[str, tuple[str, str]], Pictures] = {}
        self._problems: dict[str, DensePerceptionError] = {}

    @property
    def sources(self) -> list[str]:
        """Names of the streams of which frames are shown, sorted."""
        return sorted({source for source, _ in self._labels | self._flow})

    def gather(self, source: str, samples: Iterable[Sample], results: Results) -> None:
        """
        Draw the frames of one stream, read up to the last of them.

        :param samples: all images of the stream, in the order in which they were evaluated.
        :raises InputError: an image that the networks do not take.
        """
        missing = [key for key in (*self._labels, *self._flow) if key[0] == source]
        previous: Sample | None = None
        for sample in samples:
            key = source, sample.name
            if key in self._labels and sample.labels is not None:
                self._draw_labels(key, sample, results)
                missing.remove(key)
            before = (source, previous.name) if previous is not None else None
            if before in self._flow and previous is not None and sample.flow is not None:
                self._draw_flow(before, previous, sample, results)
                missing.remove(before)
            previous = sample
            if not missing:
                break

    def fail(self, source: str, problem: DensePerceptionError) -> None:
        """Note why the frames of a stream cannot be shown."""
        self._problems[source] = problem

    def reader(self) -> FrameReader:
        """Return what was gathered; a frame that was not is told when it is read."""
        return FrameReader(
            lambda frame: self._read('labels', frame), lambda frame: self._read('flow', frame)
        )

    def _read(self, task: str, frame: FrameRecord) -> Pictures:
        if (task, frame.key) in self._found:
            return self._found[task, frame.key]
        raise self._problems.get(
            frame.source, InputError(f'{frame.source}: {frame.name} is no longer there')
        )

    def _draw_labels(self, key: tuple[str, str], sample: Sample, results: Results) -> None:
        assert self._label_set is not None
        assert sample.labels is not None
        labels = results.labels(sample)
        drawn = label_pictures(sample.image, sample.labels, labels, self._label_set)
        self._keep('labels', key, drawn)

    def _draw_flow(
        self, key: tuple[str, str], previous: Sample, sample: Sample, results: Results
    ) -> None:
        truth = sample.flow
        assert truth is not None
        flow = results.flow(previous, sample)
        self._keep('flow', key, flow_pictures(previous.image, truth.flow, truth.valid, flow))

    def _keep(self, task: str, key: tuple[str, str], drawn: Pictures) -> None:
        self._found[task, key] = [(title, smaller(picture)) for title, picture in drawn]
