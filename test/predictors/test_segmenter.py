from dataclasses import replace

import cv2
from dense_perception.errors import InputError, SettingError, WeightsError
from dense_perception.graphical.dense_crf import DenseCrf, unary_from_probabilities
from dense_perception.labels import CAMVID
from dense_perception.networks.context import FrontEndContext
from dense_perception.networks.frontend import FrontEnd, SHAPES
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.labelling import enlarge, Enlargement
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.checkpoint import Card, Preprocessing, save_weights
import numpy as np
import pytest
import torch
from torch import nn
import torch.nn.functional as F

CPU = choose_placement('cpu', 'float32')
ARGUMENTS = {'classes': 11, 'width': 'compact', 'layers': 7}
CARD = Card('front_end_context', ARGUMENTS, Preprocessing(), 'camvid')


def compact():
    """Return a compact network with random weights that tell colours and places apart."""
    torch.manual_seed(0)
    network = FrontEndContext(**ARGUMENTS)
    nn.init.normal_(network.front_end.final.weight, std=0.3)
    return network


def picture(height, width, seed=0):
    """Return an image with structure of several sizes, (H, W, 3) uint8."""
    noise = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 6, borderType=cv2.BORDER_REFLECT)
    smooth = (smooth - smooth.min()) / max(float(np.ptp(smooth)), 1e-6)
    return (smooth * 200 + noise * 55).astype(np.uint8)


class MeanColor(nn.Module):
    """Score of class c is channel c of the image, averaged over 8 x 8 pixels."""

    margin = 0

    def forward(self, image):
        rows, columns = -image.shape[2] % 8, -image.shape[3] % 8
        return F.avg_pool2d(F.pad(image, (0, columns, 0, rows), mode='replicate'), 8)


def mean_color(**changes):
    preprocessing = Preprocessing('rgb', (0.0, 0.0, 0.0), 1.0)
    card = Card('front_end', {}, preprocessing, 'camvid')
    return Segmenter(MeanColor(), card, CPU, **changes)


@pytest.mark.parametrize('width', [0, 64, 100])
@pytest.mark.parametrize('size', [(64, 96), (37, 53), (1, 1), (8, 200), (129, 7)])
def test_labels_and_confidence_have_the_size_of_the_image(size, width):
    segmenter = Segmenter(compact(), CARD, CPU, width=width)
    result = segmenter.segment(picture(*size), confidence=True)
    assert (result.labels.shape, result.labels.dtype) == (size, np.uint8)
    assert (result.confidence.shape, result.confidence.dtype) == (size, np.uint8)
    assert result.labels.max() < len(CAMVID)


def test_labels_are_the_best_scores_interpolated_to_the_pixels():
    segmenter = Segmenter(compact(), CARD, CPU)
    image = picture(64, 96)
    scores = segmenter.scores(image)
    assert scores.shape == (1, 11, 8, 12)
    larger = F.interpolate(scores, scale_factor=8, mode='bilinear', align_corners=False)
    result = segmenter.segment(image, confidence=True)
    best, labels = larger.softmax(1).max(1)
    np.testing.assert_array_equal(result.labels, labels[0])
    np.testing.assert_allclose(result.confidence, 255 * best[0], atol=0.5 + 1e-3)


def test_zoom_weights_interpolate_probabilities_from_the_top_left_of_each_score():
    segmenter = Segmenter(compact(), replace(CARD, upsampling='zoom'), CPU)
    image = picture(40, 48)
    shares = segmenter.scores(image).softmax(1)
    result = segmenter.segment(image, confidence=True)
    best, labels = shares.max(1)
    np.testing.assert_array_equal(result.labels[::8, ::8], labels[0])
    np.testing.assert_allclose(result.confidence[::8, ::8], 255 * best[0], atol=0.6)
    between = (shares[:, :, :-1, :-1] + shares[:, :, 1:, 1:] + shares[:, :, 1:, :-1]) / 4
    between = between + shares[:, :, :-1, 1:] / 4  # four pixels right and down
    np.testing.assert_allclose(
        result.confidence[4:-8:8, 4:-8:8], 255 * between.max(1)[0][0], atol=0.6
    )


def test_confidence_is_given_only_when_asked_for():
    assert Segmenter(compact(), CARD, CPU).segment(picture(16, 16)).confidence is None


@pytest.mark.parametrize('width', [0, 80, 320])
def test_labels_lie_where_the_image_has_them(width):
    image = np.zeros((120, 160, 3), np.uint8)
    image[:48, :, 0] = 200
    image[48:, :80, 1] = 200
    image[48:, 80:, 2] = 200
    labels = mean_color(width=width).segment(image).labels
    expected = image.argmax(-1)
    # Scores are 8 input pixels wide; the border between two classes may be off by half of that.
    slack = 8 if width in (0, 320) else 16
    near = np.zeros(labels.shape, bool)
    near[48 - slack : 48 + slack] = True
    near[:, 80 - slack : 80 + slack] = True
    np.testing.assert_array_equal(labels[~near], expected[~near])


