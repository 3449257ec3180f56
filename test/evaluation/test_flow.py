import math

from dense_perception.errors import InputError
from dense_perception.evaluation.flow import evaluate_flow
from dense_perception.evaluation.peers import PEERS
import numpy as np
import pytest


def flow(*vectors):
    return np.array([vectors], np.float32)


def test_report_compares_with_no_flow_at_all():
    known = np.ones((1, 2), bool)
    pairs = [
        (flow((3, 4), (0, 0)), flow((0, 0), (0, 2)), known),
        (flow((1, 1), (9, 9)), flow((1, 1), (3, 0)), np.array([[True, False]])),
    ]
    report = evaluate_flow(pairs)
    assert report.pairs == 2
    assert report.end_point_error_px == pytest.approx((5 + 2 + 0) / 3)
    assert report.zero_flow_error_px == pytest.approx((0 + 2 + math.sqrt(2)) / 3)


def test_report_on_nothing_has_no_numbers():
    report = evaluate_flow([])
    assert report.pairs == 0
    assert math.isnan(report.end_point_error_px)
    assert math.isnan(report.zero_flow_error_px)


def test_estimate_of_another_size_is_refused():
    with pytest.raises(InputError, match='sizes must match'):
        evaluate_flow([(flow((0, 0)), flow((0, 0), (1, 1)), np.ones((1, 2), bool))])


@pytest.mark.parametrize('method', PEERS.values(), ids=PEERS)
def test_peer_finds_the_flow_of_a_shifted_texture(method):
    rows, columns = np.mgrid[:120, :160]
    random = np.random.default_rng(0)
    texture = sum(
        np.sin(rows * a + columns * b + c) for a, b, c in random.uniform(0.1, 0.6, (12, 3))
    )
    image = np.clip(texture * 20 + 128, 0, 255).astype(np.uint8)[..., None].repeat(3, 2)
    first, second = image[10:-10, 10:-10], image[7:-13, 8:-12]  # moves by 2 right, 3 down
    estimate = method(first, second)
    assert estimate.shape == (100, 140, 2)
    np.testing.assert_allclose(np.median(estimate[20:-20, 20:-20], (0, 1)), (2, 3), atol=0.3)
