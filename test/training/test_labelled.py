from dataclasses import replace

import cv2
from dense_perception.data.segmentation import LabelledFolder
from dense_perception.errors import InputError, SettingError, WeightsError
from dense_perception.labels import CAMVID, CITYSCAPES, LabelClass, LabelSet
from dense_perception.networks import SEGMENTATION_NETWORKS
from dense_perception.networks.context import FrontEndContext
from dense_perception.networks.fcn import FCN32s
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.training.initial import fill_from, Initial, read_initial
from dense_perception.training.labelled import (
    hold_out,
    LabelledRecipe,
    LabelledScenes,
    own_folder,
)
from dense_perception.training.loop import TrainingLoop
from dense_perception.weights.checkpoint import Card, load_weights, Preprocessing, save_weights
import numpy as np
import pytest
import torch

YARD = LabelSet('yard', (LabelClass('road', (128, 64, 128)), LabelClass('hedge', (1, 2, 3))))
SMALL = {
    'crop_height': 32,
    'crop_width': 40,
    'batch': 2,
    'device': 'cpu',
    'precision': 'float32',
    'rarity': 0.0,
}


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


@pytest.fixture
def pictures(tmp_path):
    return made(tmp_path, 48, 64)


def made(tmp_path, height, width):
    """Return four images, upper part of class 0 and lower of class 1, as a labelled folder."""
    pairs = []
    for index in range(4):
        labels = np.zeros((height, width), np.uint8)
        labels[20 + index :] = 1
        image = np.where(labels[..., None] == 0, (60, 60, 200), (40, 120, 40)).astype(np.uint8)
        pair = (tmp_path / 'images' / f'{index}.png', tmp_path / 'labels' / f'{index}.png')
        write(pair[0], image)
        write(pair[1], labels)
        pairs.append(pair)
    return LabelledFolder(tuple(pairs), YARD)


def scenes(pictures, initial=None, **settings):
    return LabelledScenes(LabelledRecipe(**{**SMALL, **settings}), pictures, pictures, initial)


def initial_of(network, label_set='', **arguments):
    card = Card(network, arguments, Preprocessing('bgr', (1.0, 2.0, 3.0), 4.0), label_set)
    torch.manual_seed(5)
    return Initial('start', card.build().state_dict(), card.preprocessing, card)


def test_blur_of_the_recipe_changes_images_and_no_labels(pictures):
    sharp, blurred = (
        scenes(pictures, blur=blur).batch(np.random.default_rng(1), 4) for blur in (0.0, 1.0)
    )
    assert torch.equal(sharp.labels, blurred.labels)
    assert not torch.equal(sharp.images, blurred.images)  # some crops have one colour alone


# The others have the layers of these.
QUICK = ('front_end', 'front_end_context', 'fcn32s')


@pytest.mark.parametrize(
    'network',
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in SEGMENTATION_NETWORKS
        if name != 'super_parsing'
    ],
)
def test_any_segmentation_network_takes_a_step(tmp_path, network):
    pictures, crop = made(tmp_path, 48, 64), 32
    if network == 'deconvnet':
        pictures, crop = made(tmp_path, 200, 200), 200
    data = scenes(pictures, network=network, crop_height=crop, crop_width=crop, steps=1)
    model, _ = data.start()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loop = TrainingLoop(model, data.task(), data.recipe, tmp_path / 'run')
    loop.run()
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    loaded = Segmenter.from_file(tmp_path / 'run' / 'best.safetensors', device='cpu')
    assert loaded.label_set == YARD
    assert loaded.segment(pictures[0].image).labels.max() < 2


def test_super_parsing_which_is_fitted_otherwise_has_nothing_to_train(pictures, tmp_path):
    data = scenes(pictures, network='super_parsing')
    model, _ = data.start()
    with pytest.raises(SettingError, match='no parameter of SuperParsing is to be trained'):
        TrainingLoop(model, data.task(), data.recipe, tmp_path)


