from dataclasses import replace

import cv2
from dense_perception.data.flow import FlowPair
from dense_perception.networks.flownet import FlowNetSimple
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.training.flow import FlowRecipe, mean_error, MovingScenes
from dense_perception.training.loop import TrainingLoop
import numpy as np
import pytest
import torch


@pytest.fixture
def scenes():
    """Return the recipe's data on pictures of smooth noise."""
    noise = np.random.default_rng(0).random((12, 80, 100, 3)).astype(np.float32)
    pictures = [
        np.clip((cv2.GaussianBlur(picture, (0, 0), 2) - 0.5) * 800 + 128, 0, 255).astype(np.uint8)
        for picture in noise
    ]
    recipe = FlowRecipe(
        width=0.0625,
        crop_height=64,
        crop_width=64,
        chairs=3,
        drives=1,
        rendered=1,
        batch=3,
        steps=2,
        warmup_steps=0,
        precision='float32',
    )
    return MovingScenes(recipe, pictures)


def test_batch_holds_images_flow_and_where_it_is_known(scenes):
    batch = scenes.batch(np.random.default_rng(0), 3)
    assert batch.first.shape == batch.second.shape == (3, 3, 64, 64)
    assert batch.flow.shape == (3, 2, 64, 64)
    assert batch.valid.shape == (3, 1, 64, 64)
    assert batch.first.dtype == torch.uint8
    assert batch.valid[:2].all()  # in chairs-style pairs flow is known everywhere


def test_batches_follow_the_generator_alone(scenes):
    one, two = (scenes.batch(np.random.default_rng(1), 2) for _ in range(2))
    for name, value in vars(one).items():
        assert torch.equal(value, getattr(two, name))


def test_recipe_trains_the_network_that_its_card_names(scenes, tmp_path):
    network = scenes.card.build()
    assert isinstance(network, FlowNetSimple)
    before = network.conv1[0].weight.detach().clone()
    task = replace(scenes.task(), evaluate=lambda network: {})
    loop = TrainingLoop(network, task, scenes.recipe, tmp_path)
    loop.run()
    assert not torch.equal(loop.network.conv1[0].weight, before)
    assert torch.isfinite(loop.averaged.conv1[0].weight).all()


def test_mean_error_is_over_every_known_pixel_of_the_pairs():
    network = FlowNetSimple(width=0.0625)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)  # says that nothing moves

    def pair(length, known):
        image = np.zeros((64, 64, 3), np.uint8)
        valid = np.zeros((64, 64), bool)
        valid.flat[:known] = True
        return FlowPair('a', image, image, np.full((64, 64, 2), (length, 0), np.float32), valid)

    card = MovingScenes(FlowRecipe(width=0.0625), [np.zeros((8, 8, 3), np.uint8)] * 2).card
    estimator = FlowEstimator(network, card, choose_placement('cpu', 'float32'))
    assert mean_error(estimator, [pair(1, 30), pair(5, 10)]) == pytest.approx(2.0)
