import cv2
from dense_perception.data.flying_chairs import chairs_pair, ChairsShape
import numpy as np
import pytest

SHAPE = ChairsShape(96, 128, fewest=3, most=6)


@pytest.fixture(scope='module')
def pictures():
    random = np.random.default_rng(0)
    noise = random.random((3, 200, 260, 3)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(picture, (0, 0), 3) for picture in noise])
    return list(np.clip((smooth - 0.5) * 800 + 128, 0, 255).astype(np.uint8))


@pytest.mark.parametrize('seed', range(8))
def test_second_image_read_along_the_flow_is_the_first(pictures, seed):
    pair = chairs_pair(np.random.default_rng(seed), pictures, SHAPE)
    y, x = np.mgrid[:96, :128].astype(np.float32)
    warped = cv2.remap(pair.second, x + pair.flow[..., 0], y + pair.flow[..., 1], cv2.INTER_LINEAR)
    # Away from where a piece ends, or hides another.
    valid = cv2.erode(pair.valid.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert valid.mean() > 0.2
    error = np.abs(warped[valid].astype(int) - pair.first[valid])
    motionless = np.abs(pair.second[valid].astype(int) - pair.first[valid])
    assert np.median(error) <= 3
    assert error.mean() < max(4, 0.3 * motionless.mean())


def test_pair_follows_the_generator_alone(pictures):
    one, two = (chairs_pair(np.random.default_rng(3), pictures, SHAPE) for _ in range(2))
    other = chairs_pair(np.random.default_rng(4), pictures, SHAPE)
    for name in ('first', 'second', 'flow', 'valid'):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert not np.array_equal(one.flow, other.flow)


def test_pair_has_the_form_of_every_flow_pair(pictures):
    pair = chairs_pair(np.random.default_rng(0), pictures, SHAPE)
    assert pair.first.shape == pair.second.shape == (96, 128, 3)
    assert pair.first.dtype == pair.second.dtype == np.uint8
    assert (pair.flow.shape, pair.flow.dtype) == ((96, 128, 2), np.float32)
    assert (pair.valid.shape, pair.valid.dtype) == ((96, 128), bool)


def test_valid_pixels_stay_inside_the_second_image(pictures):
    y, x = np.mgrid[:96, :128].astype(np.float32)
    for seed in range(8):
        pair = chairs_pair(np.random.default_rng(seed), pictures, SHAPE)
        u, v = (x + pair.flow[..., 0])[pair.valid], (y + pair.flow[..., 1])[pair.valid]
        assert (u > -0.51).all()
        assert (v > -0.51).all()
        assert (u < 127.51).all()
        assert (v < 95.51).all()


def test_images_are_384_by_512_unless_told_otherwise(pictures):
    assert chairs_pair(np.random.default_rng(0), pictures).flow.shape == (384, 512, 2)


def test_most_motions_are_small_and_some_are_large(pictures):
    lengths = np.concatenate(
        [
            np.linalg.norm(
                chairs_pair(np.random.default_rng(seed), pictures, SHAPE).flow, axis=-1
            ).ravel()
            for seed in range(40)
        ]
    ) * (512 / 128)
    assert 2 < np.median(lengths) < 20
    assert np.quantile(lengths, 0.95) > 2.5 * np.median(lengths)
