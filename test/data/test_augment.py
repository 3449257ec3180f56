from dataclasses import replace

import cv2
from dense_perception.data.augment import (
    augment_labelled,
    augment_pair,
    blur_some,
    BLURS,
    change_colors,
    Crop,
)
from dense_perception.data.flow import FlowPair
from dense_perception.data.segmentation import LabelledImage
from dense_perception.labels import UNLABELLED
import numpy as np
import pytest


def blobs(height, width, seed=0):
    """Return a smooth grey texture, (height, width) uint8."""
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    low, high = np.quantile(smooth, (0.02, 0.98))
    return np.clip((smooth - low) / (high - low) * 200 + 25, 0, 255).astype(np.uint8)


def labelled_image():
    """Return an image that is bright exactly where its label is 1."""
    labels = (blobs(120, 160) > 125).astype(np.uint8)
    return LabelledImage(
        'a', np.where(labels, 220, 30).astype(np.uint8)[..., None].repeat(3, 2), labels
    )


def moving_pair(u, v, height=96, width=128):
    """Return a texture that moves by (u, v) whole pixels, all of it known."""
    texture = blobs(height + 40, width + 40)[..., None].repeat(3, 2)
    first = texture[20 : 20 + height, 20 : 20 + width]
    second = texture[20 - v : 20 - v + height, 20 - u : 20 - u + width]
    flow = np.full((height, width, 2), (u, v), np.float32)
    return FlowPair('a', first, second, flow, np.ones((height, width), bool))


def along_the_flow(pair):
    """Return the second image read where the flow points, and where that is inside."""
    rows, columns = pair.valid.shape
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    u, v = x + pair.flow[..., 0], y + pair.flow[..., 1]
    inside = pair.valid & (u >= 0) & (v >= 0) & (u <= columns - 1) & (v <= rows - 1)
    return cv2.remap(pair.second, u, v, cv2.INTER_LINEAR), inside


@pytest.mark.parametrize('seed', range(12))
def test_labels_stay_on_the_pixels_that_they_describe(seed):
    sample = augment_labelled(np.random.default_rng(seed), labelled_image(), Crop(90, 100, 0.5, 2))
    assert sample.image.shape == (90, 100, 3)
    assert sample.labels.shape == (90, 100)
    grey = sample.image.mean(-1)
    dark, bright = (np.median(grey[sample.labels == label]) for label in (0, 1))
    assert dark < bright
    known = sample.labels != UNLABELLED
    right = (grey > (dark + bright) / 2) == (sample.labels == 1)
    assert right[known].mean() > 0.95  # resizing blurs the borders of the blobs


def test_labels_of_a_shrunk_image_are_not_shifted_against_it():
    # A step between columns 79 and 80, halved, lies between columns 39 and 40 of image and labels.
    labels = np.zeros((80, 160), np.uint8)
    labels[:, 80:] = 1
    image = np.where(labels, 220, 30).astype(np.uint8)[..., None].repeat(3, 2)
    for seed in range(6):
        random = np.random.default_rng(seed)
        sample = augment_labelled(
            random, LabelledImage('a', image, labels), Crop(40, 80, 0.5, 0.5)
        )
        grey = sample.image.mean((0, 2))
        bright = grey > (grey[:10].mean() + grey[-10:].mean()) / 2
        np.testing.assert_array_equal(bright, sample.labels[20] == 1)


def test_pixels_beyond_the_image_are_unlabelled():
    random = np.random.default_rng(0)
    sample = augment_labelled(random, labelled_image(), Crop(200, 300))
    assert (sample.labels != UNLABELLED).sum() == pytest.approx(120 * 160, rel=0.02)


def test_labelled_images_are_mirrored_half_the_time():
    labels = np.zeros((20, 30), np.uint8)
    labels[:, 15:] = 1
    sample = LabelledImage('a', np.zeros((20, 30, 3), np.uint8), labels)
    changed = [
        augment_labelled(np.random.default_rng(seed), sample, Crop(20, 30)) for seed in range(60)
    ]
    mirrored = [np.array_equal(item.labels, labels[:, ::-1]) for item in changed]
    assert all(
        item or np.array_equal(other.labels, labels)
        for item, other in zip(mirrored, changed, strict=True)
    )
    assert 18 < sum(mirrored) < 42


@pytest.mark.parametrize('seed', range(12))
def test_flow_still_leads_from_the_first_image_to_the_second(seed):
    random = np.random.default_rng(seed)
    pair = augment_pair(random, moving_pair(7, -4), Crop(80, 96, 1.0, 1.6))
    assert pair.first.shape == pair.second.shape == (80, 96, 3)
    assert pair.flow.shape == (80, 96, 2)
    assert pair.flow.dtype == np.float32
    warped, inside = along_the_flow(pair)

    def difference(image):
        return np.abs(image[inside].astype(int) - pair.first[inside]).mean()

    assert inside.mean() > 0.7
    assert difference(warped) < 0.4 * difference(pair.second)


def test_mirroring_negates_the_component_across_the_mirror_only():
    pair = moving_pair(3, 5, height=64, width=64)
    bright = np.zeros((64, 64, 3), np.uint8)
    bright[:20, :20] = 255  # tells which way the image was mirrored
    pair = FlowPair('a', bright, bright, pair.flow, pair.valid)
    found = set()
    for seed in range(40):
        changed = augment_pair(np.random.default_rng(seed), pair, Crop(64, 64))
        grey = changed.first.mean(-1)
        left, top = (
            grey[:, :20].mean() > grey[:, -20:].mean(),
            grey[:20].mean() > grey[-20:].mean(),
        )
        expected = (3 if left else -3, 5 if top else -5)
        np.testing.assert_array_equal(changed.flow, np.full((64, 64, 2), expected))
        found.add(expected)
    assert found == {(3, 5), (-3, 5), (3, -5), (-3, -5)}


