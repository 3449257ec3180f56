from pathlib import Path

from dense_perception.data.road_world import RoadWorld
from dense_perception.data.segmentation import camvid
from dense_perception.graphical.superpixels import slic
from dense_perception.labels import CAMVID as CAMVID_LABELS
from dense_perception.labels import UNLABELLED
from dense_perception.networks.hypercolumns import (
    between_cells,
    box_loss,
    cell_weights,
    enlarge,
    Hypercolumns,
    hypercolumns,
    pool_box,
    sample_boxes,
)
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.predictors.tensors import images_to_tensor, preprocess
from dense_perception.weights.checkpoint import Card, load_weights, Preprocessing, save_weights
import numpy as np
import pytest
import torch
import torch.nn.functional as F

CAMVID = Path(__file__).parents[2].parent / 'shared' / 'data' / 'camvid'
PICTURE = RoadWorld(0).frame(0).image[100:151, 100:170]  # 51 x 70
HEADS = ('score_pool3', 'score_pool4', 'score_fc7')


def tensor(*images):
    return preprocess(images_to_tensor(images), Preprocessing())


def build(classes=3, **arguments):
    torch.manual_seed(0)
    defaults = {'width': 'compact', 'superpixels': 0, 'map_scales': (1, 1), 'grid': 2}
    return Hypercolumns(classes, **{**defaults, **arguments})


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def test_heads_have_the_released_parameters_scales_and_start():
    with torch.device('meta'):
        network = Hypercolumns(20)
    sizes = [count(network.get_submodule(name).parameters()) for name in HEADS]
    assert sizes == [1_152_500, 256_500, 2_048_500]
    assert sum(sizes) == 3_457_500
    assert network.map_scales == (0.0027, 0.063)
    start = Hypercolumns(3, 'compact').score_pool3
    assert start.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not start.bias.any()


def test_hypercolumn_of_alexnet_has_4736_numbers():
    maps = [torch.zeros(1, 256, 27, 27), torch.zeros(1, 384, 13, 13), torch.zeros(1, 4096, 1, 1)]
    assert hypercolumns(maps, (50, 50)).shape == (1, 4736, 50, 50)


def test_classifying_the_stack_equals_adding_up_classified_maps():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, 16 * size, size, size, generator=generator) for size in (6, 3, 1)]
    weights = [torch.randn(5, one.shape[1], 1, 1, generator=generator) / 10 for one in maps]
    stacked = F.conv2d(hypercolumns(maps, (20, 30)), torch.cat(weights, 1))
    scored = [F.conv2d(one, weight) for one, weight in zip(maps, weights, strict=True)]
    summed = sum(hypercolumns([one], (20, 30)) for one in scored)
    torch.testing.assert_close(summed, stacked, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('size', [(50, 50), (7, 90), (1, 1)])
@pytest.mark.parametrize('grid', [1, 5, 10])
def test_weights_of_the_cells_sum_to_one_everywhere(size, grid):
    weights = cell_weights(size, grid)
    assert weights.shape == (grid**2, *size)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(size))


def test_a_cell_counts_alone_in_its_centre_and_half_on_its_border():
    weights = cell_weights((50, 50), 5).reshape(5, 5, 50, 50)
    # Centres lie at 5, 15, ...; pixels at 0.5, 1.5, ...
    assert weights[1, 3, 15, 35] == pytest.approx(0.95**2)
    assert weights[1, 3, 15, 34] == pytest.approx(0.95 * 0.95)
    assert weights[0, 0, 0, 0] == 1  # beyond the outermost centre
    assert weights[0, 0, 10, 3] == pytest.approx(0.45)
    assert weights[1, 0, 10, 3] == pytest.approx(0.55)


def test_equal_logits_in_all_cells_give_their_sigmoid():
    logits = torch.linspace(-30, 30, 9)
    scores = logits[:, None, None, None].expand(9, 25, 50, 50)
    found = between_cells(scores, 5)
    torch.testing.assert_close(found.sigmoid(), scores[:, :1].sigmoid(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found, scores[:, :1], atol=1e-5, rtol=1e-5)


def test_probabilities_are_interpolated_between_cells_and_not_their_logits():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3 * 25, 20, 30, generator=generator) * 3
    cells = scores.reshape(2, 3, 25, 20, 30).sigmoid()
    expected = (cells * cell_weights((20, 30), 5)).sum(2)
    torch.testing.assert_close(between_cells(scores, 5).sigmoid(), expected)


def test_scores_far_from_the_border_between_yes_and_no_keep_their_gradient():
    scores = torch.full((1, 25, 4, 4), -60.0, requires_grad=True)
    between_cells(scores, 5).sum().backward()
    assert scores.grad.sum().item() == pytest.approx(16)