def test_network_without_padding_sees_the_image_reflected_by_its_margin(monkeypatch):
    shape = replace(SHAPES['full'], widths=(4, 4, 4, 4, 4), fc_width=8)
    monkeypatch.setitem(SHAPES, 'thin', shape)
    torch.manual_seed(0)
    network = FrontEnd(11, 'thin')
    nn.init.normal_(network.final.weight)
    for size in ((200, 216), (45, 30)):  # larger and smaller than the margin
        image = picture(*size)
        segmenter = Segmenter(network, CARD, CPU)
        assert segmenter.segment(image).labels.shape == size
        padded = np.pad(image, ((186, 186), (186, 186), (0, 0)), mode='reflect')
        values = torch.from_numpy(padded).permute(2, 0, 1)[None].float()
        mean = torch.tensor(CARD.preprocessing.mean)[:, None, None]
        expected = network((values - mean) / CARD.preprocessing.scale)
        assert expected.std() > 0.1
        torch.testing.assert_close(segmenter.scores(image), expected, rtol=1e-4, atol=1e-5)


def test_image_of_one_pixel_is_reflected_too(monkeypatch):
    shape = replace(SHAPES['full'], widths=(1, 1, 1, 1, 1), fc_width=1)
    monkeypatch.setitem(SHAPES, 'thin', shape)
    assert Segmenter(FrontEnd(11, 'thin'), CARD, CPU).segment(picture(1, 5)).labels.shape == (1, 5)


def test_the_network_sees_tiles_where_the_card_names_them():
    tile = (48, 56)
    segmenter = Segmenter(compact(), replace(CARD, tile=tile), choose_placement('cpu', 'float32'))
    seen = []
    segmenter.network.network.register_forward_pre_hook(
        lambda _, given: seen.append(tuple(given[0].shape[2:]))
    )
    labels = segmenter.segment(picture(72, 96)).labels
    assert len(seen) > 1
    assert set(seen) == {tile}
    whole = Segmenter(compact(), CARD, choose_placement('cpu', 'float32'))
    assert (labels != whole.segment(picture(72, 96)).labels).any()


def test_bfloat16_labels_agree_with_float32_ones():
    image = picture(128, 160)
    exact = Segmenter(compact(), CARD, CPU).segment(image).labels
    assert len(np.unique(exact)) > 1
    rough = Segmenter(compact(), CARD, choose_placement('cpu', 'bfloat16')).segment(image).labels
    assert (rough == exact).mean() >= 0.99


def test_bgr_weights_see_the_channels_in_their_order():
    card = Card('front_end', {}, Preprocessing('bgr', (10.0, 0.0, 0.0), 2.0), 'camvid')
    image = np.full((8, 8, 3), (30, 60, 90), np.uint8)
    scores = Segmenter(MeanColor(), card, CPU).scores(image)
    assert scores.flatten().tolist() == [40, 30, 15]


def test_same_image_gives_the_same_labels_again():
    segmenter, image = Segmenter(compact(), CARD, CPU), picture(40, 60)
    first = segmenter.segment(image).labels
    segmenter.segment(picture(40, 60, seed=1))
    np.testing.assert_array_equal(segmenter.segment(image).labels, first)


def assert_same(ours, theirs):
    """Compare what two runs give: a batch may round in another order than one image."""
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert np.abs(ours.confidence.astype(int) - theirs.confidence).max() <= 1


@pytest.mark.parametrize(
    'changes',
    [{}, {'width': 64}, {'refinement': 'dense_crf'}],
    ids=['plain', 'resized', 'refined'],
)
def test_several_images_are_labelled_as_each_alone(changes):
    segmenter = Segmenter(compact(), CARD, CPU, **changes)
    sizes = [(40, 60), (37, 53), (40, 60), (1, 1), (37, 53)]
    images = [picture(*size, seed=at) for at, size in enumerate(sizes)]
    together = segmenter.segment_all(images, confidence=True)
    assert len(together) == len(images)
    for image, result in zip(images, together, strict=True):
        assert_same(result, segmenter.segment(image, confidence=True))


def test_images_of_one_size_are_one_batch_of_the_network():
    segmenter = mean_color()
    batches = []
    segmenter.network.register_forward_pre_hook(lambda _, given: batches.append(len(given[0])))
    images = [picture(16, 24), picture(24, 16), picture(16, 24), picture(16, 24)]
    results = segmenter.segment_all(images)
    assert batches == [3, 1]
    assert all(result.confidence is None for result in results)


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def test_images_one_after_the_other_are_labelled_as_each_alone(device):
    segmenter = Segmenter(compact(), CARD, choose_placement(device, 'float32'))
    images = [picture(*size, seed=at) for at, size in enumerate([(40, 60), (40, 60), (37, 53)])]
    results = segmenter.segment_each(iter(images), confidence=True)
    for image, result in zip(images, results, strict=True):
        assert_same(result, segmenter.segment(image, confidence=True))
    assert list(segmenter.segment_each([])) == []


