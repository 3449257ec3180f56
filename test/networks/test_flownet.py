from dense_perception.networks.flownet import FlowNetCorr, FlowNetSimple, Refinement
import pytest
import torch
from torch import nn

BOTH = [FlowNetSimple, FlowNetCorr]


def on_meta(network, **arguments):
    """Build a network that has shapes but no numbers."""
    with torch.device('meta'):
        return network(**arguments).eval()


def multiply_accumulates(network, *inputs):
    """Count those of convolutions and transposed convolutions in one pass."""
    total = 0

    def count(layer, arguments, output):
        nonlocal total
        positions = arguments[0] if isinstance(layer, nn.ConvTranspose2d) else output
        per_position = layer.weight.numel()  # every weight once
        total += per_position * positions.shape[0] * positions.shape[2] * positions.shape[3]

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(count)
    network(*inputs)
    return total


@pytest.mark.parametrize(
    ('network', 'batch_norm', 'count'),
    [
        (FlowNetSimple, False, 38_675_536),
        (FlowNetCorr, False, 39_174_320),
        (FlowNetSimple, True, 38_680_336),
        (FlowNetCorr, True, 39_179_152),
    ],
)
def test_parameters_are_those_of_the_pytorch_release(network, batch_norm, count):
    built = on_meta(network, batch_norm=batch_norm)
    assert sum(value.numel() for value in built.parameters()) == count


@pytest.mark.parametrize(
    ('network', 'count'), [(FlowNetSimple, 15_787_782_912), (FlowNetCorr, 22_382_015_232)]
)
def test_convolutions_cost_what_the_published_ones_do(network, count):
    image = torch.empty(1, 3, 384, 512, device='meta')
    assert multiply_accumulates(on_meta(network), image, image) == count


def test_correlation_costs_what_the_published_one_does():
    network = on_meta(FlowNetCorr)
    _, features = network.image_features(torch.empty(1, 3, 384, 512, device='meta'))
    joined = network.compare(features, features)
    displacements = joined.shape[1] - 32
    cost = displacements * features.shape[1] * features.shape[2] * features.shape[3]
    assert cost == 346_816_512


@pytest.mark.parametrize('network', BOTH)
def test_levels_have_the_published_sizes(network):
    image = torch.empty(1, 3, 384, 512, device='meta')
    shapes = [tuple(flow.shape) for flow in on_meta(network).levels(image, image)]
    sizes = [(6, 8), (12, 16), (24, 32), (48, 64), (96, 128)]
    assert shapes == [(1, 2, *size) for size in sizes]


def test_decoder_joins_the_published_channels():
    # Features, enlarged features and enlarged flow at levels 5, 4, 3 and 2; section 3, figure 3.
    network = on_meta(FlowNetSimple)
    joined = [
        network.get_submodule(f'refinement.predict_flow{level}').in_channels
        for level in (6, 5, 4, 3, 2)
    ]
    assert joined == [1024, 1026, 770, 386, 194]
    assert on_meta(FlowNetCorr).conv3_1[0].in_channels == 473  # 32 reduced, 441 matches


def test_flow_is_the_finest_level():
    torch.manual_seed(0)
    network = FlowNetSimple(width=1 / 16).eval()
    first, second = torch.rand(2, 1, 3, 64, 128)
    assert torch.equal(network(first, second), network.levels(first, second)[-1])


@pytest.mark.parametrize('network', BOTH)
@pytest.mark.parametrize('size', [(65, 100), (140, 127), (70, 196)])
def test_odd_map_sizes_are_cropped_to_the_encoder_s(network, size):
    image = torch.empty(1, 3, *size, device='meta')
    expected, (rows, columns) = [], size
    for level in range(1, 7):  # every stride-2 layer rounds up
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
        if level >= 2:
            expected.insert(0, (rows, columns))
    flows = on_meta(network, width=1 / 16).levels(image, image)
    assert [tuple(flow.shape[2:]) for flow in flows] == expected


def test_cropping_drops_the_right_and_bottom_of_what_was_enlarged():
    torch.manual_seed(0)
    decoder = Refinement(skips=(1, 1, 1, 1), top=1, widths=(1, 1, 1, 1))
    top = torch.randn(1, 1, 2, 2)

    def level5(rows, columns):
        skips = [torch.zeros(1, 1, rows * 2**n, columns * 2**n) for n in range(4)]
        return decoder([top, *skips])[1]

    whole, odd = level5(4, 4), level5(3, 3)
    assert odd.shape[2:] == (3, 3)
    # predict_flow is 3x3, so one row and column from the cut see zeros in the place of values.
    torch.testing.assert_close(odd[:, :, :2, :2], whole[:, :, :2, :2])


def test_flownet_corr_uses_the_same_weights_on_both_images():
    torch.manual_seed(0)
    network = FlowNetCorr(width=1 / 8).eval()
    first, second = torch.rand(2, 1, 3, 64, 64)
    together = network.image_features(torch.cat([first, second]))
    for maps, alone in zip(together, network.image_features(second), strict=True):
        torch.testing.assert_close(maps[1:], alone)


def test_shifting_the_second_image_right_by_16_pixels_moves_the_best_match_one_channel():
    torch.manual_seed(0)
    network = FlowNetCorr(width=1 / 8).eval()
    reduced = network.conv_redir[0].out_channels
    wide = torch.randn(1, 3, 64, 400)
    first, moved = wide[..., 16:], wide[..., :-16]  # what was at x is at x + 16

    def best(other):
        _, one = network.image_features(first)
        _, two = network.image_features(other)
        matches = network.compare(one, two)[0, reduced:]
        return int(matches[:, 2:-2, 20:-20].mean((1, 2)).argmax())

    assert best(first) == 220
    assert best(moved) == 221


@pytest.mark.parametrize('network', BOTH)
def test_every_parameter_of_the_network_learns(network):
    torch.manual_seed(0)
    built = network(width=1 / 16, batch_norm=True)
    first, second = torch.rand(2, 2, 3, 64, 128)
    sum(flow.square().mean() for flow in built.levels(first, second)).backward()
    assert [name for name, value in built.named_parameters() if value.grad is None] == []


def test_negative_features_and_matches_are_scaled_by_a_tenth():
    # Leaky ReLU of slope 0.1, as in the released models; the paper says ReLU.
    torch.manual_seed(0)
    network = FlowNetCorr(width=1 / 16).eval()
    image = torch.randn(1, 3, 64, 64)
    plain = network.conv1[0](image)
    torch.testing.assert_close(network.conv1(image), torch.where(plain > 0, plain, 0.1 * plain))
    features = torch.ones(1, network.conv3[0].out_channels, 3, 3)
    matches = network.compare(features, -features)[:, network.conv_redir[0].out_channels :]
    assert matches[0, 220].unique().tolist() == pytest.approx([-0.1])


@pytest.mark.parametrize('network', BOTH)
def test_normalised_encoder_does_not_depend_on_the_scale_of_its_convolutions(network):
    torch.manual_seed(0)
    built = network(width=1 / 16, batch_norm=True).train()
    first, second = torch.rand(2, 2, 3, 64, 64)
    before = built(first, second)
    for name, parameter in built.named_parameters():
        if name.startswith('conv4.0'):
            parameter.data *= 5
    torch.testing.assert_close(built(first, second), before, rtol=1e-2, atol=1e-3)