def test_enlarging_a_pair_lengthens_its_flow():
    pair = augment_pair(np.random.default_rng(0), moving_pair(4, 6), Crop(96, 128, 2.0, 2.0))
    np.testing.assert_allclose(np.abs(pair.flow), np.full((96, 128, 2), (8, 12)), rtol=1e-5)


def test_pair_smaller_than_the_crop_is_enlarged_with_its_flow():
    pair = augment_pair(np.random.default_rng(0), moving_pair(4, 6), Crop(192, 128))
    np.testing.assert_allclose(np.abs(pair.flow), np.full((192, 128, 2), (4, 12)), rtol=1e-5)


@pytest.mark.parametrize('seed', range(4))
def test_unknown_flow_does_not_reach_into_known_pixels(seed):
    pair = moving_pair(4, 6)
    pair.valid[:] = np.random.default_rng(seed).random(pair.valid.shape) < 0.7
    pair.flow[~pair.valid] = 1000
    changed = augment_pair(np.random.default_rng(seed), pair, Crop(96, 128, 1.5, 1.5))
    assert 0.1 < changed.valid.mean() < 0.75
    np.testing.assert_allclose(np.abs(changed.flow[changed.valid]) / (6, 9), 1, rtol=0.005)


def test_augmentation_follows_the_generator_alone():
    pair, sample = moving_pair(2, 3), labelled_image()
    crop = Crop(64, 64, 0.8, 1.5)
    for one, two in (
        [augment_labelled(np.random.default_rng(5), sample, crop) for _ in range(2)],
        [augment_pair(np.random.default_rng(5), pair, crop) for _ in range(2)],
    ):
        for name, value in vars(one).items():
            np.testing.assert_array_equal(value, getattr(two, name))


def test_augmentation_leaves_its_input_as_it_was():
    pair, sample = moving_pair(2, 3), labelled_image()
    before = [array.copy() for array in (pair.first, pair.flow, sample.image, sample.labels)]
    augment_pair(np.random.default_rng(0), pair, Crop(64, 64))
    augment_labelled(np.random.default_rng(0), sample, Crop(64, 64))
    for array, old in zip(
        (pair.first, pair.flow, sample.image, sample.labels), before, strict=True
    ):
        np.testing.assert_array_equal(array, old)


def test_colours_of_both_images_change_alike_but_for_noise():
    image = np.full((50, 50, 3), (60, 120, 180), np.uint8)
    for seed in range(10):
        one, two = change_colors(np.random.default_rng(seed), [image, image])
        np.testing.assert_allclose(one.mean((0, 1)), two.mean((0, 1)), atol=1.5)
        assert one.dtype == np.uint8


def test_brighter_stays_brighter():
    ramp = np.arange(256, dtype=np.uint8)[None, :, None].repeat(60, 0).repeat(3, 2)
    for seed in range(10):
        (changed,) = change_colors(np.random.default_rng(seed), [ramp])
        grey = changed.mean((0, 2))
        assert grey[:64].mean() <= grey[64:128].mean() <= grey[128:192].mean() <= grey[192:].mean()


def sharpness(image):
    """Return the mean difference between neighbours in a row."""
    return np.abs(np.diff(image.astype(int), axis=1)).mean()


def noisy(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_a_share_of_the_images_is_blurred():
    changed = [blur_some(np.random.default_rng(seed), [noisy()], 0.3)[0] for seed in range(200)]
    blurred = sum(sharpness(image) < sharpness(noisy()) for image in changed)
    assert 40 < blurred < 80
    assert sum(np.array_equal(image, noisy()) for image in changed) == 200 - blurred


def test_blur_lies_between_the_least_and_the_most():
    least, most = (sharpness(cv2.GaussianBlur(noisy(), (0, 0), sigma)) for sigma in BLURS)
    found = [
        sharpness(blur_some(np.random.default_rng(seed), [noisy()], 1.0)[0]) for seed in range(40)
    ]
    assert most <= min(found) < 0.5 * least
    assert 0.7 * least < max(found) <= least


def test_images_of_a_pair_are_blurred_alike():
    for seed in range(10):
        first, second = blur_some(np.random.default_rng(seed), [noisy(), noisy()], 0.5)
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize('seed', range(4))
def test_every_other_choice_is_the_same_with_blur_and_without(seed):
    crop, pair = Crop(64, 64, 0.8, 1.5), moving_pair(2, 3)
    even = np.full((120, 160, 3), (60, 120, 180), np.uint8)  # blur does not show
    labelled = [
        augment_labelled(np.random.default_rng(seed), sample, crop, blur=blur)
        for sample in (labelled_image(), replace(labelled_image(), image=even))
        for blur in (0.0, 1.0)
    ]
    assert sharpness(labelled[1].image) < sharpness(labelled[0].image)
    np.testing.assert_array_equal(labelled[1].labels, labelled[0].labels)
    np.testing.assert_array_equal(labelled[3].image, labelled[2].image)
    pairs = [
        augment_pair(np.random.default_rng(seed), pair, crop, blur=blur) for blur in (0.0, 1.0)
    ]
    for name in ('first', 'second'):
        assert sharpness(getattr(pairs[1], name)) < sharpness(getattr(pairs[0], name))
    np.testing.assert_array_equal(pairs[1].flow, pairs[0].flow)
