from dense_perception.networks.context import ContextModule, FrontEndContext
from dense_perception.networks.frontend import receptive_field
import pytest
import torch


def parameters(network):
    return sum(value.numel() for value in network.parameters())


@pytest.mark.parametrize(
    ('classes', 'layers', 'count'),
    [(11, 7, 6_732), (11, 8, 7_832), (21, 8, 28_392), (19, 10, 29_792)],
)
def test_basic_module_has_the_published_parameters(classes, layers, count):
    assert parameters(ContextModule(classes, layers=layers)) == count


@pytest.mark.parametrize(('classes', 'count'), [(11, 1_867_129), (19, 5_569_185), (21, 6_803_139)])
def test_large_module_has_the_published_parameters(classes, count):
    assert parameters(ContextModule(classes, large=True)) == count


@pytest.mark.parametrize(
    ('classes', 'layers', 'large', 'count'),
    [
        (11, 7, False, 134_312_343),  # KITTI
        (11, 8, False, 134_313_443),  # CamVid
        (19, 10, False, 134_368_179),  # Cityscapes
        (21, 8, True, 141_149_720),  # Pascal VOC
    ],
)
def test_front_end_with_context_has_the_published_parameters(classes, layers, large, count):
    with torch.device('meta'):
        network = FrontEndContext(classes, layers=layers, large=large)
    assert parameters(network) == count


@pytest.mark.parametrize(('layers', 'field'), [(7, 35), (8, 67), (10, 259)])
def test_basic_module_sees_as_many_scores_as_published(layers, field):
    module = ContextModule(1, layers=layers)
    for parameter in module.parameters():
        torch.nn.init.ones_(parameter)
    middle = field // 2 + 2
    scores = torch.zeros(1, 1, field + 4, field + 4, requires_grad=True)
    module(scores)[0, 0, middle, middle].backward()
    touched = scores.grad[0, 0] != 0
    expected = torch.zeros_like(touched)
    expected[2:-2, 2:-2] = True
    assert torch.equal(touched, expected)


def fields(module):
    """Scores that each layer of the module sees, one after the other."""
    field, found = 1, []
    for layer in (*module.layers, module.final):
        assert layer.stride == (1, 1)
        field += layer.dilation[0] * (layer.kernel_size[0] - 1)
        found.append(field)
    return found


@pytest.mark.parametrize('large', [False, True])
@pytest.mark.parametrize('pad_once', [False, True])
def test_each_layer_of_the_module_sees_as_many_scores_as_published(large, pad_once):
    module = ContextModule(2, large=large, pad_once=pad_once)
    assert fields(module) == [3, 5, 9, 17, 33, 65, 67, 67]


@pytest.mark.parametrize(
    ('layers', 'scores', 'pixels'), [(7, 35, 652), (8, 67, 908), (10, 259, 2444)]
)
def test_front_end_with_context_sees_as_many_pixels_as_published(layers, scores, pixels):
    with torch.device('meta'):
        network = FrontEndContext(19, layers=layers)
    field = fields(network.context)[-1]
    assert field == scores
    assert receptive_field(network.front_end) + network.stride * (field - 1) == pixels


def test_pascal_voc_module_pads_once_and_shrinks_back_to_66_scores():
    module = ContextModule(3, pad_once=True)
    sizes = []
    for layer in (*module.layers, module.final):
        layer.register_forward_hook(lambda _, __, output: sizes.append(output.shape[2:]))
    module(torch.zeros(1, 3, 66, 66))
    assert sizes == [(size, size) for size in (130, 128, 124, 116, 100, 68, 66, 66)]


@pytest.mark.parametrize('layers', [7, 8, 10])
def test_module_that_pads_each_layer_keeps_the_size_throughout(layers):
    module = ContextModule(2, layers=layers)
    sizes = set()
    for layer in (*module.layers, module.final):
        layer.register_forward_hook(lambda _, __, output: sizes.add(output.shape[2:]))
    module(torch.zeros(1, 2, 13, 9))
    assert sizes == {(13, 9)}


