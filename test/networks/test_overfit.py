"""
Every network can learn a few samples by heart: what it computes and its gradient fit each other.

SuperParsing, zoom-out and hypercolumns have such tests of their own; so have the mask networks,
beside their training.
"""

from pathlib import Path

from dense_perception.data.flow import flow_pairs
from dense_perception.data.segmentation import camvid
from dense_perception.labels import CAMVID, UNLABELLED
from dense_perception.networks import NETWORKS
from dense_perception.networks.flownet import FLOW_SCALE
from dense_perception.predictors.tensors import images_to_tensor, preprocess
from dense_perception.training.losses import flow_loss, known_flow
from dense_perception.weights.checkpoint import Preprocessing
import numpy as np
import pytest
import torch
import torch.nn.functional as F

DATA = Path(__file__).parents[2].parent / 'shared' / 'data'
STEPS = 600


def labelled_parts(rows, columns, factor):
    """
    Return parts of four images, enlarged, and their labels.

    Enlarged, for scores far apart cannot trace the outline of a small thing.
    """
    images, labels = [], []
    for index in (100, 150, 200, 300):
        frame = camvid(DATA / 'camvid', 'train')[index]
        part = slice(120, 120 + rows), slice(200, 200 + columns)
        images.append(frame.image[part].repeat(factor, 0).repeat(factor, 1))
        labels.append(frame.labels[part].repeat(factor, 0).repeat(factor, 1))
    pictures = preprocess(images_to_tensor(images), Preprocessing())
    return pictures, torch.from_numpy(np.stack(labels)).long()


def pixel_scores(network, images):
    """Return scores of every pixel, from those of `stride` pixels each."""
    margin = getattr(network, 'margin', 0)
    scores = network(F.pad(images, (margin,) * 4, mode='reflect') if margin else images)
    if scores.shape[2:] == images.shape[2:]:
        return scores
    return F.interpolate(scores, images.shape[2:], mode='bilinear', align_corners=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'arguments', 'part', 'rate'),
    [
        ('front_end', {}, (48, 64, 2), 1e-3),
        ('front_end_context', {'layers': 8}, (48, 64, 2), 1e-3),
        ('front_end_context', {'large': True}, (32, 48, 3), 5e-4),
        ('fcn8s', {'at_once': True}, (32, 48, 3), 2e-3),
        ('fcn16s', {'at_once': True}, (24, 32, 4), 2e-3),
        ('fcn32s', {}, (24, 32, 5), 2e-3),
        ('deconvnet', {}, (50, 50, 4), 1e-2),
        ('crf_rnn', {'network': 'fcn8s', 'at_once': True}, (24, 32, 4), 2e-3),
    ],
)
def test_network_labels_four_images_that_it_was_trained_on(name, arguments, part, rate):
    torch.manual_seed(0)
    images, labels = labelled_parts(*part)
    known = labels != UNLABELLED
    network = NETWORKS[name](classes=len(CAMVID), width='compact', **arguments)
    network.to(memory_format=torch.channels_last)  # as the images are
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learnt, lr=rate)
    accuracy = 0.0
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        scores = pixel_scores(network.train(), images)
        F.cross_entropy(scores, labels, ignore_index=UNLABELLED).backward()
        optimizer.step()
        if step % 20 == 0:
            with torch.no_grad():
                right = pixel_scores(network.eval(), images).argmax(1) == labels
            accuracy = right[known].float().mean().item()
            if accuracy >= 0.95:
                break
    assert accuracy >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize('name', ['flownet_simple', 'flownet_corr'])
def test_flownet_estimates_two_pairs_that_it_was_trained_on(name):
    torch.manual_seed(0)
    pairs = [pair for pair in flow_pairs(DATA / 'flow') if 'flyingchairs' in pair.name][:2]
    assert len(pairs) == 2
    part = slice(64, 320), slice(64, 384)  # 256 x 320
    first, second = (
        preprocess(
            images_to_tensor([getattr(pair, side)[part] for pair in pairs]), Preprocessing()
        )
        for side in ('first', 'second')
    )
    flow = torch.from_numpy(np.stack([pair.flow[part] for pair in pairs])).permute(0, 3, 1, 2)
    valid = torch.from_numpy(np.stack([pair.valid[part] for pair in pairs]))[:, None]
    known = known_flow(valid)
    network = NETWORKS[name](width=0.25)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    # The rate falls in the last part, or the error would swing around its bound.
    falling = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (1 - step / STEPS) / 0.4)
    )
    error = np.inf
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        flows = network.train().levels(first, second)
        flow_loss(flows, flow / FLOW_SCALE, valid, known).backward()
        optimizer.step()
        falling.step()
        if step % 20 == 0:
            with torch.no_grad():
                found = network.eval()(first, second) * FLOW_SCALE
            found = F.interpolate(found, flow.shape[2:], mode='bilinear', align_corners=False)
            error = (found - flow).norm(dim=1)[valid[:, 0]].mean().item()
            if error < 1:
                break
    assert error < 1
