"""Each network in the node, on images of the bundled drive."""

from dataclasses import replace
from pathlib import Path

from dense_perception.data.drives import rendered_drive, SHOWN_SEED
from dense_perception.data.road_world import RoadWorld
from dense_perception.labels import CITYSCAPES
from dense_perception.networks import (
    CLASSIFIERS,
    FLOW_NETWORKS,
    NETWORKS,
    PROPOSAL_NETWORKS,
    SEGMENTATION_NETWORKS,
)
from dense_perception.predictors.choice import choose_network, FLOW, SEGMENTATION
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.flow_refinement import refine_flow
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.predictors.tensors import images_to_tensor, preprocess
from dense_perception.ros.messages import image_to_array, message_to_flow, message_to_labels
from dense_perception.weights.checkpoint import (
    Card,
    load_weights,
    Preprocessing,
    read_card,
    save_weights,
)
from dense_perception.weights.published import find_weights, PUBLISHED
import numpy as np
import pytest
from sensor_msgs.msg import Image
import torch

pytestmark = pytest.mark.ros

# DeconvNet needs 193 rows at least; the others take any size.
WIDTHS = dict.fromkeys(SEGMENTATION_NETWORKS, 64) | {'deconvnet': 260}
# Each superpixel costs a pass of VGG-16, so this one is given few of them, in a weights file.
SLOW = {'zoom_out': {'superpixels': 4}}
CPU = choose_placement('cpu', 'float32')
NO_LABELS, NO_FLOW = {'segmentation_weights': ''}, {'flow_weights': ''}


@pytest.fixture(scope='module')
def drive():
    """Two images of the bundled drive at a fifth of its size, as a camera publishes them."""
    frames = rendered_drive(SHOWN_SEED, 2).frames()
    messages = []
    for source in frames:
        pixels = np.ascontiguousarray(source.image[::5, ::5])
        message = Image(height=72, width=96, encoding='rgb8', step=96 * 3)
        message.data.frombytes(pixels.tobytes())
        message.header.frame_id = 'camera'
        seconds, nanoseconds = divmod(source.stamp_ns, 10**9)
        message.header.stamp.sec, message.header.stamp.nanosec = seconds, nanoseconds
        messages.append(message)
    return messages


def shipped(network):
    """Whether weights of a network come with the package."""
    return any(read_card(find_weights(name)).network == network for name in PUBLISHED)


def results(bench, drive, topic, **parameters):
    """Run the node on the drive; return it and what it published."""
    running = bench(max_flow_gap_s=60.0, silence_warning_s=3600.0, **parameters)
    heard = running.listen(topic)
    camera = running.camera()
    for message in drive:
        processed = running.statistics().processed
        camera.publish(message)
        running.spin(lambda: running.statistics().processed > processed, 60.0)  # noqa: B023
    running.spin(lambda: bool(heard))
    assert running.statistics().bad == 0
    assert heard[-1].header == drive[-1].header
    assert (heard[-1].height, heard[-1].width) == (72, 96)
    return running, heard[-1]


def test_every_network_is_among_those_that_the_node_runs():
    known = {**SEGMENTATION_NETWORKS, **FLOW_NETWORKS, **PROPOSAL_NETWORKS}
    assert {**known, **CLASSIFIERS} == NETWORKS
    wanted = 'front_end front_end_context fcn32s fcn16s fcn8s deconvnet crf_rnn super_parsing '
    wanted += 'zoom_out hypercolumns flownet_simple flownet_corr deep_mask sharp_mask'
    assert set(known) == set(wanted.split())


@pytest.mark.parametrize('network', SEGMENTATION_NETWORKS)
def test_each_segmentation_network_labels_the_bundled_drive(bench, drive, network, tmp_path):
    given, width = save_lively(tmp_path, network), WIDTHS[network]
    running, message = results(
        bench,
        drive[:1],
        'labels',
        segmentation_network=network,
        segmentation_weights=given,
        segmentation_width=width,
        **NO_FLOW,
    )
    assert message.encoding == 'mono8'
    labels = message_to_labels(message)
    assert len(np.unique(labels)) > 1
    alone = Segmenter.from_file(Path(given), device='cpu', precision='float32', width=width)
    np.testing.assert_array_equal(labels, alone.segment(image_to_array(drive[0])).labels)
    check_told(running, 'segmentation', network, trained=True)


