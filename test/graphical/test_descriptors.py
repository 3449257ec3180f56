from dense_perception.data.road_world import RoadWorld
from dense_perception.graphical.descriptors import (
    dense_sift,
    describe_scene,
    describe_superpixels,
    FILTERS,
    find_words,
    gist,
    grey,
    nearest_words,
    SCENE_FEATURES,
    SCENE_WORDS,
    SUPERPIXEL_FEATURES,
    texton_responses,
    Vocabulary,
    word_maps,
    WORDS,
)
from dense_perception.graphical.superpixels import felzenszwalb
import numpy as np
import pytest
import torch

IMAGE = RoadWorld(0).frame(0).image[100:196, 60:188]  # 96 x 128


@pytest.fixture(scope='module')
def maps():
    random = torch.Generator().manual_seed(0)
    words = torch.rand(SCENE_WORDS + WORDS, 128, generator=random) / 8
    textons = torch.randn(WORDS, FILTERS, generator=random)
    return word_maps(IMAGE, Vocabulary(words[:SCENE_WORDS], words[SCENE_WORDS:], textons))


def features(image, superpixels, maps):
    found = describe_superpixels(image, superpixels, maps)
    ends = np.cumsum(list(SUPERPIXEL_FEATURES.values()))[:-1]
    return dict(zip(SUPERPIXEL_FEATURES, np.split(found, ends, 1), strict=True))


def two_halves():
    """Superpixel 0 is the left quarter of the image, superpixel 1 the rest."""
    superpixels = np.ones(IMAGE.shape[:2], np.int32)
    superpixels[:, :32] = 0
    return superpixels


def test_a_superpixel_has_twenty_features_of_1708_numbers(maps):
    assert len(SUPERPIXEL_FEATURES) == 20
    superpixels = felzenszwalb(IMAGE)
    found = describe_superpixels(IMAGE, superpixels, maps)
    assert found.shape == (superpixels.max() + 1, 1708)
    assert np.isfinite(found).all()


def test_a_scene_has_4200_and_960_and_24_numbers(maps):
    assert list(SCENE_FEATURES.values()) == [4200, 960, 24]
    found = describe_scene(IMAGE, maps)
    assert found.shape == (5184,)
    assert np.isfinite(found).all()


def test_descriptors_survive_a_weights_file_of_16_bits(maps):
    for found in (
        describe_scene(IMAGE, maps),
        describe_superpixels(IMAGE, two_halves(), maps),
    ):
        assert np.array_equal(found.astype(np.float16).astype(np.float32), found)


def test_spatial_pyramid_counts_each_word_in_each_cell(maps):
    pyramid = describe_scene(IMAGE, maps)[:4200]
    whole, halves, quarters = np.split(pyramid, [200, 1000])
    expected = np.bincount(maps.scene_words.ravel(), minlength=200) / (96 * 128)
    np.testing.assert_allclose(whole, expected / 4, rtol=1e-3, atol=1e-6)
    corner = np.bincount(maps.scene_words[48:, :64].ravel(), minlength=200) / (96 * 128)
    np.testing.assert_allclose(halves[400:600], corner / 4, rtol=1e-3, atol=1e-6)
    cell = np.bincount(maps.scene_words[24:48, 96:].ravel(), minlength=200) / (96 * 128)
    np.testing.assert_allclose(quarters[1400:1600], cell / 2, rtol=1e-3, atol=1e-6)


def test_shape_place_and_colour_of_a_superpixel_by_hand(maps):
    found = features(IMAGE, two_halves(), maps)
    assert found['area'][:, 0] == pytest.approx([0.25, 0.75])
    assert found['box'][0] == pytest.approx([0.25, 1])
    assert found['top'][0] == 0
    assert (found['mask'] == 1).all()  # both fill their boxes
    assert np.array_equal(found['place'][0].reshape(8, 8)[0], [1, 1, 0, 0, 0, 0, 0, 0])
    left = IMAGE[:, :32].reshape(-1, 3)
    np.testing.assert_allclose(found['color_mean'][0], left.mean(0), rtol=1e-3)
    np.testing.assert_allclose(found['color_deviation'][0], left.std(0), rtol=1e-3)
    thumbnail = found['thumbnail'][0].reshape(8, 8, 3)
    np.testing.assert_allclose(
        thumbnail[0, 0], IMAGE[1:12:3, :4].mean((0, 1)), rtol=1e-3
    )  # every third row is read


