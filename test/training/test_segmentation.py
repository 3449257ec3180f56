from dataclasses import replace

import cv2
from dense_perception.data.segmentation import camvid, LabelledImage
from dense_perception.labels import CAMVID
from dense_perception.metrics.segmentation import ConfusionMatrix
from dense_perception.networks.context import FrontEndContext
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.training.labelling import class_weights
from dense_perception.training.loop import Task, TrainingLoop
from dense_perception.training.losses import segmentation_loss
from dense_perception.training.samples import Samples
from dense_perception.training.schedule import LoopSettings
from dense_perception.training.segmentation import RoadScenes, SegmentationRecipe
from dense_perception.weights.checkpoint import Card, Preprocessing
import numpy as np
import pytest
import torch
import torch.nn.functional as F


def sample(labels):
    labels = np.array(labels, np.uint8)
    return LabelledImage('a', np.zeros((*labels.shape, 3), np.uint8), labels)


def test_front_end_with_context_learns_one_image_by_heart(tmp_path):
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:], labels[40:] = 1, 2
    colors = np.array([(200, 60, 60), (60, 200, 60), (60, 60, 200)], np.uint8)
    image = colors[labels]
    card = Card(
        'front_end_context',
        {'classes': len(CAMVID), 'width': 'compact', 'layers': 7},
        Preprocessing(),
        'camvid',
    )
    tensor = (torch.from_numpy(image).permute(2, 0, 1)[None].float() - 115) / 57.375
    target = torch.from_numpy(labels).long()[None]

    def loss(network, _):
        scores = F.interpolate(network(tensor), scale_factor=8, mode='bilinear')
        return segmentation_loss(scores.log_softmax(1), target)

    settings = LoopSettings(
        steps=60, learning_rate=2e-3, warmup_steps=5, average=0.5, precision='float32'
    )
    torch.manual_seed(0)
    task = Task(lambda random, size: None, loss, lambda network: {})
    loop = TrainingLoop(card.build(), task, settings, tmp_path)
    loop.run()
    mean = Preprocessing('rgb', (115.0, 115.0, 115.0), 57.375)
    trained = Card(card.network, card.arguments, mean, 'camvid')
    segmenter = Segmenter(loop.averaged, trained, choose_placement('cpu', 'float32'))
    matrix = ConfusionMatrix(len(CAMVID))
    matrix.add(segmenter.segment(image).labels, labels)
    assert matrix.mean_iou > 0.8  # borders lie within scores of 8 x 8 pixels


def test_class_weights_of_rarity_0_are_all_1():
    weights = class_weights([sample([[0, 0, 0, 1]])], 2, 0.0)
    torch.testing.assert_close(weights, torch.ones(2))


def test_class_weights_of_rarity_1_give_every_class_the_same_say():
    weights = class_weights([sample([[0, 0, 0, 1]])], 2, 1.0)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 2.0]))


def test_mean_class_weight_over_the_labelled_pixels_is_1():
    samples = [sample([[0, 0, 1, 255]]), sample([[2, 1, 0, 0]])]
    weights = class_weights(samples, 3, 0.4)
    counts = torch.tensor([4.0, 2, 1])
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    assert weights[0] < weights[1] < weights[2]


def test_class_that_never_occurs_has_a_finite_weight():
    assert torch.isfinite(class_weights([sample([[0, 0]])], 3, 1.0)).all()


@pytest.fixture
def scenes(tmp_path):
    """Return the recipe's data on two tiny real images and two rendered drives."""
    for split in ('train', 'val'):
        for folder in (split, f'{split}annot'):
            (tmp_path / folder).mkdir()
        random = np.random.default_rng(0)
        for name in ('A_000000', 'A_001000'):
            image = random.integers(0, 256, (72, 96, 3), dtype=np.uint8)
            assert cv2.imwrite(str(tmp_path / split / f'{name}.png'), image)
            labels = random.integers(0, 12, (72, 96), dtype=np.uint8)
            assert cv2.imwrite(str(tmp_path / f'{split}annot' / f'{name}.png'), labels)
    recipe = SegmentationRecipe(
        layers=7, crop_height=64, crop_width=64, drives=1, rendered=1, precision='float32'
    )
    return RoadScenes(recipe, camvid(tmp_path, 'train'), camvid(tmp_path, 'val'))


def test_batch_holds_real_scenes_with_11_classes_and_rendered_ones_with_19(scenes):
    batch = scenes.batch(np.random.default_rng(0), 3)
    assert batch.images.shape == (3, 3, 64, 64)
    assert batch.coarse.shape == (2, 64, 64)
    assert batch.fine.shape == (1, 64, 64)
    known = batch.coarse[batch.coarse != 255]
    assert known.max() < 11
    assert batch.fine[batch.fine != 255].max() < 19


def test_loss_of_a_network_that_knows_nothing_is_that_of_equal_classes(scenes):
    batch = scenes.batch(np.random.default_rng(0), 3)
    torch.manual_seed(0)
    network = scenes.card.build()
    assert isinstance(network, FrontEndContext)
    for parameter in (*network.front_end.final.parameters(), *network.context.parameters()):
        torch.nn.init.zeros_(parameter)
    # Merged classes of one, two or more of 19 equal ones: -log(n / 19), averaged as weighted.
    sizes = torch.bincount(scenes.table.long(), minlength=11)
    costs = -(sizes / 19).log()
    loss = scenes.loss(network, batch)
    low, high = costs.min() * 2 / 3 + np.log(19) / 3, costs.max() * 2 / 3 + np.log(19) / 3
    share = 1 + scenes.recipe.front_end_share
    assert low * share < loss < high * share
    loss.backward()


def test_losses_of_the_parts_add_up_to_that_of_the_batch(scenes):
    task, network = scenes.task(), scenes.card.build().eval()
    whole = scenes.batch(np.random.default_rng(1), 3)
    total = task.normalizer(whole)
    parts = [scenes.batch(np.random.default_rng(1), 3, places) for places in ((0, 2), (1,))]
    assert torch.equal(parts[0].fine, whole.fine)
    assert torch.equal(parts[1].coarse, whole.coarse[[1]])
    torch.testing.assert_close(sum(task.normalizer(part) for part in parts), total)
    losses = [task.loss(network, part, total) for part in parts]
    torch.testing.assert_close(sum(losses), task.loss(network, whole, total))


def test_damaged_image_of_the_data_is_passed_over(scenes, tmp_path, caplog):
    (tmp_path / 'train' / 'A_000000.png').write_bytes(b'no picture')
    scenes.recipe = replace(scenes.recipe, rendered=0)
    real = camvid(tmp_path, 'train')
    scenes.real = Samples(real, largest_unreadable_share=0.5)
    batch = scenes.batch(np.random.default_rng(0), 8)
    assert batch.images.shape[0] == 8
    assert scenes.task().unreadable() == 1
    assert 'A_000000.png: 10 bytes that cannot be decoded' in caplog.text