@pytest.mark.parametrize('network', ['fcn8s', 'deconvnet', 'crf_rnn'])
def test_a_network_without_weights_labels_too_and_is_told_to_be_untrained(bench, drive, network):
    running, message = results(
        bench,
        drive[:1],
        'labels',
        segmentation_network=network,
        segmentation_width=WIDTHS[network],
        **NO_FLOW,
    )
    assert message_to_labels(message).max() < len(CITYSCAPES)
    check_told(running, 'segmentation', network, trained=shipped(network))


def test_the_node_labels_whole_images_where_the_published_figures_came_from_tiles(
    bench, drive, tmp_path
):
    path = Path(save_lively(tmp_path, 'front_end_context', tile=(48, 56)))
    _, message = results(
        bench,
        drive[:1],
        'labels',
        segmentation_weights=str(path),
        segmentation_width=96,
        **NO_FLOW,
    )
    network, card = load_weights(path)
    image = image_to_array(drive[0])
    in_tiles, whole = (
        Segmenter(network, replace(card, tile=tile), CPU, width=96).segment(image).labels
        for tile in (card.tile, None)
    )
    labels = message_to_labels(message)
    np.testing.assert_array_equal(labels, whole)
    assert (labels != in_tiles).any()


@pytest.mark.parametrize('network', FLOW_NETWORKS)
def test_each_flow_network_estimates_flow_on_the_bundled_drive(bench, drive, network):
    running, message = results(bench, drive, 'flow', flow_network=network, **NO_LABELS)
    flow = message_to_flow(message)
    assert np.isfinite(flow).all()
    assert flow.std() > 0
    check_told(running, 'flow', network, trained=shipped(network))


@pytest.mark.parametrize('form', SEGMENTATION.forms)
def test_each_form_of_a_segmentation_network_is_run_by_its_name(bench, drive, form):
    running, message = results(bench, drive[:1], 'labels', segmentation_network=form, **NO_FLOW)
    choice = choose_network(SEGMENTATION, form, 'drive')
    alone = Segmenter(choice.network, choice.card, CPU, width=64)
    expected = alone.segment(image_to_array(drive[0])).labels
    np.testing.assert_array_equal(message_to_labels(message), expected)
    check_told(running, 'segmentation', choice.card.network, trained=choice.trained)


@pytest.mark.parametrize('form', FLOW.forms)
def test_each_form_of_a_flow_network_is_run_by_its_name(bench, drive, form):
    _, message = results(bench, drive, 'flow', flow_network=form, **NO_LABELS)
    choice = choose_network(FLOW, form, 'flow')
    alone = FlowEstimator(choice.network, choice.card, CPU, width=64)
    expected = alone.estimate(*map(image_to_array, drive))
    np.testing.assert_allclose(message_to_flow(message), expected, atol=1e-5)


@pytest.mark.parametrize('network', PROPOSAL_NETWORKS)
def test_each_proposal_network_ranks_masks_on_the_bundled_drive(bench, drive, network):
    running, message = results(
        bench,
        drive[:1],
        'proposals',
        proposal_network=network,
        proposal_width=96,
        **NO_LABELS,
        **NO_FLOW,
    )
    assert message.encoding == 'mono8'
    ranks = np.frombuffer(message.data, np.uint8)
    assert 0 < ranks.max() <= 254
    check_told(running, 'proposal', network, trained=False)


def check_told(running, task, network, trained):
    """Diagnostics name the network, and warn where nothing has trained it."""
    status, values = running.next_diagnostics()
    assert values[f'{task} network'] == network
    if trained:
        assert status.level == status.OK
        assert values[f'{task} weights'] not in ('', 'untrained')
    else:
        assert status.level == status.WARN
        assert f'untrained: {task} network {network}' in status.message
        assert values[f'{task} weights'] == 'untrained'


@pytest.mark.parametrize('refinement', ['none', 'dense_crf', 'crf_rnn'])
def test_labels_are_refined_as_the_parameter_says(bench, drive, refinement):
    _, message = results(bench, drive[:1], 'labels', refinement=refinement, **NO_FLOW)
    choice = choose_network(SEGMENTATION, '', 'drive')
    segmenter = Segmenter(choice.network, choice.card, CPU, width=64, refinement=refinement)
    expected = segmenter.segment(image_to_array(drive[0])).labels
    np.testing.assert_array_equal(message_to_labels(message), expected)


def test_network_and_refinement_are_chosen_together(bench, drive):
    running, _ = results(
        bench, drive[:1], 'labels', segmentation_network='fcn8s', refinement='crf_rnn', **NO_FLOW
    )
    _, values = running.next_diagnostics()
    assert (values['segmentation network'], values['refinement']) == ('fcn8s', 'crf_rnn')