def test_histograms_inside_and_around_by_hand(maps):
    found = features(IMAGE, two_halves(), maps)
    for name, values in (('words', maps.words), ('textons', maps.textons)):
        for suffix, part in (('', values[:, :32]), ('_dilated', values[:, :42])):
            expected = np.bincount(part.ravel(), minlength=WORDS) / part.size
            np.testing.assert_allclose(found[name + suffix][0], expected, rtol=1e-3, atol=1e-6)
    red = np.bincount(IMAGE[:, :42, 0].ravel().astype(int) * 11 // 256, minlength=11)
    expected = red / (3 * 96 * 42)
    np.testing.assert_allclose(found['colors_dilated'][0, :11], expected, rtol=1e-3, atol=1e-6)


def test_border_histograms_lie_on_their_own_side(maps):
    superpixels = np.zeros(IMAGE.shape[:2], np.int32)
    superpixels[40:60, 50:80] = 1
    found = features(IMAGE, superpixels, maps)
    for name, part in (
        ('left', maps.words[40:60, 40:50]),
        ('right', maps.words[40:60, 80:90]),
        ('top', maps.words[30:40, 50:80]),
        ('bottom', maps.words[60:70, 50:80]),
    ):
        expected = np.bincount(part.ravel(), minlength=WORDS) / part.size
        np.testing.assert_allclose(found[f'words_{name}'][1], expected, rtol=1e-3, atol=1e-6)


def test_masked_thumbnail_is_black_outside():
    superpixels = np.zeros((64, 64), np.int32)
    rows, columns = np.mgrid[:64, :64]
    superpixels[rows > columns] = 1  # fills half of its box
    image = np.full((64, 64, 3), 200, np.uint8)
    zeros = np.zeros((64, 64), np.int64)
    found = features(image, superpixels, type('Maps', (), {
        'words': zeros, 'textons': zeros, 'scene_words': zeros
    }))  # fmt: skip
    assert (found['thumbnail'] == 200).all()
    corner = found['thumbnail_masked'][1].reshape(8, 8, 3)
    assert corner[7, 0, 0] == 200
    assert corner[0, 7, 0] == 0
    assert found['mask'][1].reshape(8, 8)[7, 0] == 1


def test_sift_of_a_ramp_has_one_orientation_in_every_cell():
    columns = torch.arange(40.0).expand(40, 40) * 20
    found = dense_sift(columns)[20, 20].reshape(16, 8)
    assert (found[:, 1:] == 0).all()
    torch.testing.assert_close(found[:, 0], torch.full((16,), 0.25))
    turned = dense_sift(columns.T)[20, 20].reshape(16, 8)
    torch.testing.assert_close(turned[:, 2], torch.full((16,), 0.25))


def test_sift_cells_are_read_from_left_to_right_and_down():
    image = torch.zeros(40, 40)
    image[:, 26:] = 200  # six columns right of the middle: the outermost cell
    found = dense_sift(image)[20, 20].reshape(4, 4, 8)[..., 0]
    assert found.argmax(1).tolist() == [3, 3, 3, 3]


def test_sift_is_blind_to_contrast_but_not_to_the_lack_of_it():
    image = grey(IMAGE)
    once, strong = dense_sift(image), dense_sift(image * 3)
    sharp = once.norm(dim=2) > 0.999
    assert sharp.float().mean() > 0.3
    torch.testing.assert_close(strong[sharp], once[sharp], atol=1e-3, rtol=0)
    assert not dense_sift(torch.full((20, 20), 77.0)).any()


def test_texton_filters_are_blind_to_brightness():
    image = grey(IMAGE)
    found = texton_responses(image)
    assert found.shape == (96, 128, FILTERS)
    torch.testing.assert_close(texton_responses(image + 50), found, atol=1e-3, rtol=0)


def test_textons_answer_most_to_a_bar_of_their_own_orientation():
    image = torch.zeros(41, 41)
    image[:, 20] = 255  # upright: across is along the columns, the first orientation
    bars = texton_responses(image)[20, 20, 1:12:2].abs()
    assert bars.argmax() == 0


def test_gist_is_brightest_where_the_grating_is():
    wave = (torch.arange(128.0) * 0.3 * 2 * torch.pi).cos() * 100 + 128
    image = wave.expand(128, 128).clone()
    image[:64] = 128
    fine = gist(image[None])[0].reshape(20, 4, 4)
    assert fine.mean((1, 2)).argmax() == 0  # finest scale, upright
    assert fine[0, 2:].min() > 2 * fine[0, :1].max()


def test_words_are_the_means_of_what_is_nearest_to_them():
    random = np.random.default_rng(0)
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    samples = centres.repeat(50, 1) + torch.from_numpy(random.normal(size=(150, 2))).float()
    words = find_words(samples, 3, random)
    nearest = torch.from_numpy(nearest_words(samples[None], words)[0])
    distances = torch.cdist(samples, words)
    assert torch.equal(nearest, distances.argmin(1))
    for index in range(3):
        torch.testing.assert_close(words[index], samples[nearest == index].mean(0))


def test_more_words_than_samples_are_allowed():
    assert find_words(torch.rand(3, 5), 7, np.random.default_rng(0)).shape == (7, 5)
