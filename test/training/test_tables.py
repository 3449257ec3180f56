import csv
from dataclasses import replace
from pathlib import Path

import cv2
from dense_perception.cli.tables import main
from dense_perception.data.road_world import RoadWorld
from dense_perception.data.segmentation import LabelledFolder
from dense_perception.evaluation.peers import PEERS
from dense_perception.labels import CITYSCAPES
from dense_perception.training.flow import chairs_style, FlowRecipe
from dense_perception.training.labelled import LabelledRecipe
from dense_perception.training.tables import (
    flow_rows,
    SEGMENTATION_ROWS,
    segmentation_rows,
    TRAINED,
    write_rows,
)
import pytest

SHORT = LabelledRecipe(
    steps=2, batch=2, crop_height=64, crop_width=64, precision='float32', rarity=0.0
)


@pytest.fixture
def scenes(tmp_path):
    """Three labelled frames of a rendered drive."""
    pairs = []
    for index in range(3):
        frame = RoadWorld(5).frame(9 * index)
        paths = tmp_path / f'{index}.png', tmp_path / f'{index}_labels.png'
        cv2.imwrite(str(paths[0]), cv2.resize(frame.image, (96, 64))[:, :, ::-1])
        cv2.imwrite(
            str(paths[1]), cv2.resize(frame.labels, (96, 64), interpolation=cv2.INTER_NEAREST)
        )
        pairs.append(paths)
    return LabelledFolder(tuple(pairs), CITYSCAPES)


def chosen(*titles):
    return [row for row in SEGMENTATION_ROWS if row.title in titles]


def test_table_has_every_network_of_the_lecture():
    titles = [row.title for row in SEGMENTATION_ROWS]

    assert titles == [
        *('FCN-32s', 'FCN-16s', 'FCN-8s', 'zoom-out', 'hypercolumns', 'DeconvNet'),
        *('front end', 'front end + Basic', 'front end + Large'),
    ]
    assert all(
        row.refinements == ('none', 'dense_crf', 'crf_rnn') for row in SEGMENTATION_ROWS[6:]
    )


def test_row_of_a_network_is_followed_by_its_refinements(scenes, tmp_path):
    rows = list(
        segmentation_rows(
            SHORT, scenes, scenes, None, tmp_path / 'runs', rows=chosen('front end'), every=2
        )
    )

    assert [row['network'] for row in rows] == [
        'front end',
        'front end + CRF',
        'front end + CRF-RNN',
    ]
    assert {row['images'] for row in rows} == {2}
    assert set(CITYSCAPES.names) < set(rows[0])


def test_trained_row_is_not_trained_again(scenes, tmp_path):
    rows = chosen('FCN-8s')
    first = list(segmentation_rows(SHORT, scenes, scenes, None, tmp_path / 'runs', rows=rows))
    weights = tmp_path / 'runs' / 'FCN-8s' / TRAINED
    written = weights.stat().st_mtime_ns

    again = list(segmentation_rows(SHORT, scenes, scenes, None, tmp_path / 'runs', rows=rows))

    assert weights.stat().st_mtime_ns == written
    assert str(again) == str(first)


def test_flow_table_scores_networks_refined_networks_and_peers_on_the_same_pairs(tmp_path):
    pictures = [RoadWorld(seed).frame(0).image for seed in range(2)]
    recipe = FlowRecipe(
        steps=1, batch=2, width=0.125, crop_height=64, crop_width=64, chairs=2, rendered=0,
        precision='float32',
    )  # fmt: skip
    pairs = chairs_style(recipe, pictures)
    pairs = replace(pairs, held_out=[pairs.held_out[0]])

    rows = list(flow_rows(recipe, pairs, {}, PEERS, tmp_path))

    titles = [row['method'] for row in rows]
    assert titles == ['FlowNetS', 'FlowNetS+v', 'FlowNetC', 'FlowNetC+v', *PEERS]
    assert len({row['chairs_epe_px'] for row in rows}) == len(rows)


def test_rows_are_written_as_they_come(tmp_path):
    path = tmp_path / 'table.csv'

    def rows():
        yield {'network': 'a', 'mean_iou': 0.5}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(path, rows(), {'processor': 'p'})

    with path.open(encoding='utf-8') as file:
        assert list(csv.DictReader(file)) == [
            {'network': 'a', 'mean_iou': '0.5', 'processor': 'p'}
        ]


def test_command_names_a_missing_folder(tmp_path, capsys):
    recipe = Path(__file__).parents[2] / 'config' / 'tables_segmentation.yaml'

    code = main(
        ['segmentation', '--camvid', str(tmp_path / 'none'), '--recipe', str(recipe)]
        + ['--out', str(tmp_path), '--table', str(tmp_path / 'table.csv')]
    )

    assert code == 1
    assert 'none' in capsys.readouterr().err
