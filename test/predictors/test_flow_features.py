from dataclasses import replace

from dense_perception.networks.flownet import FlowNetCorr, FlowNetSimple
from dense_perception.predictors import flow_features
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.weights.checkpoint import Card, Preprocessing
import numpy as np
import pytest
import torch

CARD = Card('flownet_corr', {'width': 1 / 16}, Preprocessing('rgb', (100.0, 110, 120), 255.0))


def estimator(network=FlowNetCorr, **changes):
    """Return an estimator and the list of what its first layer sees."""
    torch.manual_seed(0)
    placement = choose_placement('cpu', 'float32')
    made = FlowEstimator(network(width=1 / 16), CARD, placement, **changes)
    seen = []
    made.network.conv1.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[0]))
    return made, seen


def frames(count, height=70, width=90):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def alone(first, second, **changes):
    return estimator(**changes)[0].estimate(first, second)


@pytest.mark.parametrize('width', [0, 64])
def test_each_image_is_looked_at_once_with_the_same_flow(width):
    reusing, seen = estimator(width=width)
    images = frames(4)
    for first, second in zip(images, images[1:], strict=False):
        np.testing.assert_array_equal(
            reusing.estimate(first, second), alone(first, second, width=width)
        )
    assert len(seen) == 4


def test_flow_is_that_of_the_network_as_a_whole():
    ours, _ = estimator()
    first, second = frames(2, 64, 64)
    with torch.inference_mode():
        whole = ours.network(*ours.inputs(first, second))
        np.testing.assert_array_equal(ours._flow(first, second), whole)


def test_a_frame_written_over_the_one_before_is_a_new_one():
    reusing, seen = estimator()
    images = frames(3)
    place = images[1].copy()
    reusing.estimate(images[0], place)
    place[:] = images[2]
    np.testing.assert_array_equal(reusing.estimate(place, images[1]), alone(images[2], images[1]))
    assert len(seen) == 3  # images[1] is known by its pixels


def test_cameras_in_turn_reuse_their_own_frames():
    reusing, seen = estimator()
    front, left = frames(3), frames(6, 60, 80)[3:]
    for at in range(2):
        for camera in (front, left):
            reusing.estimate(camera[at], camera[at + 1])
    assert len(seen) == 6
    np.testing.assert_array_equal(reusing.estimate(*left[1:]), alone(*left[1:]))


def test_no_more_is_kept_than_memory_is_meant_for(monkeypatch):
    monkeypatch.setattr(flow_features, '_MOST_BYTES', 1)
    reusing, seen = estimator()
    images = frames(2)
    reusing.estimate(images[0], images[1])
    reusing.estimate(images[1], images[0])  # only the newest one was kept
    assert len(seen) == 3


def test_a_network_that_stacks_its_images_has_each_resized_once():
    stacking, seen = estimator(FlowNetSimple, width=64)
    images = frames(3)
    stacking.estimate(images[0], images[1])
    found = stacking.estimate(images[1], images[2])
    assert len(seen) == 2
    assert stacking.features.hits == 1
    np.testing.assert_array_equal(
        found, estimator(FlowNetSimple, width=64)[0].estimate(images[1], images[2])
    )


@pytest.mark.parametrize('network', [FlowNetCorr, FlowNetSimple])
@pytest.mark.parametrize('means', [{'own_mean': True}, {'second_mean': (1.0, 2.0, 3.0)}])
def test_images_whose_means_are_those_of_a_pair_are_prepared_for_each_pair(network, means):
    ours, _ = estimator(network)
    ours.card = replace(CARD, preprocessing=replace(CARD.preprocessing, **means))
    images = frames(3, 64, 64)
    for pair in (images[:2], images[1:]):
        with torch.inference_mode():
            whole = ours.network(*ours.inputs(*pair))
            np.testing.assert_array_equal(ours._flow(*pair), whole)
