from dataclasses import replace

import cv2
from dense_perception.data.flow import FlowPair
from dense_perception.networks.flownet import FlowNetSimple
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.training.flow import (
    chairs_style,
    FlowRecipe,
    mean_error,
    MovingScenes,
    Pairs,
)
from dense_perception.training.loop import TrainingLoop
from dense_perception.weights.checkpoint import load_weights
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
    return MovingScenes(recipe, chairs_style(recipe, pictures))


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

    card = MovingScenes(FlowRecipe(width=0.0625), Pairs('none', [], [])).card
    estimator = FlowEstimator(network, card, choose_placement('cpu', 'float32'))
    assert mean_error(estimator, [pair(1, 30), pair(5, 10)]) == pytest.approx(2.0)


def test_parts_of_a_batch_hold_the_samples_of_the_whole(scenes):
    whole = scenes.batch(np.random.default_rng(1), 3)
    parts = [scenes.batch(np.random.default_rng(1), 3, places) for places in ((0, 2), (1,))]
    for name, value in vars(whole).items():
        assert torch.equal(value[[0, 2]], getattr(parts[0], name))
        assert torch.equal(value[[1]], getattr(parts[1], name))


@pytest.mark.parametrize('error', ['mean', 'sum'])
def test_losses_of_the_parts_add_up_to_that_of_the_batch(scenes, error):
    scenes.recipe = replace(scenes.recipe, error=error)
    task, network = scenes.task(), scenes.card.build()
    whole = scenes.batch(np.random.default_rng(1), 3)
    known = task.normalizer(whole)
    parts = [scenes.batch(np.random.default_rng(1), 3, places) for places in ((0, 2), (1,))]
    assert torch.equal(sum(task.normalizer(part) for part in parts), known)
    losses = [task.loss(network, part, known) for part in parts]
    torch.testing.assert_close(sum(losses), task.loss(network, whole, known))


def test_summed_error_is_the_papers_sum_over_pixels_of_each_sample(scenes):
    scenes.recipe = replace(scenes.recipe, error='sum')
    network = FlowNetSimple(width=0.0625)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)  # says that nothing moves
    batch = scenes.batch(np.random.default_rng(0), 2)
    still = replace(batch, flow=torch.zeros_like(batch.flow), valid=torch.ones_like(batch.valid))
    moved = replace(still, flow=torch.full_like(batch.flow, 20.0))  # one unit, both ways
    loss = scenes.loss(network, moved, torch.tensor([2 * 64.0 * 64, 2]))
    pixels = (1, 4, 16, 64, 256)  # of levels 6 to 2
    weights = (0.32, 0.08, 0.02, 0.01, 0.005)
    expected = sum(count * weight for count, weight in zip(pixels, weights, strict=True))
    assert loss.item() == pytest.approx(2**0.5 * expected, rel=1e-4)


def test_best_weights_are_written_with_their_scores(scenes, tmp_path):
    network = scenes.card.build()
    scenes.save(tmp_path / 'best.safetensors', network, {'chairs_epe_px': 1.5})
    loaded, card = load_weights(tmp_path / 'best.safetensors')
    torch.testing.assert_close(loaded.conv1[0].weight, network.conv1[0].weight, atol=1e-3, rtol=0)
    assert card.notes['scores'] == {'chairs_epe_px': 1.5}
    assert card.notes['recipe']['width'] == 0.0625


def test_blur_of_the_recipe_changes_images_and_no_flow(scenes):
    sharp = scenes.batch(np.random.default_rng(1), 3)
    scenes.recipe = replace(scenes.recipe, blur=1.0)
    blurred = scenes.batch(np.random.default_rng(1), 3)
    assert torch.equal(sharp.flow, blurred.flow)
    for name in ('first', 'second'):
        for one, two in zip(getattr(sharp, name), getattr(blurred, name), strict=True):
            assert not torch.equal(one, two)
