import math
import os
from pathlib import Path
import subprocess
import sys

from dense_perception.errors import InputError
from dense_perception.predictors import labelling
from dense_perception.predictors.labelling import Enlargement, label_pixels, reference
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F

SOME = settings(max_examples=40, deadline=None)
WAYS = {'chosen': label_pixels, 'opencv': labelling.with_opencv, 'torch': reference}


def exact(scores, enlargement):
    """Return what is interpolated, in float64: scores, or for zoom probabilities, (C, H, W)."""
    values = scores.double()
    cut = (..., slice(enlargement.height), slice(enlargement.width))
    if enlargement.upsampling == 'zoom':
        from dense_perception.networks.layers import zoom

        values = zoom(values.softmax(1), enlargement.stride).clamp_min(1e-12).log()
    size = (enlargement.rows, enlargement.columns)
    return F.interpolate(values, size, mode='bilinear', align_corners=False)[0][cut]


def assert_same(result, scores, enlargement, tolerance):
    """Compare with float64, in which a class or a step may differ where two are that close."""
    labels, confidence = result
    truth = exact(scores, enlargement)
    assert labels.shape == (enlargement.height, enlargement.width)
    assert labels.dtype == np.uint8
    best = truth.amax(0)
    chosen = truth.gather(0, torch.from_numpy(labels).long()[None])[0]
    assert (best - chosen).max() <= tolerance
    clear = (truth.argmax(0).numpy() != labels).sum()
    second = truth.topk(min(2, len(truth)), 0).values
    close = (second[0] - second[-1] <= tolerance).sum() if len(truth) > 1 else 0
    assert clear <= close
    if confidence is not None:
        share = 255 * truth.softmax(0).amax(0).numpy()
        assert np.abs(confidence - share).max() <= 0.5 + 255 * tolerance


@st.composite
def cases(draw, upsampling='half_pixel'):
    """Return random scores of any size and class count, enlarged as a predictor would."""
    classes = draw(st.integers(1, 40))
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    spread = draw(st.sampled_from([0.01, 1.0, 8.0, 60.0]))
    scores = torch.randn(1, classes, rows, columns, generator=generator) * spread
    if draw(st.booleans()):
        scores = scores.round()  # ties, and areas of one class
    if draw(st.booleans()):
        scores = F.avg_pool2d(F.pad(scores, (1, 1, 1, 1), mode='replicate'), 3, 1)
    factor = 1.0
    if upsampling == 'half_pixel':
        factor = draw(st.sampled_from([1.0, 1.0, 0.31, 1.3337, 2.0]))
    height = max(1, round((8 * rows - draw(st.integers(0, 7))) * factor))
    width = max(1, round((8 * columns - draw(st.integers(0, 7))) * factor))
    enlarged = max(height, round(8 * rows * factor)), max(width, round(8 * columns * factor))
    return scores, Enlargement(*enlarged, height, width, upsampling)


@pytest.mark.parametrize('way', list(WAYS))
@SOME
@given(case=cases())
def test_labels_and_confidence_are_those_of_interpolated_scores(way, case):
    scores, enlargement = case
    tolerance = 3e-5 * max(1.0, float(scores.abs().max()))
    assert_same(WAYS[way](scores, enlargement, confidence=True), *case, tolerance)
    assert_same(WAYS[way](scores, enlargement), *case, tolerance)


@SOME
@given(case=cases('zoom'))
def test_zoomed_labels_and_confidence_are_those_of_interpolated_probabilities(case):
    scores, enlargement = case
    ours, confidence = label_pixels(scores, enlargement, confidence=True)
    theirs, expected = reference(scores, enlargement, confidence=True)
    shares = exact(scores, enlargement).exp()
    near = shares.amax(0) - shares.gather(0, torch.from_numpy(ours).long()[None])[0]
    assert near.max() <= 1e-6
    # Where the best two are equal, rounding decides; nowhere else may the labels differ.
    tied = (shares >= shares.amax(0) - 1e-6).sum(0).numpy() > 1
    np.testing.assert_array_equal(ours[~tied], theirs[~tied])
    assert np.abs(confidence.astype(int) - expected).max() <= 1


