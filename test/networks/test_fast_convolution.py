from dense_perception.networks.fast_convolution import can_be_fast, FastConvolution, make_fast
from dense_perception.predictors.device import choose_placement, Placement
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import torch
from torch import nn
import torch.nn.functional as F

SIDES = st.integers(1, 40)


@given(
    size=st.tuples(SIDES, SIDES),
    taps=st.tuples(st.sampled_from([3, 5, 7]), st.sampled_from([5, 7, 9])),
    dilation=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    batch=st.integers(1, 2),
)
@settings(max_examples=60, deadline=None)
def test_it_gives_what_the_layer_gives_for_any_form(size, taps, dilation, padding, batch):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, taps, dilation=dilation, padding=padding)
    # `size` of outputs, from the input that has them.
    rows, columns = (
        max(1, side + step * (count - 1) - 2 * edge)
        for side, step, count, edge in zip(size, dilation, taps, padding, strict=True)
    )
    values = torch.randn(batch, 3, rows, columns)
    with torch.inference_mode():
        torch.testing.assert_close(
            FastConvolution(layer)(values), layer(values), rtol=1e-4, atol=1e-5
        )


def products_of(network, values):
    """Return how many convolutions torch makes, and of how many taps in all."""
    with (
        torch.inference_mode(),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
        ) as profile,
    ):
        network(values)
    kernels = [
        event.input_shapes[1][2:] for event in profile.events() if event.name == 'aten::conv2d'
    ]
    return len(kernels), sum(rows * columns for rows, columns in kernels)


def test_four_outputs_take_121_products_of_seven_by_seven_taps():
    layer = FastConvolution(nn.Conv2d(2, 3, 7, dilation=4))
    assert products_of(layer, torch.randn(1, 2, 88, 88)) == (9, 121)


def test_few_outputs_that_would_be_filled_up_to_pairs_are_computed_as_they_are():
    layer = FastConvolution(nn.Conv2d(2, 3, 7, dilation=4))
    assert products_of(layer, torch.randn(1, 2, 25, 25)) == (1, 49)


def test_bfloat16_stays_within_a_hundredth_of_float32():
    torch.manual_seed(0)
    layer = nn.Conv2d(128, 64, 7, dilation=4)
    values = torch.randn(1, 128, 56, 56).relu()
    with torch.inference_mode():
        expected = layer(values)
        found = FastConvolution(layer.bfloat16())(values.bfloat16()).float()
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_an_input_smaller_than_the_filter_is_refused_as_by_the_layer():
    layer = FastConvolution(nn.Conv2d(2, 3, 7, dilation=4))
    with torch.inference_mode(), pytest.raises(RuntimeError, match='Kernel size'):
        layer(torch.randn(1, 2, 20, 40))


def test_the_state_of_a_layer_is_that_of_the_one_it_is_made_of():
    layer = nn.Conv2d(2, 3, 5)
    state = FastConvolution(layer).state_dict()
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in layer.state_dict().items()
    }


def test_wide_dilated_layers_are_worth_it_and_others_are_not():
    def layer(inputs=512, outputs=512, taps=7, **options):
        return nn.Conv2d(inputs, outputs, taps, device='meta', **{'dilation': 4, **options})

    assert can_be_fast(layer())
    others = [
        layer(inputs=256),
        layer(outputs=256),
        layer(taps=3),
        layer(taps=6),
        layer(dilation=1),
        layer(dilation=(4, 1)),
        layer(stride=2),
        layer(groups=2),
        layer(padding_mode='reflect'),
        layer(padding='same'),
        layer(bias=False),
        nn.ConvTranspose2d(512, 512, 7, dilation=4, device='meta'),
    ]
    assert [can_be_fast(other) for other in others] == [False] * len(others)


def test_a_network_on_a_cpu_in_bfloat16_has_them_and_gives_the_same_but_for_rounding():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 512, 1), nn.Conv2d(512, 512, 5, dilation=2)).eval()
    image = torch.rand(1, 3, 20, 20)
    with torch.inference_mode():
        expected = network(image)
        placed = Placement(torch.device('cpu'), torch.bfloat16).place(network)
        found = placed(image.bfloat16()).float()
    assert isinstance(placed[1], FastConvolution)
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_a_network_in_float32_keeps_its_layers():
    network = nn.Sequential(nn.Conv2d(512, 512, 5, dilation=2))
    placed = choose_placement('cpu', 'float32').place(network)
    assert type(placed[0]) is nn.Conv2d


def test_with_gradients_it_is_the_layer_itself():
    layer = FastConvolution(nn.Conv2d(2, 3, 5, dilation=2))
    values = torch.randn(1, 2, 24, 24)
    assert torch.equal(layer(values), F.conv2d(values, layer.weight, layer.bias, dilation=2))


def test_layers_are_replaced_wherever_they_stand_in_a_network():
    network = nn.ModuleDict({'inner': nn.Sequential(nn.Conv2d(512, 512, 5, dilation=2))})
    make_fast(network)
    assert isinstance(network['inner'][0], FastConvolution)
