from dense_perception.networks.layers import (
    bilinear_kernel,
    BilinearUpsampling,
    correlation,
    crop_to,
    max_pool,
    rectified,
    zoom,
)
import pytest
import torch
from torch import nn
import torch.nn.functional as F


def correlation_by_loops(first, second, reach, step):
    """Compare as the released kernel does: mean over channels, zero outside, dx fastest."""
    batch, channels, rows, columns = first.shape
    shifts = range(-(reach // step) * step, reach + 1, step)
    result = first.new_zeros(batch, len(shifts) ** 2, rows, columns)
    for channel, (dy, dx) in enumerate((dy, dx) for dy in shifts for dx in shifts):
        for y in range(rows):
            for x in range(columns):
                if 0 <= y + dy < rows and 0 <= x + dx < columns:
                    product = first[:, :, y, x] * second[:, :, y + dy, x + dx]
                    result[:, channel, y, x] = product.sum(1) / channels
    return result


@pytest.mark.parametrize(
    ('size', 'reach', 'step'),
    [((5, 7), 4, 2), ((6, 4), 3, 1), ((3, 5), 5, 2), ((1, 1), 2, 2), ((4, 9), 2, 3)],
)
def test_correlation_agrees_with_loops_over_pixels_and_shifts(size, reach, step):
    torch.manual_seed(0)
    first, second = torch.randn(2, 2, 6, *size)
    expected = correlation_by_loops(first, second, reach, step)
    torch.testing.assert_close(
        correlation(first, second, reach, step), expected, rtol=1e-6, atol=1e-6
    )


def correlation_by_shifts(first, second, reach, step):
    """Multiply with shifted copies of the whole map, one for each channel of the result."""
    rows, columns = first.shape[2:]
    padded = F.pad(second, (reach,) * 4)
    shifts = range(0, 2 * reach + 1, step)  # 0 is a shift by -reach
    return torch.stack(
        [
            (first * padded[:, :, down : down + rows, right : right + columns]).mean(1)
            for down in shifts
            for right in shifts
        ],
        1,
    )


@pytest.mark.parametrize('size', [(48, 64), (7, 45), (3, 5)])
def test_correlation_at_the_published_reach_agrees_with_shifted_products(size):
    random = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1, 16, *size, generator=random, dtype=torch.float64)
    found = correlation(first, second)
    expected = correlation_by_shifts(first, second, 20, 2)
    assert found.shape == (1, 441, *size)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_correlation_has_441_channels_by_default():
    assert correlation(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)).shape == (1, 441, 3, 4)


def test_correlation_with_itself_has_the_mean_square_in_the_centre_channel():
    torch.manual_seed(0)
    features = torch.randn(2, 8, 6, 10)
    centre = correlation(features, features)[:, 220]
    torch.testing.assert_close(centre, features.square().mean(1))


@pytest.mark.parametrize(
    ('dx', 'dy', 'channel'), [(0, 0, 220), (2, 0, 221), (-2, 0, 219), (0, 2, 241), (20, 20, 440)]
)
def test_channel_of_a_shift_counts_horizontal_steps_fastest(dx, dy, channel):
    first, second = torch.zeros(2, 1, 1, 45, 45)
    first[..., 22, 22] = 1
    second[..., 22 + dy, 22 + dx] = 1
    (where,) = correlation(first, second).nonzero()
    assert where.tolist() == [0, channel, 22, 22]


def test_gradient_of_the_correlation_is_that_of_finite_differences():
    torch.manual_seed(0)
    first, second = torch.randn(2, 1, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: correlation(a, b, 2, 1), (first, second))


def test_correlation_of_maps_in_channels_last_order_is_the_same():
    torch.manual_seed(0)
    first, second = torch.randn(2, 2, 6, 5, 7)
    other = [maps.contiguous(memory_format=torch.channels_last) for maps in (first, second)]
    torch.testing.assert_close(correlation(*other, 4, 2), correlation(first, second, 4, 2))


@pytest.mark.parametrize(
    ('factor', 'line'),
    [
        (1, [1.0]),
        (2, [0.25, 0.75, 0.75, 0.25]),
        (3, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]),
        (4, [0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125]),
    ],
)
def test_bilinear_kernel_is_that_of_caffe(factor, line):
    line = torch.tensor(line)
    torch.testing.assert_close(bilinear_kernel(factor), line[:, None] * line)


def test_eightfold_upsampling_has_kernel_16_stride_8_padding_4():
    layer = BilinearUpsampling(3, 8)
    assert (layer.kernel_size, layer.stride, layer.padding) == ((16, 16), (8, 8), (4, 4))
    assert layer.weight.shape == (3, 1, 16, 16)
    assert layer.bias is None


@pytest.mark.parametrize('factor', [2, 3, 4, 8])
def test_upsampling_multiplies_the_size(factor):
    assert BilinearUpsampling(2, factor)(torch.rand(1, 2, 3, 5)).shape == (
        1,
        2,
        3 * factor,
        5 * factor,
    )


