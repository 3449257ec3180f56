"""
The tables of dense labelling and flow: every network under one budget and one recipe.

Each row is trained in a folder of its own and resumed there, so that a table may be made in parts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from dense_perception.arrays import Flow, Image
from dense_perception.data.flow import FlowPair
from dense_perception.data.segmentation import LabelledFolder, LabelledImage
from dense_perception.errors import InputError
from dense_perception.metrics.flow import EndPointError
from dense_perception.metrics.segmentation import ConfusionMatrix
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.flow_refinement import refine_flow
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.training.flow import FlowRecipe, MovingScenes, Pairs
from dense_perception.training.initial import Initial
from dense_perception.training.labelled import LabelledRecipe, LabelledScenes
from dense_perception.training.loop import TrainingLoop
from dense_perception.weights.checkpoint import Card, load_weights

Method: TypeAlias = Callable[[Image, Image], Flow]

TRAINED = 'trained.safetensors'  # name of a row's weights in its folder


@dataclass(frozen=True)
class Row:
    """One network of the segmentation table."""

    title: str
    network: str
    changes: Mapping[str, Any]  # settings beside the common recipe's
    refinements: tuple[str, ...] = ('none',)


_ALL = ('none', 'dense_crf', 'crf_rnn')
_FROZEN = {'batch_norm': False}  # these leave VGG-16 as it is, as their papers do
SEGMENTATION_ROWS = (
    Row('FCN-32s', 'fcn32s', {}),
    Row('FCN-16s', 'fcn16s', {}),
    Row('FCN-8s', 'fcn8s', {}),
    Row('zoom-out', 'zoom_out', _FROZEN),
    Row('hypercolumns', 'hypercolumns', _FROZEN),
    Row('DeconvNet', 'deconvnet', {}),
    Row('front end', 'front_end', {}, _ALL),
    Row('front end + Basic', 'front_end_context', {'layers': 8}, _ALL),
    Row('front end + Large', 'front_end_context', {'layers': 8, 'large': True}, _ALL),
)
FLOW_ROWS = {'FlowNetS': 'flownet_simple', 'FlowNetC': 'flownet_corr'}


def segmentation_rows(
    recipe: LabelledRecipe,
    training: LabelledFolder,
    validation: LabelledFolder,
    initial: Initial | None,
    folder: Path,
    *,
    rows: Sequence[Row] = SEGMENTATION_ROWS,
    every: int = 1,
) -> Iterator[dict[str, Any]]:
    """
    Train and score networks one after the other.

    :param recipe: what all have in common; `network` is set by the row.
    :param initial: weights that every network starts from.
    :param folder: of the runs, one folder a row.
    :param every: which validation images are scored on: every how many.
    :returns: for each row and refinement a mapping with title, parameters, mean IoU and the IoU
        of each class.
    """
    for row in rows:
        own = replace(recipe, network=row.network, **row.changes)
        scenes = LabelledScenes(own, training, validation, initial)
        place = folder / row.title.replace(' ', '_').replace('+', 'with')
        trained = _trained(place, scenes)
        scored = replace(validation, pairs=validation.pairs[::every])
        for refinement in row.refinements:
            network, card = load_weights(trained)
            placement = choose_placement(own.device, 'float32')
            segmenter = Segmenter(network, card, placement, refinement=refinement)
            matrix = _matrix(segmenter, scored, len(training.label_set))
            suffix = {'none': '', 'dense_crf': ' + CRF', 'crf_rnn': ' + CRF-RNN'}[refinement]
            yield {
                'network': row.title + suffix,
                'parameters': sum(value.numel() for value in network.parameters()),
                'steps': steps_of(card),
                'images': len(scored),
                'mean_iou': round(matrix.mean_iou, 4),
                'pixel_accuracy': round(matrix.pixel_accuracy, 4),
                **{
                    name: round(float(value), 4)
                    for name, value in zip(training.label_set.names, matrix.iou, strict=True)
                },
            }


def flow_rows(
    recipe: FlowRecipe,
    pairs: Pairs,
    real: Mapping[str, Sequence[FlowPair]],
    peers: Mapping[str, Method],
    folder: Path,
) -> Iterator[dict[str, Any]]:
    """
    Train and score both FlowNets, each alone and refined, and score other methods beside them.

    :param pairs: to train on; the held-out ones are scored on.
    :param real: more pairs to score on, by the name of their set.
    :param peers: other methods, by name.
    :returns: for each method a mapping with title, parameters and the end-point error on each
        set, the mean over its pairs in pixels.
    """
    sets = {pairs.name: pairs.held_out, **real}
    for title, network in FLOW_ROWS.items():
        own = replace(recipe, network=network)
        scenes = MovingScenes(own, pairs)
        model, card = load_weights(_trained(folder / title, scenes))
        estimator = FlowEstimator(model, card, choose_placement(own.device, 'float32'))
        parameters = sum(value.numel() for value in model.parameters())

        def refined(first: Image, second: Image, estimator: FlowEstimator = estimator) -> Flow:
            return refine_flow(first, second, estimator.estimate(first, second))

        methods: dict[str, Method] = {title: estimator.estimate, f'{title}+v': refined}
        for name, method in methods.items():
            yield {'method': name, 'parameters': parameters, 'steps': steps_of(card)} | _errors(
                method, sets
            )
    for name, method in peers.items():
        yield {'method': name, 'parameters': 0, 'steps': 0} | _errors(method, sets)


def steps_of(card: Card) -> int:
    """Return for how many steps weights were trained, as their own record has it."""
    recipe: Mapping[str, Any] = card.notes['recipe']
    return int(recipe['steps'])


def write_rows(path: Path, rows: Iterator[dict[str, Any]], notes: Mapping[str, str]) -> None:
    """
    Write a table as CSV, each row as soon as it is there.

    :param notes: the same in every row, such as machine and versions.
    :raises InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('w', newline='', encoding='utf-8') as file:
            writer: csv.DictWriter[str] | None = None
            for row in rows:
                line = {**row, **notes}
                if writer is None:
                    writer = csv.DictWriter(file, line)
                    writer.writeheader()
                writer.writerow(line)
                file.flush()
    except OSError as error:
        raise InputError(f'{path}: cannot be written: {error.strerror}') from error


def _trained(folder: Path, scenes: LabelledScenes | MovingScenes) -> Path:
    """Train in a folder, or go on there; return the weights file."""
    path = folder / TRAINED
    if not path.exists():
        network = scenes.start()[0] if isinstance(scenes, LabelledScenes) else scenes.start()
        loop = TrainingLoop(network, scenes.task(), scenes.recipe, folder)
        loop.resume()
        loop.run()
        scenes.save(path, loop.averaged, {})
    return path


def _matrix(
    segmenter: Segmenter, samples: Sequence[LabelledImage], classes: int
) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes)
    for sample in samples:
        matrix.add(segmenter.segment(sample.image).labels, sample.labels)
    return matrix


def _errors(method: Method, sets: Mapping[str, Sequence[FlowPair]]) -> dict[str, float]:
    """Return the mean over each set's pairs of their end-point error, in pixels."""
    means = {}
    for name, pairs in sets.items():
        errors = []
        for pair in pairs:
            error = EndPointError()
            error.add(method(pair.first, pair.second), pair.flow, pair.valid)
            errors.append(error.mean)
        means[f'{name}_epe_px'] = round(sum(errors) / len(errors), 3)
    return means