def test_no_images_give_no_labels():
    assert mean_color().segment_all([]) == []


def test_one_image_of_another_form_is_refused_before_any_is_labelled():
    segmenter = mean_color()
    runs = []
    segmenter.network.register_forward_pre_hook(lambda *_: runs.append(1))
    with pytest.raises(InputError, match=r'\(H, W, 3\) uint8 is needed'):
        segmenter.segment_all([picture(8, 8), np.zeros((8, 8), np.uint8)])
    assert not runs


@pytest.mark.parametrize('layout', [lambda image: image[:, ::-1], np.asfortranarray])
def test_memory_layout_of_the_image_does_not_matter(layout):
    segmenter, image = Segmenter(compact(), CARD, CPU), picture(40, 60)
    other = layout(image)
    expected = segmenter.segment(np.ascontiguousarray(other)).labels
    other.flags.writeable = False
    np.testing.assert_array_equal(segmenter.segment(other).labels, expected)


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
    ],
)
def test_image_of_another_form_is_refused(image):
    with pytest.raises(InputError, match=r'\(H, W, 3\) uint8 is needed'):
        mean_color().segment(image)


def test_segmenter_is_made_from_a_weights_file(tmp_path):
    save_weights(tmp_path / 'a.safetensors', compact(), CARD, torch.float32)
    segmenter = Segmenter.from_file(tmp_path / 'a.safetensors', device='cpu', precision='float32')
    assert segmenter.label_set is CAMVID
    image = picture(40, 60)
    expected = Segmenter(compact(), CARD, CPU).segment(image).labels
    np.testing.assert_array_equal(segmenter.segment(image).labels, expected)


def test_weights_without_a_label_set_are_no_segmentation_network(tmp_path):
    save_weights(tmp_path / 'a.safetensors', compact(), replace(CARD, label_set=''))
    with pytest.raises(WeightsError, match='a.safetensors: .* is no segmentation network'):
        Segmenter.from_file(tmp_path / 'a.safetensors', device='cpu')


@pytest.mark.parametrize(
    ('device', 'precision', 'message'),
    [
        ('tpu', 'auto', "device is 'tpu', which cannot be used here"),
        ('cuda:99', 'auto', "device is 'cuda:99', which cannot be used here"),
        ('cpu', 'int8', "precision is 'int8'; it must be one of auto, float32"),
        ('cpu', 'float16', 'float16 is 100 times slower on a CPU'),
    ],
)
def test_device_or_precision_that_is_not_to_be_had_is_refused(device, precision, message):
    with pytest.raises(SettingError, match=message):
        choose_placement(device, precision)


def test_placement_tells_device_and_precision():
    assert str(choose_placement('cpu', 'bfloat16')) == 'cpu bfloat16'


def test_scores_of_all_pixels_are_refined_before_they_are_labels():
    image = picture(40, 60)
    plain = Segmenter(compact(), CARD, CPU)
    refined = Segmenter(compact(), CARD, CPU, refinement='dense_crf').segment(
        image, confidence=True
    )
    scores = enlarge(plain.scores(image), Enlargement(40, 64, 40, 60))
    unary = unary_from_probabilities(scores[0].softmax(0))
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    best, labels = DenseCrf(pixels).infer(unary).max(0)
    np.testing.assert_array_equal(refined.labels, labels)
    np.testing.assert_allclose(refined.confidence, 255 * best, atol=0.51)
    assert (refined.labels != plain.segment(image).labels).any()


@pytest.mark.parametrize('refinement', ['dense_crf', 'crf_rnn'])
@pytest.mark.parametrize('size', [(1, 1), (5, 90), (48, 64)])
def test_labels_of_any_size_can_be_refined(refinement, size):
    segmenter = Segmenter(compact(), CARD, CPU, width=64, refinement=refinement)
    assert segmenter.segment(picture(*size)).labels.shape == size


@pytest.mark.parametrize('refinement', ['dense_crf', 'crf_rnn'])
def test_network_in_bfloat16_can_be_refined(refinement):
    placement = choose_placement('cpu', 'bfloat16')
    result = Segmenter(compact(), CARD, placement, refinement=refinement).segment(picture(40, 60))
    assert result.labels.max() < len(CAMVID)


def test_refinement_that_does_not_exist_or_is_there_already_is_refused():
    with pytest.raises(SettingError, match='must be one of none, dense_crf, crf_rnn'):
        Segmenter(compact(), CARD, CPU, refinement='blur')
    card = Card('crf_rnn', {'classes': 11, 'width': 'compact'}, Preprocessing(), 'camvid')
    with pytest.raises(SettingError, match='crf_rnn ends with that stage itself'):
        Segmenter(card.build(), card, CPU, refinement='crf_rnn')
