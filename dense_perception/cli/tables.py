"""
Train and score the networks of dense labelling, or of flow, under one budget, as a table.

`python -m dense_perception.cli.tables segmentation --camvid FOLDER --out RUNS --table FILE.csv`
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
import sys
from typing import Any

from dense_perception.data.flow import flow_pairs
from dense_perception.data.segmentation import camvid, without_neighbours
from dense_perception.errors import DensePerceptionError
from dense_perception.evaluation.peers import PEERS
from dense_perception.evaluation.report_run import processor
from dense_perception.training.flow import chairs_style, FlowRecipe
from dense_perception.training.initial import read_initial
from dense_perception.training.labelled import LabelledRecipe
from dense_perception.training.tables import (
    flow_rows,
    SEGMENTATION_ROWS,
    segmentation_rows,
    write_rows,
)
import torch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        rows = options.rows(options)
        notes = {'processor': processor(), 'torch': torch.__version__}
        write_rows(options.table, rows, notes)
    except DensePerceptionError as error:
        print(f'tables: {error}', file=sys.stderr)
        return 1
    print(options.table.read_text(encoding='utf-8'), end='')
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='tables', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    labels = commands.add_parser('segmentation', help='networks of dense labelling on CamVid')
    labels.add_argument('--initial', help='weights that every network starts from')
    labels.add_argument(
        '--every', type=int, default=1, help='score on every how many validation images'
    )
    labels.add_argument(
        '--only', action='append', choices=[row.title for row in SEGMENTATION_ROWS], help='a row'
    )
    labels.set_defaults(rows=_segmentation)
    flow = commands.add_parser('flow', help='FlowNets and OpenCV on the same pairs')
    flow.add_argument('--pairs', type=Path, required=True, help='folder with middlebury/, ...')
    flow.set_defaults(rows=_flow)
    for command in (labels, flow):
        command.add_argument('--camvid', type=Path, required=True, help='folder with train/, ...')
        command.add_argument('--recipe', type=Path, required=True, help='YAML file of settings')
        command.add_argument('--out', type=Path, required=True, help='folder of the runs')
        command.add_argument('--table', type=Path, required=True, help='CSV file to write')
    return parser


def _segmentation(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    validation = camvid(options.camvid, 'val')
    wanted = options.only or [row.title for row in SEGMENTATION_ROWS]
    return segmentation_rows(
        LabelledRecipe.from_yaml(options.recipe),
        without_neighbours(camvid(options.camvid, 'train'), validation),
        validation,
        read_initial(options.initial) if options.initial else None,
        options.out,
        rows=[row for row in SEGMENTATION_ROWS if row.title in wanted],
        every=options.every,
    )


def _flow(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    recipe = FlowRecipe.from_yaml(options.recipe)
    pictures = [sample.image for sample in camvid(options.camvid, 'train')]
    real = {'real': flow_pairs(options.pairs)}
    return flow_rows(recipe, chairs_style(recipe, pictures), real, PEERS, options.out)


if __name__ == '__main__':
    sys.exit(main())
