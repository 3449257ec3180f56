import math

from dense_perception.labels import CAMVID, CITYSCAPES, conversion
from dense_perception.training.losses import (
    flow_loss,
    merge_classes,
    overlap_loss,
    segmentation_loss,
)
import pytest
import torch
import torch.nn.functional as F

SIZES = ((1, 2), (2, 4), (4, 8), (8, 16), (16, 32))  # levels 6 to 2 of a 64 x 128 image


def levels(flow):
    """Average a full-size flow down to every level."""
    return [F.adaptive_avg_pool2d(flow, size) for size in SIZES]


def everywhere(value=True):
    return torch.full((1, 1, 64, 128), value)


def test_merged_class_is_as_probable_as_its_parts_together():
    torch.manual_seed(0)
    scores = torch.randn(2, 5, 3, 4)
    table = torch.tensor([1, 0, 1, 2, 0])
    shares = scores.softmax(1)
    expected = [shares[:, [1, 4]].sum(1), shares[:, [0, 2]].sum(1), shares[:, 3]]
    merged = merge_classes(scores, table, 3)
    torch.testing.assert_close(merged, torch.stack(expected, 1).log())


def test_cityscapes_scores_merge_into_camvid_probabilities_that_sum_to_1():
    torch.manual_seed(0)
    table = torch.from_numpy(conversion(CITYSCAPES, CAMVID)[:19].copy())
    merged = merge_classes(torch.randn(1, 19, 4, 4), table, 11)
    torch.testing.assert_close(merged.exp().sum(1), torch.ones(1, 4, 4))


def test_merging_keeps_large_scores_finite():
    scores = torch.tensor([1e4, -1e4, 0.0]).reshape(1, 3, 1, 1).requires_grad_()
    merged = merge_classes(scores, torch.tensor([0, 1, 1]), 2)
    merged.sum().backward()
    assert torch.isfinite(merged).all()
    assert torch.isfinite(scores.grad).all()


def test_segmentation_loss_of_equal_scores_is_the_logarithm_of_the_classes():
    logs = torch.zeros(1, 7, 4, 5).log_softmax(1)
    labels = torch.randint(7, (1, 4, 5))
    assert segmentation_loss(logs, labels).item() == pytest.approx(math.log(7))


def test_unlabelled_pixels_do_not_count_in_the_segmentation_loss():
    logs = torch.tensor([[0.25, 0.5], [0.75, 0.5]]).log().reshape(1, 2, 1, 2)
    labels = torch.tensor([[[1, 255]]])
    assert segmentation_loss(logs, labels).item() == pytest.approx(-math.log(0.75))


def test_segmentation_loss_is_a_mean_weighted_by_class():
    logs = torch.tensor([[0.25, 0.5], [0.75, 0.5]]).log().reshape(1, 2, 1, 2)
    labels = torch.tensor([[[0, 1]]])
    expected = -(3 * math.log(0.25) + 1 * math.log(0.5)) / 4
    weights = torch.tensor([3.0, 1.0])
    assert segmentation_loss(logs, labels, weights).item() == pytest.approx(expected)


def test_perfect_flow_costs_nothing():
    torch.manual_seed(0)
    truth = torch.randn(1, 2, 64, 128)
    assert flow_loss(levels(truth), truth, everywhere()).item() < 1e-4


def test_flow_loss_weighs_the_mean_errors_of_the_levels():
    truth = torch.zeros(1, 2, 64, 128)
    wrong = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)  # 5 long
    for index, weight in enumerate((0.02, 0.04, 0.08, 0.16, 0.32)):
        flows = levels(truth)
        flows[index] = flows[index] + wrong
        assert flow_loss(flows, truth, everywhere()).item() == pytest.approx(5 * weight, abs=1e-4)


def test_unknown_pixels_do_not_count_in_the_flow_loss():
    torch.manual_seed(0)
    truth = torch.full((1, 2, 64, 128), 2.0)
    valid = everywhere()
    valid[..., 64:] = False
    flows = [torch.randn(1, 2, *size) for size in SIZES]
    expected = flow_loss(flows, truth, valid)
    assert flow_loss(flows, torch.where(valid, truth, 1e6), valid) == expected
    for flow in flows:
        flow[..., flow.shape[3] // 2 :] = 1e6
    assert flow_loss(flows, truth, valid) == expected


def test_a_single_known_pixel_teaches_its_own_flow_at_every_level():
    truth = torch.zeros(1, 2, 64, 128)
    valid = everywhere(False)
    valid[..., 10, 20] = True
    truth[..., 10, 20] = torch.tensor([3.0, -1.0])
    right = [torch.zeros(1, 2, *size) for size in SIZES]
    for flow, (rows, columns) in zip(right, SIZES, strict=True):
        flow[0, :, 10 * rows // 64, 20 * columns // 128] = torch.tensor([3.0, -1.0])
    assert flow_loss(right, truth, valid).item() < 1e-4


def test_flow_loss_without_a_known_pixel_is_0_and_so_is_its_gradient():
    flows = [torch.randn(1, 2, *size, requires_grad=True) for size in SIZES]
    loss = flow_loss(flows, torch.zeros(1, 2, 64, 128), everywhere(False))
    loss.backward()
    assert loss.item() == 0
    assert all((flow.grad == 0).all() for flow in flows)


def test_gradient_of_perfect_flow_is_finite():
    flows = [torch.zeros(1, 2, *size, requires_grad=True) for size in SIZES]
    flow_loss(flows, torch.zeros(1, 2, 64, 128), everywhere()).backward()
    assert all(torch.isfinite(flow.grad).all() for flow in flows)


def test_images_without_any_label_cost_nothing():
    logs = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = segmentation_loss(logs, torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss.item() == 0
    assert (logs.grad == 0).all()


def test_overlap_loss_of_certain_scores_is_one_minus_mean_iou():
    random = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (2, 6, 7), generator=random)
    estimate = torch.randint(0, 3, (2, 6, 7), generator=random)
    logs = (100.0 * F.one_hot(estimate, 4).permute(0, 3, 1, 2)).log_softmax(1)

    ious = [
        ((truth == label) & (estimate == label)).sum()
        / ((truth == label) | (estimate == label)).sum()
        for label in range(3)
    ]
    torch.testing.assert_close(overlap_loss(logs, truth), 1 - torch.stack(ious).mean())


def test_overlap_loss_ignores_unlabelled_pixels():
    logs = torch.tensor([[[[0.0, -9.0]], [[-9.0, 0.0]]]]).log_softmax(1)

    both = overlap_loss(logs, torch.tensor([[[0, 255]]]))
    alone = overlap_loss(logs[..., :1], torch.tensor([[[0]]]))

    torch.testing.assert_close(both, alone)


def test_overlap_loss_of_no_labelled_pixel_is_zero_with_a_gradient():
    logs = torch.zeros(1, 2, 2, 2, requires_grad=True)

    loss = overlap_loss(logs, torch.full((1, 2, 2), 255))
    loss.backward()

    assert loss.item() == 0
    assert (logs.grad == 0).all()
