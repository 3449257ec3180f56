from dense_perception.networks.deconvnet import DeconvNet
from dense_perception.networks.flownet import FlowNetSimple
from dense_perception.networks.frontend import FrontEnd
from dense_perception.training.batch_norm import (
    fold,
    folded,
    keep_function,
    normalize_convolutions,
)
from dense_perception.weights.checkpoint import Card, Preprocessing
import pytest
import torch
from torch import nn


@pytest.fixture
def images():
    return torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(1))


def chain(network):
    return [name for stage in network.stages for name in stage]


def normalized(network):
    names = normalize_convolutions(network)
    assert names == [*chain(network), 'fc6', 'fc7']
    return network


def front_end():
    torch.manual_seed(0)
    return FrontEnd(5, 'compact')


def test_folded_state_fits_the_plain_network_and_computes_the_same(images):
    network = normalized(front_end())
    for _ in range(3):
        network(images)  # training mode: the running averages move away from their start
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 2.0)
                nn.init.uniform_(layer.bias, -0.5, 0.5)
        nn.init.normal_(network.final.weight)
    plain = FrontEnd(5, 'compact')
    plain.load_state_dict(fold(network.state_dict()))

    with torch.no_grad():
        torch.testing.assert_close(
            plain.eval()(images), network.eval()(images), atol=1e-3, rtol=1e-3
        )


def test_fold_leaves_a_plain_state_as_it_is():
    state = front_end().state_dict()

    assert all(torch.equal(value, state[name]) for name, value in fold(state).items())
    assert list(fold(state)) == list(state)


def test_trained_layers_compute_what_they_did_up_to_a_factor_per_channel(images):
    plain = front_end()
    network = normalized(front_end())
    known = chain(network)[:-2]  # up to conv5_1, as the narrow VGG has them

    keep_function(network, known, images)

    before, after = (_activations(each.eval(), known[-1], images) for each in (plain, network))
    for channel in range(before.shape[1]):
        expected, given = before[:, channel].flatten(), after[:, channel].flatten()
        if expected.std() > 1e-3:
            factor = (expected @ given) / (expected @ expected)
            torch.testing.assert_close(given, factor * expected, atol=2e-3, rtol=2e-3)


def test_kept_layers_start_with_filters_as_long_as_fresh_ones(images):
    network = normalized(front_end())

    keep_function(network, chain(network), images)

    lengths = network.conv3_2.weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 2**0.5))


def test_normalisation_trains_with_its_network(images):
    network = normalized(front_end()).train()
    nn.init.normal_(network.final.weight)

    network(images).square().mean().backward()

    assert network.conv1_1.norm.weight.grad.abs().sum() > 0
    assert network.conv1_1.weight.grad.abs().sum() > 0


def _activations(network, name, images):
    seen = []
    hook = network.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: seen.append(output.relu())
    )
    with torch.no_grad():
        network(images)
    hook.remove()
    return seen[0]


def test_network_with_batch_normalisation_of_its_own_stays_as_it_is():
    network = DeconvNet(5, 'compact')

    assert normalize_convolutions(network) == []


def test_convolutions_of_a_flow_encoder_are_normalised_and_folded():
    torch.manual_seed(0)
    network = FlowNetSimple(width=0.125)
    pair = torch.randn(2, 2, 3, 64, 64)
    card = Card('flownet_simple', {'width': 0.125}, Preprocessing())

    names = normalize_convolutions(network)
    network.train()(*pair)

    assert 'conv6_1.0' in names
    assert not any('refinement' in name for name in names)
    with torch.no_grad():
        plain = folded(network, card).eval()(*pair)
        torch.testing.assert_close(plain, network.eval()(*pair), atol=1e-4, rtol=1e-3)