def test_losses_of_the_parts_add_up_to_that_of_the_batch(pictures):
    for settings in ({}, {'loss': 'sum', 'rarity': 0.5}, {'network': 'fcn32s'}):
        data = scenes(pictures, **settings)
        network, _ = data.start()
        network.eval()
        whole = data.batch(np.random.default_rng(1), 3)
        total = data.normalizer(whole)
        parts = [data.batch(np.random.default_rng(1), 3, places) for places in ((0, 2), (1,))]
        assert torch.equal(parts[1].images, whole.images[[1]])
        torch.testing.assert_close(sum(data.normalizer(part) for part in parts), total)
        losses = [data.loss(network, part, total) for part in parts]
        torch.testing.assert_close(sum(losses), data.loss(network, whole, total))


def test_summed_loss_of_fcn_at_its_start_is_pixels_times_log_of_the_classes(pictures):
    data = scenes(
        pictures,
        network='fcn32s',
        loss='sum',
        label_stride=1,
        crop_height=48,
        crop_width=64,
        smallest_scale=1.0,
        largest_scale=1.0,
    )
    network, _ = data.start()
    part = data.batch(np.random.default_rng(0), 2)
    assert part.labels.shape == (2, 48, 64)
    loss = data.loss(network, part, data.normalizer(part))
    assert loss.item() == pytest.approx(48 * 64 * np.log(2), rel=1e-4)


def test_unpadded_front_end_sees_a_margin_and_every_score_has_the_label_of_its_first_pixel(
    pictures,
):
    data = scenes(
        pictures,
        network='front_end',
        label_stride=8,
        crop_height=48,
        crop_width=64,
        smallest_scale=1.0,
        largest_scale=1.0,
    )
    data.margin = 186  # as that of the full width, too slow here
    part = data.batch(np.random.default_rng(0), 1)
    assert part.images.shape == (1, 3, 48 + 2 * 186, 64 + 2 * 186)
    assert part.labels.shape == (1, 6, 8)
    # Whatever the crop, labels lie where the image has their colour: red above, green below.
    inner = part.images[0, :, 186:-186:8, 186:-186:8].int()
    red = inner[0] > inner[1]
    known = part.labels[0] != 255
    assert known.any()
    assert torch.equal(red[known], part.labels[0][known] == 0)
    assert (part.images[0, :, 100] != 110).any()  # reflected, not filled


def test_stage_front_end_trains_the_front_end_alone(pictures):
    data = scenes(pictures, stage='front_end')
    assert data.card.network == 'front_end'
    assert data.card.arguments == {'classes': 2, 'width': 'compact'}


def test_stage_context_passes_the_scores_of_a_frozen_front_end_on_at_its_start(pictures):
    front_end = initial_of('front_end', 'cityscapes', classes=19, width='compact')
    front_end.card.__dict__['label_set'] = 'cityscapes'
    data = scenes(pictures, front_end, stage='context', network='front_end_context')
    network, fresh = data.start()
    assert isinstance(network, FrontEndContext)
    assert not any(value.requires_grad for value in network.front_end.parameters())
    assert all(value.requires_grad for value in network.context.parameters())
    weight = front_end.tensors['conv1_1.weight']
    assert torch.equal(network.front_end.conv1_1.weight, weight)
    assert any(name.startswith('context.') for name in fresh)
    for layer in network.context.layers:
        center = layer.weight[:, :, 1, 1]
        torch.testing.assert_close(center, torch.eye(2), atol=0.1, rtol=0)
    assert data.card.preprocessing == front_end.preprocessing


def test_stage_context_without_weights_is_refused(pictures):
    with pytest.raises(SettingError, match='stage is context; it needs the weights of'):
        scenes(pictures, stage='context')


