"""
Train a network, alone or as one of the processes that `torchrun` starts.

`python -m dense_perception.cli.train segmentation --data FOLDER --initial drive --out RUN`
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, Field, fields
import logging
from pathlib import Path
import sys
from typing import Any, TypeVar

from dense_perception.data.datasets import find_flow, find_labelled, FLOW, LABELLED
from dense_perception.data.segmentation import (
    camvid,
    LabelledFolder,
    split_sequence,
    without_neighbours,
)
from dense_perception.errors import DensePerceptionError, SettingError
from dense_perception.memory import keep_all_memory
from dense_perception.training.flow import chairs_style, FlowRecipe, MovingScenes, Pairs
from dense_perception.training.initial import read_initial
from dense_perception.training.labelled import (
    hold_out,
    LabelledRecipe,
    LabelledScenes,
    own_folder,
)
from dense_perception.training.loop import Task, TrainingLoop
from dense_perception.training.masks import MasksRecipe, ObjectWindows, street_objects
from dense_perception.training.processes import joined, Processes
from dense_perception.training.schedule import LoopSettings
from dense_perception.training.segmentation import RoadScenes, SegmentationRecipe
from torch import nn

WEIGHTS = 'weights.safetensors'  # what a finished run leaves in its folder

Recipe = TypeVar('Recipe', bound=LoopSettings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format='train: %(message)s')
    keep_all_memory()
    try:
        with joined() as processes:
            options.run(options, processes)
    except DensePerceptionError as error:
        print(f'train: {error}', file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='train', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    labels = commands.add_parser('segmentation', help='labels of pixels')
    labels.set_defaults(run=_train_segmentation)
    labels.add_argument(
        '--leave-out', metavar='SEQUENCE', help='of CamVid train: score on it instead of val'
    )
    labels.add_argument('--mapping', type=Path, help="of --data's labels; default labels.yaml")
    labels.add_argument(
        '--dataset', choices=tuple(LABELLED), default='folder', help='layout of --data'
    )
    labels.add_argument(
        '--initial', help='shipped weights by name, .safetensors, VGG-16 .pth or narrow VGG .npz'
    )
    flow = commands.add_parser('flow', help='optical flow')
    flow.set_defaults(run=_train_flow)
    flow.add_argument('--dataset', choices=tuple(FLOW), help='layout of --data')
    masks = commands.add_parser('masks', help='masks of objects')
    masks.set_defaults(run=_train_masks)
    masks.add_argument('--initial', help='weights of the DeepMask that SharpMask refines')
    for command, recipes in (
        (labels, (LabelledRecipe, SegmentationRecipe)),
        (flow, (FlowRecipe,)),
        (masks, (MasksRecipe,)),
    ):
        source = command.add_mutually_exclusive_group(required=True)
        source.add_argument('--data', type=Path, help='folder of images and truth')
        source.add_argument('--camvid', type=Path, help='CamVid; rendered drives are added')
        command.add_argument('--recipe', type=Path, help='YAML file of settings')
        command.add_argument(
            '--out', type=Path, required=True, help='folder of the run; gone on with if any'
        )
        _add_settings(command, recipes)
    return parser


def _add_settings(command: argparse.ArgumentParser, recipes: Sequence[type[LoopSettings]]) -> None:
    """Offer every setting as an option; it goes before the recipe's file."""
    group = command.add_argument_group('settings')
    known = {entry.name: entry for recipe in recipes for entry in fields(recipe)}
    for name, entry in known.items():
        group.add_argument(
            f'--{name.replace("_", "-")}',
            dest=f'set_{name}',
            type=_value_of(entry),
            default=argparse.SUPPRESS,
            metavar=type(entry.default).__name__.upper(),
            help=entry.metadata['description'].replace('%', '%%'),
        )


def _value_of(entry: 'Field[Any]') -> Callable[[str], Any]:
    """Return how the text of an option becomes a setting."""
    if isinstance(entry.default, bool):
        return lambda text: {'true': True, 'false': False}.get(text.lower(), text)
    return type(entry.default)