def test_flow_is_refined_as_the_parameter_says(bench, drive):
    _, refined = results(bench, drive, 'flow', flow_refinement='variational', **NO_LABELS)
    first, second = map(image_to_array, drive)
    choice = choose_network(FLOW, '', 'flow')
    estimator = FlowEstimator(choice.network, choice.card, CPU, width=64)
    expected = refine_flow(first, second, estimator.estimate(first, second))
    np.testing.assert_array_equal(message_to_flow(refined), expected)


def save(tmp_path, name, **arguments):
    """Write weights of a network that labels, as a training leaves them; return their path."""
    torch.manual_seed(0)
    card = Card(name, {'classes': 19, **arguments}, Preprocessing(), 'cityscapes')
    save_weights(tmp_path / 'mine.safetensors', card.build(), card)
    return str(tmp_path / 'mine.safetensors')


def save_lively(tmp_path, name, **about):
    """Write weights with which a network tells the bundled drive's pixels apart, untrained."""
    torch.manual_seed(0)
    arguments = {'classes': len(CITYSCAPES), 'width': 'compact', **SLOW.get(name, {})}
    card = Card(name, arguments, Preprocessing(), 'cityscapes', **about)
    network = card.build()
    if name == 'super_parsing':
        frames = [RoadWorld(seed).frame(0) for seed in (1, 2)]
        network = type(network)(**arguments, settings={'smallest': 30, 'added': 0.01})
        network.fit(
            [frame.image[::3, ::3] for frame in frames],
            [frame.labels[::3, ::3] for frame in frames],
            np.random.default_rng(0),
        )
        card = replace(card, arguments=network.arguments)
    for value in network.parameters():
        if value.dim() > 1 and value.requires_grad:  # layers of scores begin at 0
            torch.nn.init.kaiming_normal_(value)
    if name == 'zoom_out':  # a class that is best on the whole would be so everywhere
        image = images_to_tensor([RoadWorld(SHOWN_SEED).frame(0).image[::5, ::5]])
        with torch.no_grad():
            scores = network.eval()(preprocess(image, card.preprocessing))
            network.classifier[-1].bias -= scores.mean((0, 2, 3))
    save_weights(tmp_path / 'lively.safetensors', network, card)
    return str(tmp_path / 'lively.safetensors')


def test_weights_of_a_trained_crf_rnn_are_used_by_name_of_the_network(bench, drive, tmp_path):
    path = save(tmp_path, 'crf_rnn', network='fcn8s', width='compact')
    running, _ = results(
        bench,
        drive[:1],
        'labels',
        segmentation_network='crf_rnn',
        segmentation_weights=path,
        **NO_FLOW,
    )
    status, values = running.next_diagnostics()
    assert status.level == status.OK
    assert values['segmentation weights'] == path


@pytest.mark.parametrize(
    ('parameters', 'error'),
    [
        ({'segmentation_network': 'unet'}, "segmentation_network is 'unet'; known are front_end,"),
        ({'flow_network': 'fcn8s'}, "flow_network is 'fcn8s'; known are flownet_simple,"),
        ({'proposal_network': 'drive'}, "proposal_network is 'drive'; known are deep_mask"),
        ({'proposal_weights': 'a'}, 'proposal_network is empty'),
        ({'proposal_network': 'deep_mask', 'proposal_weights': 'flow'}, 'which hold flownet'),
        ({'segmentation_network': 'fcn8s', 'segmentation_weights': ''}, 'switches it off'),
        ({'segmentation_network': 'fcn8s', 'segmentation_weights': 'flow'}, 'asks for fcn8s'),
        ({'refinement': 'blur'}, 'none, dense_crf, crf_rnn'),
        ({'segmentation_network': 'crf_rnn', 'refinement': 'crf_rnn'}, 'set refinement: none'),
    ],
)
def test_a_choice_that_cannot_be_is_refused_with_what_can(bench, parameters, error):
    running = bench('unconfigured', **parameters)
    assert not running.change('configure')
    status, _ = running.next_diagnostics()
    assert status.level == status.ERROR
    assert error in status.message


def test_weights_of_another_network_than_is_asked_for_are_refused_by_both_names(bench, tmp_path):
    path = save(tmp_path, 'fcn16s', width='compact')
    running = bench('unconfigured', segmentation_network='fcn8s', segmentation_weights=path)
    assert not running.change('configure')
    status, _ = running.next_diagnostics()
    assert f'{path}, which hold fcn16s; segmentation_network asks for fcn8s' in status.message