@pytest.mark.parametrize('pad_once', [False, True])
@pytest.mark.parametrize('layers', [7, 8, 10])
def test_basic_module_starts_as_the_identity_on_scores_that_are_not_negative(layers, pad_once):
    scores = torch.rand(2, 5, 11, 14) * 10
    module = ContextModule(5, layers=layers, pad_once=pad_once, noise=0)
    assert torch.equal(module(scores), scores)  # the borders too


@pytest.mark.parametrize('pad_once', [False, True])
def test_large_module_starts_as_the_identity_on_scores_that_are_not_negative(pad_once):
    scores = torch.rand(1, 5, 11, 14) * 10
    module = ContextModule(5, large=True, pad_once=pad_once, noise=0)
    torch.testing.assert_close(module(scores), scores, rtol=0, atol=1e-5)


def test_layers_of_the_large_module_are_no_identities_by_themselves():
    # Equation 5: C / c_out at the centre; 2C channels to 4C halve what they take.
    layer = ContextModule(3, large=True, noise=0).layers[2]
    centre = layer.weight[:, :, 1, 1]
    assert centre.shape == (12, 6)
    assert set(centre.unique().tolist()) == {0.0, 0.25}
    assert torch.equal((centre != 0).sum(1), torch.full((12,), 2))


@pytest.mark.parametrize('large', [False, True])
def test_module_starts_by_cutting_off_negative_scores(large):
    scores = torch.randn(1, 4, 9, 9)
    module = ContextModule(4, large=large, noise=0)
    torch.testing.assert_close(module(scores), scores.clamp_min(0), rtol=0, atol=1e-5)


def test_the_two_ways_of_padding_differ_near_the_border_only():
    torch.manual_seed(0)
    each = ContextModule(3, noise=0.1)
    once = ContextModule(3, pad_once=True)
    once.load_state_dict(each.state_dict())
    for layer in (*each.layers, *once.layers):
        torch.nn.init.constant_(layer.bias, 0.1)  # what lies beyond the border becomes non-zero
    scores = torch.rand(1, 3, 100, 100)
    difference = (each(scores) - once(scores)).abs().amax((0, 1))
    assert difference[0].max() > 1e-3
    assert difference[33:-33, 33:-33].max() < 1e-5


def test_large_module_has_no_other_depth_than_eight():
    with pytest.raises(ValueError, match='8 layers, not 10'):
        ContextModule(3, layers=10, large=True)


def test_no_relu_stands_between_front_end_and_context():
    torch.manual_seed(0)
    network = FrontEndContext(3, width='compact').eval()
    image = torch.randn(1, 3, 24, 40)
    torch.nn.init.normal_(network.front_end.final.weight)
    scores = network.front_end(image)
    assert (scores < 0).any()
    first = network.context.layers[0]
    seen = []
    first.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    assert network(image).shape == (1, 3, 3, 5)
    assert torch.equal(seen[0], scores)


@pytest.mark.parametrize(
    'arguments', [{'layers': 7}, {'large': True}, {'layers': 8, 'pad_once': True}]
)
def test_gradients_of_scores_and_weights_are_those_of_finite_differences(arguments):
    torch.manual_seed(0)
    module = ContextModule(1, noise=0.1, **arguments).double()
    for layer in (*module.layers, module.final):  # 0 in padded places is where ReLU bends
        torch.nn.init.uniform_(layer.bias, 0.1, 0.2)
    scores = torch.rand(1, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def refined(scores, *values):
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(module, state, (scores,))

    values = [value.detach().requires_grad_() for value in module.parameters()]
    # Of the large module thousands of weights: one random direction through all of them.
    assert torch.autograd.gradcheck(refined, (scores, *values), fast_mode='large' in arguments)