@pytest.mark.parametrize('way', list(WAYS))
@pytest.mark.parametrize('classes', [1, 2, 3, 19, 40])
def test_equal_scores_give_the_first_class_in_exact_arithmetic(way, classes):
    # Multiples of 1/8 times weights of sixteenths are exact in float32, so every tie is one.
    generator = torch.Generator().manual_seed(classes)
    scores = torch.randint(-6, 7, (1, classes, 12, 17), generator=generator) / 8
    enlargement = Enlargement(96, 136, 91, 130)
    labels, _ = WAYS[way](scores, enlargement)
    expected = exact(scores, enlargement).numpy().argmax(0)  # the first of equal ones
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize('way', list(WAYS))
@pytest.mark.parametrize('classes', [1, 2, 5, 19])
def test_classes_of_one_score_share_the_confidence(way, classes):
    labels, confidence = WAYS[way](
        torch.full((1, classes, 3, 4), -2.5), Enlargement(24, 32, 20, 30), confidence=True
    )
    assert (labels == 0).all()
    assert (confidence == round(255 / classes)).all()


def test_a_class_that_wins_only_between_scores_is_found():
    scores = torch.zeros(1, 3, 1, 2)
    scores[0, 0] = torch.tensor([[10.0, -10.0]])
    scores[0, 1] = torch.tensor([[-10.0, 10.0]])
    scores[0, 2] = 4.0  # best at neither score, best in the middle
    labels, _ = label_pixels(scores, Enlargement(8, 16, 8, 16))
    assert labels[0, 0] == 0
    assert labels[0, 8] == 2
    assert labels[0, 15] == 1


@SOME
@given(case=st.one_of(cases(), cases('zoom')))
def test_stretches_of_even_distance_hold_every_pixel_where_it_is(case):
    compiled = pytest.importorskip('dense_perception.predictors.compiled')
    for axis in labelling.axes(*case):
        score, first, count, start, step = compiled.even_stretches(*axis)
        assert first[0] == 0
        np.testing.assert_array_equal(first[1:], np.cumsum(count)[:-1])
        assert count.sum() == axis.lower.size
        np.testing.assert_array_equal(np.repeat(score, count), axis.lower)
        along = np.arange(axis.lower.size) - np.repeat(first, count)
        weights = np.repeat(start, count) + along * np.repeat(step, count)
        np.testing.assert_allclose(weights, axis.weight, atol=2e-5)


@pytest.mark.parametrize('spread', [4, 40], ids=['close', 'steep'])
@pytest.mark.parametrize('factor', [1, 4 / 3, 5 / 2])
def test_confidence_of_a_compiled_kernel_is_that_of_the_definition_but_for_rounding(
    factor, spread
):
    pytest.importorskip('numba')
    scores = torch.randn(1, 19, 30, 40, generator=torch.Generator().manual_seed(3)) * 6
    scores = F.avg_pool2d(F.pad(scores, (2, 2, 2, 2), mode='replicate'), 5, 1) * spread
    size = round(240 * factor), round(320 * factor)
    enlargement = Enlargement(*size, *size)
    _, ours = label_pixels(scores, enlargement, confidence=True)
    share = 255 * exact(scores, enlargement).softmax(0).amax(0).numpy()
    assert np.abs(ours - share).max() <= 0.5 + 0.01
    assert len(np.unique(ours)) > 100


def test_confidence_of_scores_far_apart_is_finite():
    scores = torch.tensor([-1e4, 0.0, 1e4]).view(1, 3, 1, 1).expand(1, 3, 4, 4).contiguous()
    scores[:, :, 2:] = scores[:, :, 2:].flip(1)
    labels, confidence = label_pixels(scores, Enlargement(32, 32, 32, 32), confidence=True)
    assert set(np.unique(labels)) <= {0, 1, 2}
    assert confidence[0, 0] == confidence[-1, -1] == 255


