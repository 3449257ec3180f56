import cv2
from dense_perception.data.road_world import RoadWorld, RoadWorldSettings
from dense_perception.errors import InputError
from dense_perception.metrics.flow import EndPointError
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.flow_refinement import refine_flow, resized_flow
from dense_perception.weights.published import find_weights
import numpy as np
import pytest


def textured(height, width):
    noise = np.random.default_rng(0).random((height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def test_flow_that_is_a_little_off_is_put_right():
    image = textured(96, 130)
    first, second = image[:, 3:-2], image[:, 1:-4]  # what is at x moves to x + 2
    rough = np.zeros((*first.shape[:2], 2), np.float32)
    rough[..., 0] = 1.2  # where 2 would be right
    refined = refine_flow(first, second, rough)
    inner = refined[8:-8, 8:-8]
    np.testing.assert_allclose(inner, np.broadcast_to([2.0, 0.0], inner.shape), atol=0.2)


def test_images_that_do_not_move_keep_no_flow():
    image = textured(50, 60)
    zero = np.zeros((50, 60, 2), np.float32)
    np.testing.assert_allclose(refine_flow(image, image, zero), zero, atol=1e-3)


def test_flow_of_the_shipped_network_comes_nearer_to_the_truth():
    world = RoadWorld(900_001, RoadWorldSettings(height=192, width=256))
    first, second = world.frame(20).image, world.frame(21).image
    truth, visible = world.flow(20, 21)
    estimator = FlowEstimator.from_file(find_weights('flow'), device='cpu', precision='float32')
    rough = estimator.estimate(first, second)
    errors = []
    for flow in (rough, refine_flow(first, second, rough)):
        error = EndPointError()
        error.add(flow, truth, visible)
        errors.append(error.mean)
    assert errors[1] < 0.95 * errors[0]


def test_what_is_given_is_left_as_it_is():
    image, flow = textured(40, 40), np.ones((40, 40, 2), np.float32)
    before = image.copy()
    refined = refine_flow(image, image, flow)
    assert (flow == 1).all()
    assert (image == before).all()
    assert refined is not flow


@pytest.mark.parametrize('size', [(1, 1), (1, 40), (3, 2), (7, 200)])
def test_flow_of_any_size_is_refined(size):
    image, flow = np.zeros((*size, 3), np.uint8), np.zeros((*size, 2), np.float32)
    refined = refine_flow(image, image, flow)
    assert refined.shape == flow.shape
    assert refined.dtype == np.float32
    assert np.isfinite(refined).all()


def test_flow_on_a_smaller_grid_is_in_pixels_of_that_grid():
    flow = np.broadcast_to(np.float32([8.0, 6.0]), (40, 60, 2))
    half = resized_flow(np.ascontiguousarray(flow), (30, 10))
    assert half.shape == (10, 30, 2)
    np.testing.assert_allclose(half, np.broadcast_to([4.0, 1.5], half.shape), rtol=1e-6)


def test_sizes_that_do_not_match_are_refused():
    image = textured(20, 30)
    with pytest.raises(InputError, match='rows and columns must be equal'):
        refine_flow(image, image, np.zeros((20, 29, 2), np.float32))
    with pytest.raises(InputError, match='rows and columns must be equal'):
        refine_flow(image, image[:-1], np.zeros((20, 30, 2), np.float32))