def test_classes_of_the_same_name_keep_their_weights(pictures):
    initial = initial_of('front_end_context', 'cityscapes', classes=19, width='compact', layers=7)
    data = scenes(pictures, initial)
    assert data.card.arguments == {'classes': 2, 'width': 'compact', 'layers': 7}
    network, fresh = data.start()
    theirs = initial.tensors['front_end.final.weight']
    assert torch.equal(network.front_end.final.weight[0], theirs[CITYSCAPES.index('road')])
    assert not torch.equal(network.front_end.final.weight[1], theirs[1])
    assert 'front_end.final.weight' in fresh
    assert 'front_end.fc7.weight' not in fresh


def test_same_classes_take_everything(pictures):
    initial = initial_of('front_end_context', 'camvid', classes=11, width='compact', layers=7)
    data = scenes(replace(pictures, label_set=CAMVID), initial)
    network, fresh = data.start()
    assert fresh == []
    for name, value in network.state_dict().items():
        assert torch.equal(value, initial.tensors[name])


def test_finer_fcn_starts_from_a_coarser_one(pictures):
    initial = initial_of('fcn32s', 'camvid', classes=11, width='compact')
    data = scenes(replace(pictures, label_set=CAMVID), initial, network='fcn16s')
    network, fresh = data.start()
    assert torch.equal(network.score_fr.weight, initial.tensors['score_fr.weight'])
    assert sorted(fresh) == [
        'score_pool4.bias',
        'score_pool4.weight',
        'upscore16.weight',
        'upscore2.weight',
    ]


def test_weights_of_another_width_are_refused_layer_by_layer(pictures):
    initial = initial_of('front_end', 'camvid', classes=11, width='compact')
    network = FCN32s(2, 'compact')
    with pytest.raises(WeightsError, match=r'start does not fit FCN32s: .*fc6.weight is \(256, 1'):
        fill_from(network, initial, YARD)


def test_torchvision_weights_give_the_scores_of_their_own_preprocessing(pictures, tmp_path):
    torch.manual_seed(0)
    features, channels, index = {}, 3, 0
    for widths in ((16, 16), (32, 32), (64,) * 3, (128,) * 3, (128,) * 3):
        for width in widths:
            features[f'features.{index}.weight'] = torch.randn(width, channels, 3, 3) * 0.1
            features[f'features.{index}.bias'] = torch.randn(width) * 0.1
            channels, index = width, index + 2
        index += 1  # a pooling
    classifier = {
        'classifier.0.weight': torch.randn(256, 128 * 49) * 0.01,
        'classifier.0.bias': torch.zeros(256),
        'classifier.3.weight': torch.randn(256, 256) * 0.1,
        'classifier.3.bias': torch.zeros(256),
        'classifier.6.weight': torch.randn(1000, 256),
        'classifier.6.bias': torch.zeros(1000),
    }
    torch.save({**features, **classifier}, tmp_path / 'vgg16.pth')
    data = scenes(pictures, read_initial(str(tmp_path / 'vgg16.pth')), network='fcn32s')
    network, fresh = data.start()
    assert all('score' in name for name in fresh)
    assert data.card.preprocessing.order == 'bgr'
    image = torch.rand(1, 3, 8, 8)
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    expected = torch.nn.functional.conv2d(
        (image - mean) / std, features['features.0.weight'], features['features.0.bias']
    )
    theirs = (image * 255).flip(1) - torch.tensor(data.card.preprocessing.mean)[:, None, None]
    layer = network.conv1_1
    found = torch.nn.functional.conv2d(theirs, layer.weight, layer.bias)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # The file of features alone has no usable classifier.
    broken = {**features, **classifier, 'classifier.0.weight': torch.full((256, 6272), torch.nan)}
    torch.save(broken, tmp_path / 'features.pth')
    assert 'fc6.weight' not in read_initial(str(tmp_path / 'features.pth')).tensors


