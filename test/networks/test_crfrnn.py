from dataclasses import replace

from dense_perception.errors import SettingError
from dense_perception.graphical.dense_crf import DenseCrf, DenseCrfSettings
from dense_perception.networks import NETWORKS
from dense_perception.networks.crfrnn import (
    CrfRnn,
    CrfRnnSettings,
    from_added_compatibility,
    WithCrfRnn,
)
from dense_perception.networks.frontend import SHAPES as FRONT_END_SHAPES
from dense_perception.weights.checkpoint import Card, load_weights, Preprocessing, save_weights
import pytest
import torch
from torch import nn

MATRICES = ('spatial_ker_weights', 'bilateral_ker_weights', 'compatibility_matrix')
# Broad enough that pixels of a small random image hear each other.
BROAD = CrfRnnSettings(bilateral_deviation=8, color_deviation=60, iterations=3)


def inputs(batch=1, classes=3, rows=7, columns=9, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(batch, classes, rows, columns, generator=generator, dtype=dtype)
    image = torch.rand(batch, 3, rows, columns, generator=generator, dtype=dtype) * 255
    return scores, image


def with_random_matrices(layer):
    generator = torch.Generator().manual_seed(2)
    for parameter in layer.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += noise.to(parameter)
    return layer.eval()


def filters(layer, scores, image):
    """The layer's normalised kernels as matrices over pixels, (H W, H W)."""
    pixels = scores.shape[1] * scores.shape[2]
    unit = torch.eye(pixels, dtype=scores.dtype).reshape(pixels, *scores.shape[1:])
    return [kernel.filter(unit).flatten(1).T for kernel in layer._kernels(scores, image)]


def test_layer_has_three_matrices_under_their_published_names():
    state = CrfRnn(21).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == dict.fromkeys(
        MATRICES, (21, 21)
    )
    assert sum(value.numel() for value in state.values()) == 3 * 21**2


def test_matrices_start_as_multiples_of_the_identity():
    state = CrfRnn(4).state_dict()
    for name, factor in zip(MATRICES, (3, 5, -1), strict=True):
        assert torch.equal(state[name], factor * torch.eye(4))


def test_layer_follows_the_equations_written_with_matrices():
    layer = with_random_matrices(CrfRnn(3, BROAD)).double()
    scores, image = inputs(dtype=torch.float64)
    spatial, bilateral = filters(layer, scores[0], image[0])
    weights = [layer.get_parameter(name) for name in MATRICES]
    unary = current = scores[0].flatten(1)  # (C, H W)
    for _ in range(BROAD.iterations):
        marginals = current.softmax(0)
        message = weights[0] @ marginals @ spatial.T + weights[1] @ marginals @ bilateral.T
        current = unary - weights[2] @ message
    torch.testing.assert_close(layer(scores, image)[0].flatten(1), current)


def test_filters_are_divided_by_their_sums():
    layer = CrfRnn(3, BROAD)
    scores, image = inputs()
    for matrix in filters(layer, scores[0], image[0]):
        torch.testing.assert_close(matrix.sum(1), torch.ones(63))


def test_subtracted_and_added_compatibility_agree_exactly():
    scores, image = inputs()
    subtracting = with_random_matrices(CrfRnn(3, BROAD))
    ported = {**subtracting.state_dict()}
    ported['compatibility_matrix'] = -ported['compatibility_matrix']  # a port adds
    spatial, bilateral = subtracting._kernels(scores[0], image[0])
    current = scores[0]
    for _ in range(BROAD.iterations):
        marginals = current.softmax(0)
        message = torch.tensordot(ported[MATRICES[0]], spatial.filter(marginals), 1)
        message = message + torch.tensordot(ported[MATRICES[1]], bilateral.filter(marginals), 1)
        current = scores[0] + torch.tensordot(ported[MATRICES[2]], message, 1)
    imported = CrfRnn(3, BROAD).eval()
    imported.load_state_dict(from_added_compatibility(ported))
    assert torch.equal(imported(scores, image)[0], current)
    assert torch.equal(imported(scores, image), subtracting(scores, image))


def test_import_negates_the_compatibility_of_a_whole_network_and_nothing_else():
    added = {'conv1_1.weight': torch.ones(2), 'crfrnn.compatibility_matrix': torch.eye(2)}
    state = from_added_compatibility(added)
    assert torch.equal(state['conv1_1.weight'], torch.ones(2))
    assert torch.equal(state['crfrnn.compatibility_matrix'], -torch.eye(2))


def test_untrained_layer_is_the_dense_crf_normalised_after_filtering():
    scores, image = inputs(rows=20, columns=30)
    settings = DenseCrfSettings(
        spatial_weight=3,
        spatial_deviation=3,
        bilateral_weight=5,
        bilateral_deviation=160,
        color_deviation=3,
        iterations=10,
        normalization='after',
    )
    expected = DenseCrf(image[0], settings).infer(-scores[0])
    refined = CrfRnn(3).eval()(scores, image)
    torch.testing.assert_close(refined.softmax(1)[0], expected)


def test_layer_updates_five_times_in_training_and_ten_times_after():
    scores, image = inputs()
    layer = CrfRnn(3)
    five = CrfRnn(3, CrfRnnSettings(iterations=5)).eval()
    ten = CrfRnn(3, CrfRnnSettings(iterations=10)).eval()
    assert torch.equal(layer.train()(scores, image), five(scores, image))
    assert torch.equal(layer.eval()(scores, image), ten(scores, image))
    assert not torch.equal(five(scores, image), ten(scores, image))


def test_gradients_of_matrices_and_scores_are_those_of_finite_differences():
    layer = with_random_matrices(CrfRnn(2, BROAD)).double()
    scores, image = inputs(classes=2, rows=3, columns=4, dtype=torch.float64)
    scores.requires_grad_()

    def refined(scores, *matrices):
        state = dict(zip(MATRICES, matrices, strict=True))
        return torch.func.functional_call(layer, state, (scores, image))

    values = (scores, *(layer.get_parameter(name).detach() for name in MATRICES))
    assert torch.autograd.gradcheck(refined, [value.requires_grad_() for value in values])


def test_each_image_of_a_batch_is_refined_by_itself():
    scores, image = inputs(batch=2)
    layer = CrfRnn(3, BROAD).eval()
    together = layer(scores, image)
    assert torch.equal(together[1:], layer(scores[1:], image[1:]))


def test_subtracting_a_mean_colour_hardly_changes_the_result():
    scores, image = inputs()
    layer = CrfRnn(3, BROAD).eval()
    mean = torch.tensor([104.0, 117.0, 123.0])[:, None, None]
    change = layer(scores, image - mean).softmax(1) - layer(scores, image).softmax(1)
    assert change.abs().mean() < 0.02  # the lattice lies elsewhere


def test_scores_of_another_size_are_refused():
    scores, image = inputs()
    with pytest.raises(ValueError, match='rows and columns must be equal'):
        CrfRnn(3)(scores[..., 1:], image)


def small_network(color_scale=255):
    """Score each class by one colour."""
    convolution = nn.Conv2d(3, 3, 1)
    nn.init.zeros_(convolution.bias)
    convolution.weight.data = torch.eye(3)[:, :, None, None]
    return WithCrfRnn(convolution, 3, color_scale=color_scale, settings=BROAD)


def test_network_with_the_layer_sees_colours_in_their_full_range():
    _, image = inputs()
    network = small_network().eval()
    plain = network.network(image / 255)
    refined = network(image / 255)
    torch.testing.assert_close(refined, network.crfrnn(plain, image), atol=1e-3, rtol=0)
    assert not torch.allclose(refined, small_network(color_scale=1).eval()(image / 255), atol=0.1)


def test_loss_reaches_every_parameter_of_the_layer_and_of_the_network_below_it():
    _, image = inputs()
    network = small_network()
    truth = image[:, 0].gt(128).long()
    nn.functional.cross_entropy(network(image / 255), truth).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_layer_in_half_precision_computes_in_full_precision():
    scores, image = (values.bfloat16() for values in inputs())
    layer = CrfRnn(3, BROAD).eval()
    expected = layer(scores.float(), image.float())
    assert torch.equal(layer.bfloat16()(scores, image), expected)


def test_scores_of_eight_pixels_are_interpolated_to_the_pixels_before_they_are_refined():
    torch.manual_seed(0)
    network = NETWORKS['crf_rnn'](
        classes=3, network='front_end', width='compact', settings={'iterations': 0}
    ).eval()
    image = torch.randn(1, 3, 21, 30)
    scores = network.network(image)
    assert scores.shape == (1, 3, 3, 4)
    larger = nn.functional.interpolate(scores, scale_factor=8.0, mode='bilinear')
    assert torch.equal(network(image), larger[:, :, :21, :30])


def test_margin_of_the_network_below_is_cut_off_before_pixels_are_compared(monkeypatch):
    shape = replace(FRONT_END_SHAPES['full'], widths=(2, 2, 2, 2, 2), fc_width=4)
    monkeypatch.setitem(FRONT_END_SHAPES, 'thin', shape)
    network = NETWORKS['crf_rnn'](classes=3, network='front_end', width='thin').eval()
    assert network.margin == 186
    assert network(torch.randn(1, 3, 20 + 372, 25 + 372)).shape == (1, 3, 20, 25)


def test_trained_layer_is_saved_and_loaded_with_its_network_and_its_settings(tmp_path):
    torch.manual_seed(0)
    arguments = {
        'classes': 11,
        'network': 'fcn8s',
        'width': 'compact',
        'color_scale': 57.375,
        'settings': {'iterations': 2, 'bilateral_deviation': 40.0},
    }
    card = Card('crf_rnn', arguments, Preprocessing(), 'camvid')
    network = with_random_matrices(card.build().crfrnn)
    whole = card.build()
    whole.crfrnn.load_state_dict(network.state_dict())
    save_weights(tmp_path / 'a.safetensors', whole, card, torch.float32)
    loaded, read = load_weights(tmp_path / 'a.safetensors')
    assert read == card
    assert (loaded.crfrnn.settings.iterations, loaded.crfrnn.settings.color_deviation) == (2, 3.0)
    for name in MATRICES:
        assert torch.equal(getattr(loaded.crfrnn, name), getattr(network, name))
    image = torch.randn(1, 3, 20, 30)
    assert torch.equal(loaded(image), whole.eval()(image))


def test_settings_of_the_layer_that_do_not_exist_are_refused():
    with pytest.raises(SettingError, match='settings of the CRF-RNN: unknown iteration;'):
        NETWORKS['crf_rnn'](classes=3, width='compact', settings={'iteration': 2})