def test_zoom_to_another_size_than_the_networks_follows_the_definition():
    scores = torch.randn(1, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    enlargement = Enlargement(50, 77, 49, 76, 'zoom')
    ours = label_pixels(scores, enlargement, confidence=True)
    for result, expected in zip(
        ours, reference(scores, enlargement, confidence=True), strict=True
    ):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize('threads', [1, 3])
def test_the_number_of_threads_changes_nothing(threads):
    scores = torch.randn(1, 11, 100, 30, generator=torch.Generator().manual_seed(1)) * 3
    enlargement = Enlargement(800, 240, 795, 240)
    before, results = torch.get_num_threads(), []
    try:
        for count in (2, threads):
            torch.set_num_threads(count)
            results.append(label_pixels(scores, enlargement, confidence=True))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_channels_last_scores_give_the_same_labels():
    scores = torch.randn(1, 7, 9, 11, generator=torch.Generator().manual_seed(2))
    enlargement = Enlargement(72, 88, 70, 85)
    one, _ = label_pixels(scores, enlargement)
    other, _ = label_pixels(scores.contiguous(memory_format=torch.channels_last), enlargement)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    'scores', [torch.zeros(3, 4, 5), torch.zeros(2, 3, 4, 5), torch.zeros(1, 256, 2, 2)]
)
def test_scores_of_another_form_are_refused(scores):
    with pytest.raises(InputError, match='1 to 255 classes'):
        label_pixels(scores, Enlargement(32, 40, 32, 40))


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_finite_numbers_are_refused(value):
    scores = torch.zeros(1, 3, 4, 5)
    scores[0, 1, 2, 3] = value
    with pytest.raises(InputError, match='infinity or no number'):
        label_pixels(scores, Enlargement(32, 40, 32, 40))


def test_an_image_larger_than_its_enlarged_scores_is_refused():
    with pytest.raises(InputError, match='33 x 40 pixels'):
        Enlargement(32, 40, 33, 40)


WITHOUT_NUMBA = """
import sys
sys.modules['numba'] = None  # as where it is not installed
import numpy as np, torch
from dense_perception.predictors import labelling
scores = torch.randn(1, 6, 3, 5, generator=torch.Generator().manual_seed(0)) * 4
for upsampling in ('half_pixel', 'zoom'):
    enlargement = labelling.Enlargement(24, 40, 21, 38, upsampling)
    labels, confidence = labelling.label_pixels(scores, enlargement, confidence=True)
    expected, share = labelling.reference(scores, enlargement, confidence=True)
    np.testing.assert_array_equal(labels, expected)
    assert np.abs(confidence.astype(int) - share).max() <= 1
"""


def run_python(code, **variables):
    root = str(Path(labelling.__file__).parents[2])
    environment = {**os.environ, 'PYTHONPATH': root, **variables}
    return subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True
    )


def test_labels_are_made_where_numba_is_missing():
    done = run_python(WITHOUT_NUMBA)
    assert done.returncode == 0, done.stderr


INTERPRETED = """
import numpy as np, torch
from dense_perception.predictors import labelling, labelling_cuda
for upsampling in ('half_pixel', 'zoom'):
    scores = torch.randn(1, 6, 3, 5, generator=torch.Generator().manual_seed(0)) * 4
    enlargement = labelling.Enlargement(24, 40, 21, 38, upsampling)
    places = labelling.axes(scores, enlargement)
    zoomed = upsampling == 'zoom'
    values = scores.softmax(1) if zoomed else scores
    labels, confidence = labelling_cuda.label(values[0], *places, not zoomed, True)
    expected, share = labelling.reference(scores, enlargement, confidence=True)
    assert (labels != expected).mean() < 0.005, upsampling
    assert np.abs(confidence.astype(int) - share).max() <= 1, upsampling
"""


def test_the_kernel_for_gpus_gives_the_same_in_tritons_interpreter():
    pytest.importorskip('triton')
    done = run_python(INTERPRETED, TRITON_INTERPRET='1')
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize('upsampling', ['half_pixel', 'zoom'])
def test_a_gpu_gives_the_labels_of_the_cpu(upsampling):
    scores = torch.randn(1, 19, 45, 60, generator=torch.Generator().manual_seed(0)) * 4
    enlargement = Enlargement(360, 480, 360, 480, upsampling)
    labels, confidence = label_pixels(scores.cuda(), enlargement, confidence=True)
    expected, share = label_pixels(scores, enlargement, confidence=True)
    assert (labels != expected).mean() < 1e-4
    assert np.abs(confidence.astype(int) - share).max() <= 1