def test_flow_weights_are_refused():
    with pytest.raises(WeightsError, match='flow: flownet_simple is no segmentation network'):
        read_initial('flow')


def test_saved_weights_know_their_own_classes(pictures, tmp_path):
    data = scenes(pictures)
    network, _ = data.start()
    data.save(tmp_path / 'a.safetensors', network, {'mean_iou': 0.5})
    _, card = load_weights(tmp_path / 'a.safetensors')
    assert card.labels() == YARD
    assert card.notes['scores'] == {'mean_iou': 0.5}


def test_class_of_a_card_without_a_colour_is_refused(tmp_path):
    card = Card(
        'front_end',
        {'classes': 1, 'width': 'compact'},
        Preprocessing(),
        'yard',
        label_classes=(('road', (1, 2)),),
    )
    save_weights(tmp_path / 'a.safetensors', card.build(), card)
    with pytest.raises(WeightsError, match="label set 'yard' are .* a colour of three numbers"):
        load_weights(tmp_path / 'a.safetensors')


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'crop_height': 33}, 'crop_height is 33; it must be a multiple of 8'),
        ({'label_stride': 3}, 'label_stride is 3'),
        ({'stage': 'context', 'network': 'fcn8s'}, 'stage is context; fcn8s has'),
        ({'network': 'deconvnet'}, 'deconvnet needs crops of 200'),
    ],
)
def test_settings_that_cannot_go_together_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        LabelledRecipe(**{**SMALL, **settings})


def test_every_fifth_image_is_held_out():
    folder = LabelledFolder(tuple((str(index), str(index)) for index in range(12)), YARD)
    training, validation = hold_out(folder, 5)
    assert [image for image, _ in validation.pairs] == ['0', '5', '10']
    assert len(training) == 9
    with pytest.raises(SettingError, match='1 images are too few'):
        hold_out(replace(folder, pairs=folder.pairs[:1]), 5)


def test_own_folder_may_have_splits_or_none(pictures, tmp_path):
    mapping = tmp_path / 'classes.yaml'
    mapping.write_text(
        "label_set: yard\nclasses: {road: '#804080', hedge: 1, 2, 3}\n".replace(
            '1, 2, 3', "'#010203'"
        )
        + 'labels: {0: road, 1: hedge, 255: ignore}\n'
    )
    training, validation = own_folder(tmp_path, mapping, 2)
    assert training.label_set == YARD
    assert (len(training), len(validation)) == (2, 2)
    for split in ('train', 'val'):
        for kind in ('images', 'labels'):
            write(
                tmp_path / kind / split / 'a.png', cv2.imread(str(tmp_path / kind / '0.png'), -1)
            )
    training, validation = own_folder(tmp_path, mapping, 2)
    assert validation.pairs[0][0] == tmp_path / 'images' / 'val' / 'a.png'
    assert (training[0].labels[0, 0], training[0].labels[-1, 0]) == (0, 1)
    with pytest.raises(InputError, match='labels.yaml: cannot be read'):
        own_folder(tmp_path, None, 2)


@pytest.mark.parametrize(
    ('head', 'message'),
    [
        ('label_set: yard', "label_set is 'yard'; known are .* one of your own has classes"),
        ("label_set: camvid\nclasses: {road: '#804080'}", 'your own needs a name other than'),
        ("label_set: yard\nclasses: {ignore: '#804080'}", 'none of them ignore, to colours'),
        ('label_set: yard\nclasses: {road: 3}', '3 is neither a raw value nor a colour'),
        ("label_set: yard\nclasses: {hedge: '#804080'}", "yard has no class 'road'"),
    ],
)
def test_own_classes_that_cannot_be_are_refused(tmp_path, head, message):
    path = tmp_path / 'labels.yaml'
    path.write_text(f'{head}\nlabels: {{0: road}}\n')
    with pytest.raises(InputError, match=rf'labels.yaml: .*{message}'):
        own_folder(tmp_path, None, 2)
