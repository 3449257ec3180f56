"""Train a network: `python -m dense_perception.cli.train {segmentation,flow} ...`."""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
import sys

from dense_perception.data.segmentation import camvid, without_neighbours
from dense_perception.errors import DensePerceptionError
from dense_perception.training.flow import FlowRecipe, MovingScenes
from dense_perception.training.loop import TrainingLoop
from dense_perception.training.segmentation import RoadScenes, SegmentationRecipe, start
from dense_perception.weights.checkpoint import save_weights

WEIGHTS = 'weights.safetensors'  # what a finished run leaves in its folder


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog='train', description=__doc__)
    parser.add_argument('what', choices=('segmentation', 'flow'))
    parser.add_argument('--recipe', type=Path, required=True, help='YAML file of the settings')
    parser.add_argument('--camvid', type=Path, required=True, help='folder with train/, val/, ...')
    parser.add_argument(
        '--out', type=Path, required=True, help='folder of the run; resumed if any'
    )
    parser.add_argument('--initial', type=Path, help='narrow VGG-19 (.npz) to start from')
    options = parser.parse_args(arguments)
    try:
        (_train_segmentation if options.what == 'segmentation' else _train_flow)(options)
    except DensePerceptionError as error:
        print(f'train: {error}', file=sys.stderr)
        return 1
    return 0


def _train_segmentation(options: argparse.Namespace) -> None:
    recipe = SegmentationRecipe.from_yaml(options.recipe)
    validation = camvid(options.camvid, 'val')
    real = without_neighbours(camvid(options.camvid, 'train'), validation)
    scenes = RoadScenes(recipe, real, validation)
    network = start(scenes.card, options.initial)
    _run(TrainingLoop(network, scenes.task(), recipe, options.out), scenes)


def _train_flow(options: argparse.Namespace) -> None:
    recipe = FlowRecipe.from_yaml(options.recipe)
    pictures = [sample.image for sample in camvid(options.camvid, 'train')]
    scenes = MovingScenes(recipe, pictures)
    _run(TrainingLoop(scenes.card.build(), scenes.task(), recipe, options.out), scenes)


def _run(loop: TrainingLoop, scenes: RoadScenes | MovingScenes) -> None:
    if loop.resume():
        print(f'resuming at step {loop.step}')
    loop.run()
    scores = scenes.evaluate(loop.averaged)
    card = replace(scenes.card, notes={'recipe': asdict(loop.settings), 'scores': scores})
    save_weights(loop.folder / WEIGHTS, loop.averaged, card)
    print(f'{loop.folder / WEIGHTS}: {scores}')


if __name__ == '__main__':
    sys.exit(main())