def test_upsampling_interpolates_bilinearly_but_for_the_outer_four_pixels():
    torch.manual_seed(0)
    values = torch.rand(1, 3, 6, 7)
    larger = BilinearUpsampling(3, 8)(values)
    expected = F.interpolate(values, scale_factor=8, mode='bilinear', align_corners=False)
    torch.testing.assert_close(larger[..., 4:-4, 4:-4], expected[..., 4:-4, 4:-4])


def test_gain_of_upsampling_falls_off_in_the_outer_four_pixels():
    larger = BilinearUpsampling(1, 8)(torch.ones(1, 1, 5, 5))[0, 0]
    assert larger[20, 0].item() == 0.5625
    assert larger[0, 0].item() == 0.31640625
    assert (larger[4:-4, 4:-4] == 1).all()


def test_zoom_reads_row_h_at_h_over_the_factor():
    rows = torch.tensor([0.0, 8, 16])[:, None].expand(1, 1, 3, 2)
    zoomed = zoom(rows, 8)
    assert zoomed.shape == (1, 1, 24, 16)
    # Row h reads coarse row h / 8, whose value here is h; past the last row it stays 16.
    expected = torch.arange(24.0).clamp_max(16)[:, None].expand(24, 16)
    torch.testing.assert_close(zoomed[0, 0], expected)


@pytest.mark.parametrize('size', [(1, 1), (3, 5), (66, 66)])
def test_zoom_is_interpolation_between_corners_of_the_scores_with_their_last_ones_repeated(size):
    values = torch.rand(1, 2, *size, generator=torch.manual_seed(0))
    rows, columns = size
    padded = F.pad(values, (0, 1, 0, 1), mode='replicate')
    larger = F.interpolate(
        padded, (8 * rows + 1, 8 * columns + 1), mode='bilinear', align_corners=True
    )
    torch.testing.assert_close(zoom(values, 8), larger[..., : 8 * rows, : 8 * columns])


def test_crop_keeps_the_top_left():
    values = torch.arange(20.0).reshape(1, 1, 4, 5)
    cropped = crop_to(values, torch.zeros(1, 7, 2, 3))
    assert cropped[0, 0].tolist() == [[0, 1, 2], [5, 6, 7]]


def calls_of(function, *arguments):
    """Return a function's result, and the names of what it had torch do."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = function(*arguments)
    return result, {event.name for event in profile.events()}


FUSED = 'mkldnn::_convolution_pointwise'


@pytest.mark.parametrize('slope', [0.0, 0.1])
@pytest.mark.parametrize(
    'options',
    [{}, {'padding': 2, 'dilation': 2}, {'stride': 2, 'padding': (1, 0)}, {'bias': False}],
)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_an_inferred_convolution_is_rectified_in_one_pass_to_the_same_values(
    slope, options, memory_format
):
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 7, 3, **options).to(memory_format=memory_format)
    values = torch.randn(2, 5, 12, 9).to(memory_format=memory_format)
    with torch.inference_mode():
        found, calls = calls_of(rectified, layer, values, slope)
        expected = F.leaky_relu(layer(values), slope)
    assert FUSED in calls
    torch.testing.assert_close(found, expected)


def test_bfloat16_is_rectified_to_the_bit_as_in_two_passes():
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, 3, padding=1).bfloat16()
    values = torch.randn(1, 16, 20, 20).bfloat16()
    with torch.inference_mode():
        assert torch.equal(rectified(layer, values), torch.relu(layer(values)))


@pytest.mark.parametrize('slope', [0.0, 0.1])
def test_gradients_pass_through_a_rectified_convolution(slope):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, dtype=torch.float64)
    values = torch.randn(1, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: rectified(layer, given, slope), values)


def test_autocast_still_chooses_the_number_type():
    layer, values = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        assert rectified(layer, values).dtype == torch.bfloat16


def test_hooks_of_a_layer_see_what_it_gives_before_it_is_rectified():
    layer, values, seen = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), []
    layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.inference_mode():
        rectified(layer, values)
    assert len(seen) == 1
    assert seen[0].min() < 0


def test_a_layer_that_pads_by_reflection_is_rectified_too():
    torch.manual_seed(0)
    layer, values = nn.Conv2d(3, 4, 3, padding=1, padding_mode='reflect'), torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(rectified(layer, values), torch.relu(layer(values)))


@pytest.mark.parametrize('size', [(8, 12), (7, 12), (8, 5), (1, 1)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_max_pool_is_the_largest_of_each_four_with_or_without_gradients(size, dtype):
    values = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = F.max_pool2d(values, 2, ceil_mode=True)
    with torch.inference_mode():
        assert torch.equal(max_pool(values), expected)
    assert torch.equal(max_pool(values), expected)