@pytest.mark.parametrize('size', [(1, 1), (8, 8), (51, 70), (33, 16)])
def test_scores_have_the_size_of_the_image(size):
    with torch.no_grad():
        assert build().eval()(torch.zeros(1, 3, *size)).shape == (1, 3, *size)


def test_network_adds_up_three_maps_and_enlarges_them():
    network = build(grid=1, map_scales=(0.5, 2)).eval()
    image = tensor(PICTURE)
    with torch.no_grad():
        maps = network.activations(image, ('pool3', 'pool4', 'pool5'))
        assert [maps[name].shape[2:] for name in maps] == [(7, 9), (4, 5), (2, 3)]
        padded = F.pad(maps['pool5'], (3, 3, 3, 3))
        fc7 = network.fc7(network.fc6(padded).relu()).relu()
        larger = F.interpolate(network.score_fc7(fc7), scale_factor=4, mode='bilinear')
        middle = F.interpolate(
            network.score_pool4(2 * maps['pool4']), scale_factor=2, mode='bilinear'
        )
        summed = network.score_pool3(0.5 * maps['pool3'])
        summed = summed + middle[:, :, :7, :9] + larger[:, :, :7, :9]
        expected = F.interpolate(summed, scale_factor=8, mode='bilinear')[:, :, :51, :70]
        torch.testing.assert_close(network(image), expected, atol=1e-5, rtol=1e-5)


def test_each_cell_of_the_grid_has_its_own_say_over_its_part_of_the_image():
    network = build(classes=1, grid=2).eval()
    for name in HEADS:
        torch.nn.init.zeros_(network.get_submodule(name).weight)
    with torch.no_grad():
        network.score_pool3.bias.copy_(torch.tensor([-4.0, -2, 2, 4]))
        scores = network(torch.zeros(1, 3, 64, 64))[0, 0]
    corners = scores[[0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, torch.tensor([-4.0, -2, 2, 4]))


def test_probabilities_are_averaged_over_superpixels_in_inference_only():
    network = build(superpixels=20)
    plain = build(superpixels=0)
    plain.load_state_dict(network.state_dict())
    image = tensor(PICTURE)
    with torch.no_grad():
        torch.testing.assert_close(network.train()(image), plain.train()(image))
        averaged, exact = network.eval()(image)[0].sigmoid(), plain.eval()(image)[0].sigmoid()
    superpixels = slic(PICTURE, count=20)
    for index in range(superpixels.max() + 1):
        inside = superpixels == index
        expected = exact[:, inside].mean(1, keepdim=True).expand(-1, inside.sum())
        torch.testing.assert_close(averaged[:, inside], expected, atol=1e-5, rtol=1e-4)


def test_a_box_over_the_whole_image_reads_every_place_of_a_map():
    values = torch.randn(1, 4, 50, 50, generator=torch.Generator().manual_seed(0))
    found = sample_boxes(values, torch.tensor([[0.0, 0, 400, 400]]), 8)
    torch.testing.assert_close(found, values, atol=1e-4, rtol=1e-4)


def test_a_box_reads_the_middle_of_its_parts_and_clamps_at_the_border():
    ramp = torch.arange(30.0).expand(1, 1, 30, 30)
    (found,) = sample_boxes(ramp, torch.tensor([[40.0, 0, 140, 240]]), 8)
    # Part i is centred on pixel 40 + 2 (i + 1/2); value v stands for pixel 8 (v + 1/2).
    expected = (40 + 2 * (torch.arange(50) + 0.5)) / 8 - 0.5
    torch.testing.assert_close(found[0], expected.expand(50, 50), atol=1e-4, rtol=1e-4)
    (outside,) = sample_boxes(ramp, torch.tensor([[-200.0, 0, -100, 240]]), 8)
    assert (outside == 0).all()


def test_a_box_is_pooled_to_7_by_7():
    values = torch.arange(20.0 * 20).reshape(1, 1, 20, 20)
    pooled = pool_box(values, torch.tensor([32.0, 16, 32 + 16 * 13, 16 + 16 * 13]), 16)
    # From row 1 and column 2, 14 values each: pairs of rows and columns.
    rows, columns = torch.arange(7) * 2 + 2, torch.arange(7) * 2 + 3
    assert torch.equal(pooled[0, 0], rows[:, None] * 20.0 + columns)
    small = pool_box(values, torch.tensor([0.0, 0, 3, 3]), 16)
    assert torch.equal(small, torch.zeros(1, 1, 7, 7))


def test_scores_of_a_box_are_those_of_its_category():
    network = build(classes=3, grid=5).eval()
    image = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[10.0, 20, 90, 120], [0.0, 0, 160, 128], [10.0, 20, 90, 120]])
    with torch.no_grad():
        found = network.box_scores(image, boxes, torch.tensor([0, 2, 1]))
        alone = network.box_scores(image, boxes[1:2], torch.tensor([2]))
        assert found.shape == (3, 50, 50)
        torch.testing.assert_close(found[1], alone[0], atol=1e-5, rtol=1e-4)
        network.score_fc7.bias[50:] += 3  # the 25 cells of category 2
        network.score_fc7.bias[:25] += 1
        moved = network.box_scores(image, boxes, torch.tensor([0, 2, 1]))
    assert (moved[1] > found[1] + 2).all()
    assert (moved[0] > found[0] + 0.5).all()
    torch.testing.assert_close(moved[2], found[2])