def _recipe(kind: type[Recipe], options: argparse.Namespace) -> Recipe:
    """Return the settings of the recipe's file, with those of the command line put in."""
    recipe = kind.from_yaml(options.recipe) if options.recipe else kind()
    given = {
        name.removeprefix('set_'): value
        for name, value in vars(options).items()
        if name.startswith('set_')
    }
    return kind.from_mapping({**asdict(recipe), **given}, 'command line')


def _train_segmentation(options: argparse.Namespace, processes: Processes) -> None:
    if options.camvid:
        _train_road(options, processes)
        return
    recipe = _recipe(LabelledRecipe, options)
    training, validation = _labelled(options, recipe)
    initial = read_initial(options.initial) if options.initial else None
    scenes = LabelledScenes(recipe, training, validation, initial)
    network, fresh = scenes.start()
    if processes.first:
        print(f'{len(training)} images to train on, {len(validation)} to score on')
        if initial is not None:
            print(f'{initial.source}; not from there: {", ".join(fresh) or "nothing"}')
    _run(TrainingLoop(network, scenes.task(), recipe, options.out, processes))


def _labelled(
    options: argparse.Namespace, recipe: LabelledRecipe
) -> tuple[LabelledFolder, LabelledFolder]:
    if options.dataset == 'folder':
        return own_folder(options.data, options.mapping, recipe.held_out)
    if options.mapping:
        raise SettingError(f'--mapping is for --dataset folder, not {options.dataset}')
    splits = LABELLED[options.dataset].splits
    training = find_labelled(options.dataset, options.data, splits[0])
    if 'val' not in splits:
        return hold_out(training, recipe.held_out)
    return training, find_labelled(options.dataset, options.data, 'val')


def _train_road(options: argparse.Namespace, processes: Processes) -> None:
    recipe = _recipe(SegmentationRecipe, options)
    validation = camvid(options.camvid, 'val')
    real = without_neighbours(camvid(options.camvid, 'train'), validation)
    if options.leave_out:
        real, validation = split_sequence(real, options.leave_out)
    scenes = RoadScenes(recipe, real, validation)
    network = scenes.start(read_initial(options.initial) if options.initial else None)
    _run(TrainingLoop(network, scenes.task(), recipe, options.out, processes))


def _train_flow(options: argparse.Namespace, processes: Processes) -> None:
    recipe = _recipe(FlowRecipe, options)
    if options.camvid:
        pictures = [sample.image for sample in camvid(options.camvid, 'train')]
        pairs = chairs_style(recipe, pictures)
    elif options.dataset == 'flying_chairs':
        name, root = options.dataset, options.data
        pairs = Pairs(name, find_flow(name, root, 'train'), find_flow(name, root, 'val'))
    else:
        raise SettingError('--data needs --dataset flying_chairs; others are too few to train on')
    scenes = MovingScenes(recipe, pairs)
    _run(TrainingLoop(scenes.start(), scenes.task(), recipe, options.out, processes))


def _train_masks(options: argparse.Namespace, processes: Processes) -> None:
    recipe = _recipe(MasksRecipe, options)
    if not options.camvid:
        raise SettingError('masks are trained on --camvid and rendered drives')
    validation = camvid(options.camvid, 'val')
    real = without_neighbours(camvid(options.camvid, 'train'), validation)
    windows = ObjectWindows(
        recipe, street_objects(real, recipe.drives), street_objects(validation)
    )
    network = windows.start(Path(options.initial) if options.initial else None)
    _run(TrainingLoop(network, windows.task(), recipe, options.out, processes))


def _run(loop: TrainingLoop) -> None:
    first = loop.processes.first
    if loop.resume() and first:
        print(f'resuming at step {loop.step}')
    loop.run()
    if first:
        _finish(loop.folder / WEIGHTS, loop.task, loop.averaged)


def _finish(path: Path, task: Task, network: nn.Module) -> None:
    """Write the weights of a finished run."""
    assert task.save is not None
    scores = task.evaluate(network)
    task.save(path, network, scores)
    print(f'{path}: {scores}')


if __name__ == '__main__':
    sys.exit(main())
