from dataclasses import replace
import math
from pathlib import Path

import cv2
from dense_perception.data.objects import boxes, ObjectImage, ObjectImages
from dense_perception.data.segmentation import camvid
from dense_perception.errors import InputError, SettingError, WeightsError
from dense_perception.labels import CAMVID
from dense_perception.networks.masks import Masks
from dense_perception.predictors.mask_proposer import MaskProposer
from dense_perception.predictors.tensors import preprocess
from dense_perception.training.loop import BEST, TrainingLoop
from dense_perception.training.masks import (
    mask_iou,
    mask_loss,
    MaskBatch,
    MasksRecipe,
    OBJECT_CLASSES,
    ObjectWindows,
    street_objects,
    THRESHOLD,
)
from dense_perception.weights.checkpoint import Card, save_weights
import numpy as np
import pytest
import torch
import torch.nn.functional as F

CAMVID_DATA = Path(__file__).parents[2].parent / 'shared' / 'data' / 'camvid'


def scene(seed):
    """Return an image of two bright discs before a dark, noisy background."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 60, (200, 300, 3), np.uint8)
    objects = np.zeros((200, 300), np.int32)
    for number, (column, row) in enumerate(((80, 100), (220, 90)), 1):
        radius = int(random.integers(25, 50))
        mask = np.zeros((200, 300), np.uint8)
        cv2.ellipse(mask, (column, row), (radius, radius * 2 // 3), 0, 0, 360, 1, -1)
        objects[mask > 0] = number
        image[mask > 0] = random.integers(150, 256, 3)
    return ObjectImage(image, objects)


def windows(network='deep_mask', **changes):
    recipe = MasksRecipe(network=network, precision='float32', **changes)
    scenes = [scene(seed) for seed in range(4)]
    return ObjectWindows(recipe, scenes, scenes[:2])


def batch(masks, of_mask, present):
    masks = torch.tensor(masks)
    return MaskBatch(
        torch.zeros(len(masks), 3, 8, 8, dtype=torch.uint8),
        masks,
        torch.tensor(of_mask),
        torch.tensor(present),
    )


def test_loss_is_the_soft_margin_of_masks_and_scores_as_the_release_weighs_them():
    found = Masks(torch.tensor([[[2.0, -1.0]] * 2, [[0.5, 0.5]] * 2]), torch.tensor([3.0, -2.0]))
    truth = batch([[[True, True]] * 2, [[False, True]] * 2], [True, False], [True, True])
    mask = (math.log(1 + math.exp(-2.0)) + math.log(1 + math.exp(1.0))) / 2
    score = math.log(1 + math.exp(2.0))
    torch.testing.assert_close(mask_loss(found, truth), torch.tensor((32 * mask + score) / 2))


@pytest.mark.parametrize('of_mask', [True, False])
def test_batch_of_one_kind_only_has_a_loss_and_a_gradient(of_mask):
    logits = torch.zeros(2, 4, 4, requires_grad=True)
    scores = torch.zeros(2, requires_grad=True)
    truth = batch([[[True] * 4] * 4] * 2, [of_mask] * 2, [True] * 2)
    loss = mask_loss(Masks(logits, scores), truth)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2) * (32 if of_mask else 1))
    assert (logits.grad.abs().sum() > 0) == of_mask
    assert (scores.grad.abs().sum() > 0) != of_mask


def test_iou_counts_pixels_above_the_released_threshold():
    logit = math.log(0.25)  # a probability of 0.2
    masks = torch.tensor([[[logit + 0.1, logit - 0.1], [5.0, -5.0]]])
    truth = torch.tensor([[[True, True], [False, False]]])
    assert mask_iou(masks, truth) == pytest.approx(1 / 3)


def test_half_of_the_samples_teach_the_mask_and_half_of_the_others_show_no_object():
    drawn = windows().batch(np.random.default_rng(0), 200)
    assert drawn.patches.shape == (200, 3, 192, 192)
    assert drawn.masks.shape == (200, 112, 112)
    assert 80 < drawn.of_mask.sum() < 120
    of_score = ~drawn.of_mask
    assert 0.3 < drawn.present[of_score].float().mean() < 0.7
    assert drawn.present[drawn.of_mask].all()
    middles = drawn.masks[drawn.of_mask][:, 50:62, 50:62]
    assert middles.float().mean() > 0.9


def test_parts_of_a_batch_hold_the_samples_of_the_whole():
    drawn = windows()
    whole = drawn.batch(np.random.default_rng(3), 5)
    part = drawn.batch(np.random.default_rng(3), 5, [1, 4])
    assert torch.equal(part.patches, whole.patches[[1, 4]])
    assert torch.equal(part.masks, whole.masks[[1, 4]])


def test_mask_lies_on_the_object_of_its_patch():
    drawn = windows().batch(np.random.default_rng(1), 40)
    inner = drawn.patches[drawn.of_mask][:, :, 16:-16, 16:-16].float().amax(1)
    masks = torch.nn.functional.interpolate(
        drawn.masks[drawn.of_mask][:, None].float(), (160, 160), mode='nearest'
    )[:, 0].bool()
    assert inner[masks].mean() > 140
    assert inner[~masks].mean() < 80


def test_sharp_mask_begins_with_a_deep_mask_and_trains_the_refinement_alone(tmp_path):
    deep = windows()
    torch.manual_seed(0)
    trained = deep.card.build()
    save_weights(tmp_path / 'deep.safetensors', trained, deep.card, torch.float32)
    sharp = windows('sharp_mask', batch=2, steps=1)
    assert sharp.batch(np.random.default_rng(0), 8).of_mask.all()
    network = sharp.start(tmp_path / 'deep.safetensors')
    before = {name: value.clone() for name, value in network.state_dict().items()}
    TrainingLoop(network, sharp.task(), sharp.recipe, tmp_path / 'run').run()
    source = trained.state_dict()
    for name, value in network.state_dict().items():
        if name in source:
            assert torch.equal(value, source[name]), name
    assert not torch.equal(network.start.weight, before['start.weight'])


def test_best_weights_of_a_run_are_those_that_a_proposer_loads(tmp_path):
    deep = windows(batch=2, steps=1)
    TrainingLoop(deep.start(None), deep.task(), deep.recipe, tmp_path).run()
    proposer = MaskProposer.from_file(tmp_path / BEST, device='cpu', precision='float32', width=64)
    assert proposer.card.arguments == {'width': 'compact', 'trunk': 'resnet50'}
    assert set(proposer.card.notes['scores']) == {'mask_iou', 'score_accuracy'}
    assert proposer.propose(scene(0).image).masks.shape[1:] == (200, 300)


def test_sharp_mask_without_a_deep_mask_is_refused(tmp_path):
    with pytest.raises(SettingError, match='initial must name its file'):
        windows('sharp_mask').start(None)
    card = Card('deep_mask', {'width': 'compact', 'trunk': 'vgg_a'}, windows().card.preprocessing)
    save_weights(tmp_path / 'a.safetensors', card.build(), card)
    with pytest.raises(WeightsError, match='a.safetensors holds deep_mask .*vgg_a.* is needed'):
        windows('sharp_mask').start(tmp_path / 'a.safetensors')


def test_objects_of_streets_are_their_cars_people_and_cyclists(tmp_path):
    labels = np.full((60, 80), CAMVID.index('road'), np.uint8)
    labels[10:30, 10:50] = CAMVID.index('car')
    for folder, picture in (('train', np.zeros((60, 80, 3), np.uint8)), ('trainannot', labels)):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / '0001_1.png'), picture)
    found = street_objects(camvid(tmp_path, 'train'), drives=1)
    assert len(found) == 1 + 12
    assert (found[0].objects > 0).sum() == 20 * 40
    assert any(image.objects.any() for image in found[1:])


def test_images_without_objects_are_refused():
    empty = ObjectImage(np.zeros((50, 50, 3), np.uint8), np.zeros((50, 50), np.int32))
    with pytest.raises(InputError, match='none of 1 images has an object'):
        ObjectWindows(MasksRecipe(), [empty], [scene(0)])


@pytest.mark.slow
def test_deep_mask_then_sharp_mask_learn_a_few_scenes_by_heart(tmp_path):
    settings = {'batch': 8, 'learning_rate': 1e-3, 'warmup_steps': 10, 'average': 0.9}
    torch.manual_seed(0)
    deep = windows(steps=150, **settings)
    loop = TrainingLoop(deep.start(None), deep.task(), deep.recipe, tmp_path / 'deep')
    loop.run()
    scores = deep.evaluate(loop.averaged)
    assert scores['mask_iou'] > 0.7
    save_weights(tmp_path / 'deep.safetensors', loop.averaged, deep.card, torch.float32)
    sharp = windows('sharp_mask', steps=150, **settings)
    network = sharp.start(tmp_path / 'deep.safetensors')
    loop = TrainingLoop(network, sharp.task(), sharp.recipe, tmp_path / 'sharp')
    loop.run()
    assert sharp.evaluate(loop.averaged)['mask_iou'] > max(0.8, scores['mask_iou'])


def largest_objects():
    """Return four labelled images, each with its largest car, pedestrian or cyclist alone."""
    images = ObjectImages(camvid(CAMVID_DATA, 'train'), CAMVID, OBJECT_CLASSES['camvid'])
    found = []
    for index in (100, 150, 200, 300):
        image = images[index]
        areas = np.bincount(image.objects.ravel())
        largest = max((box.number for box in boxes(image.objects)), key=lambda box: areas[box])
        found.append(ObjectImage(image.image, (image.objects == largest).astype(np.int32)))
    return found


def one_mask_each(recipe, images):
    """Return a batch of one window for each image, as training draws those that teach masks."""
    drawn = []
    for image in images:
        samples = ObjectWindows(recipe, [image], [image]).batch(np.random.default_rng(0), 16)
        place = int(samples.of_mask.nonzero()[0])
        drawn.append([values[place : place + 1] for values in vars(samples).values()])
    return MaskBatch(*(torch.cat(values) for values in zip(*drawn, strict=True)))


def pixel_accuracies(network, learnt):
    with torch.inference_mode():
        logits, _ = network.eval()(preprocess(learnt.patches, windows().card.preprocessing))
    size = learnt.masks.shape[1:]
    larger = F.interpolate(logits[:, None], size, mode='bilinear', align_corners=False)[:, 0]
    return ((larger.sigmoid() > THRESHOLD) == learnt.masks).float().mean((1, 2))


@pytest.mark.slow
def test_deep_mask_then_sharp_mask_outline_the_objects_of_four_images_that_they_learnt(tmp_path):
    images, initial = largest_objects(), None
    for network, steps in (('deep_mask', 60), ('sharp_mask', 80)):
        recipe = MasksRecipe(
            network=network, precision='float32', device='cpu', batch=len(images), steps=steps,
            warmup_steps=10, average=0.9,
        )  # fmt: skip
        learnt = one_mask_each(recipe, images)
        assert (learnt.masks.float().mean((1, 2)) > 0.06).all()  # or an empty mask would do
        training = ObjectWindows(recipe, images, images)
        task = replace(training.task(), batch=lambda *_, learnt=learnt: learnt)
        loop = TrainingLoop(training.start(initial), task, recipe, tmp_path / network)
        assert pixel_accuracies(loop.averaged, learnt).max() < 0.95
        loop.run()
        accuracies = pixel_accuracies(loop.averaged, learnt)
        assert accuracies.min() >= 0.95
        initial = tmp_path / 'deep.safetensors'
        save_weights(initial, loop.averaged, training.card, torch.float32)