def test_box_loss_counts_small_boxes_less():
    scores, masks = torch.zeros(2, 50, 50), torch.ones(2, 50, 50)
    loss = box_loss(scores, masks, torch.tensor([224.0**2 / 4, 1e6]))
    assert loss.item() == pytest.approx(2500 * np.log(2) * (0.25 + 1) / 2)


def test_loss_reaches_the_heads_and_a_frozen_trunk_stays_as_it_is():
    network = build().train()
    F.cross_entropy(network(tensor(PICTURE)), torch.randint(3, (1, 51, 70))).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == name.startswith('score'), name
    assert not network.dropout.training


def test_loss_reaches_a_trunk_that_is_not_frozen():
    network = build(freeze_trunk=False).train()
    F.cross_entropy(network(tensor(PICTURE)), torch.randint(3, (1, 51, 70))).backward()
    assert network.dropout.training
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_enlarging_cuts_what_rounding_up_has_added():
    values = torch.ones(1, 2, 3, 4)
    assert enlarge(values, 2, torch.zeros(1, 1, 5, 7)).shape == (1, 2, 5, 7)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'grid': 0}, 'grid is 0; it must be at least 1'),
        ({'map_scales': (1,)}, 'map_scales are 1; pool3 and pool4 need one each'),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Hypercolumns(3, 'compact', **arguments)


def test_a_saved_network_scores_alike(tmp_path):
    arguments = {'classes': 11, 'width': 'compact', 'superpixels': 30, 'map_scales': [1, 1]}
    network = Hypercolumns(**arguments).eval()
    card = Card('hypercolumns', arguments, Preprocessing(), 'camvid')
    save_weights(tmp_path / 'weights.safetensors', network, card, torch.float32)
    loaded, _ = load_weights(tmp_path / 'weights.safetensors')
    with torch.no_grad():
        assert torch.equal(loaded(tensor(PICTURE)), network(tensor(PICTURE)))


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_segmenter_labels_the_grid_of_the_image(precision):
    card = Card('hypercolumns', {'classes': 11}, Preprocessing(), 'camvid')
    network = build(11, superpixels=30)
    segmenter = Segmenter(network, card, choose_placement('cpu', precision))
    labels = segmenter.segment(PICTURE, confidence=True).labels
    assert labels.shape == PICTURE.shape[:2]
    assert labels.max() < 11


def test_gradient_between_cells_is_that_of_finite_differences():
    generator = torch.manual_seed(0)
    scores = torch.randn(1, 2 * 9, 4, 5, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda given: between_cells(given, 3), scores.requires_grad_(), atol=1e-6
    )


def test_gradient_through_a_box_is_that_of_finite_differences():
    generator = torch.manual_seed(0)
    values = torch.randn(1, 1, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    boxes = torch.tensor([[3.0, 2.0, 25.0, 20.0]])
    assert torch.autograd.gradcheck(lambda given: sample_boxes(given, boxes, 8), values)


@pytest.mark.slow
def test_it_learns_four_images_by_heart():
    torch.manual_seed(0)
    frames = [camvid(CAMVID, 'train')[index] for index in (100, 150, 200, 300)]
    images = tensor(*(frame.image for frame in frames))
    labels = torch.from_numpy(np.stack([frame.labels for frame in frames])).long()
    known = labels != UNLABELLED
    network = Hypercolumns(
        len(CAMVID_LABELS), 'compact', map_scales=(1, 1), superpixels=0, freeze_trunk=False
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    accuracy = 0.0
    for step in range(1, 1601):
        optimizer.zero_grad()
        one = slice(step % 4, step % 4 + 1)
        scores = network.train()(images[one])
        F.cross_entropy(scores, labels[one], ignore_index=UNLABELLED).backward()
        optimizer.step()
        if step % 80 == 0:
            with torch.no_grad():
                right = network.eval()(images).argmax(1) == labels
            accuracy = right[known].float().mean().item()
            if accuracy >= 0.95:
                break
    assert accuracy >= 0.95
