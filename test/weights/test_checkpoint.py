from dataclasses import asdict, replace
import gc
import json
import math
import pickle
import resource
import struct
import sys
import tracemalloc

from dense_perception.cli.import_weights import main
from dense_perception.errors import WeightsError
from dense_perception.networks.context import FrontEndContext
from dense_perception.networks.flownet import FlowNetSimple
from dense_perception.weights.checkpoint import (
    Card,
    fill,
    load_weights,
    Preprocessing,
    read_card,
    save_weights,
)
import pytest
from safetensors.torch import load_file, save_file
import torch

FLOW = Card(
    'flownet_simple',
    {'width': 1 / 16, 'batch_norm': True},
    Preprocessing('bgr', (1.0, 2.0, 3.0), 255.0),
    notes={'recipe': {'steps': 3}, 'scores': {'epe': 1.5}},
)
LABELS = Card(
    'front_end_context',
    {'classes': 11, 'width': 'compact', 'layers': 7},
    Preprocessing(),
    'camvid',
    upsampling='zoom',
)


@pytest.fixture
def file(tmp_path):
    """Return a good weights file, to be damaged."""
    torch.manual_seed(0)
    path = tmp_path / 'flow.safetensors'
    save_weights(path, FLOW.build(), FLOW)
    return path


def write_card(path, text):
    save_file({'a': torch.zeros(1)}, path, metadata={'dense_perception': text})


def card_text(**changes):
    values = {'network': 'flownet_simple', 'arguments': {}, 'preprocessing': {}, **changes}
    return json.dumps({name: value for name, value in values.items() if value is not None})


@pytest.mark.parametrize('card', [FLOW, LABELS])
def test_weights_saved_as_float32_come_back_bit_by_bit(tmp_path, card):
    network = card.build()
    path = tmp_path / 'new' / 'a.safetensors'
    save_weights(path, network, card, torch.float32)
    loaded, loaded_card = load_weights(path)
    assert type(loaded) is type(network)
    assert loaded_card == card
    state = loaded.state_dict()
    assert set(state) == set(network.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(state[name], value), name


def test_weights_are_stored_as_float16_and_loaded_as_float32(file):
    stored, (loaded, _) = load_file(file), load_weights(file)
    assert stored['conv1.0.weight'].dtype == torch.float16
    assert stored['conv1.1.num_batches_tracked'].dtype == torch.int64
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, stored[name].to(value.dtype)), name
    assert loaded.conv1[0].weight.dtype == torch.float32


def test_loaded_network_is_ready_for_inference(file):
    network, _ = load_weights(file)
    assert not any(module.training for module in network.modules())


def test_loading_again_and_again_leaves_nothing_behind(file):
    def load(times):
        for _ in range(times):
            load_weights(file)
        gc.collect()
        return sys.getallocatedblocks()

    before = load(3)  # what is made once is made by then
    assert load(20) - before < 20 * len(load_file(file))  # less than one for each tensor


def test_card_can_be_read_by_itself(file):
    assert read_card(file) == FLOW


def test_card_names_the_label_set_of_a_segmentation_network():
    assert LABELS.labels().names[3] == 'road'
    with pytest.raises(WeightsError, match="label set is ''; known are cityscapes, camvid"):
        FLOW.labels()


def test_saving_leaves_no_partial_file_behind(file):
    assert [path.name for path in file.parent.iterdir()] == ['flow.safetensors']


def test_every_missing_extra_and_misshapen_name_is_told_at_once():
    network = FlowNetSimple(width=1 / 16)
    tensors = dict(network.state_dict())
    del tensors['conv4.0.weight'], tensors['conv6.0.bias']
    tensors |= {'conv9.0.weight': torch.zeros(1), 'conv1.0.bias': torch.zeros(5)}
    with pytest.raises(WeightsError) as caught:
        fill(network, tensors, 'a.safetensors')
    assert str(caught.value) == (
        'a.safetensors does not fit FlowNetSimple: missing conv4.0.weight; missing conv6.0.bias; '
        'extra conv9.0.weight; conv1.0.bias is (5,), not (4,)'
    )


def test_network_that_does_not_fit_is_left_as_it_was():
    network = FlowNetSimple(width=1 / 16)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tensors = {name: torch.zeros_like(value) for name, value in before.items()}
    del tensors['refinement.predict_flow2.weight']
    with pytest.raises(WeightsError):
        fill(network, tensors, 'a')
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_file_of_another_network_is_refused_with_all_that_differs(tmp_path):
    path = tmp_path / 'a.safetensors'
    save_weights(path, FlowNetSimple(width=1 / 16), FLOW)  # the card says batch_norm
    with pytest.raises(WeightsError, match='a.safetensors does not fit') as caught:
        load_weights(path)
    assert 'missing conv1.1.running_mean' in str(caught.value)
    assert 'extra conv1.0.bias' in str(caught.value)


@pytest.mark.parametrize('keep', [0, 1, 7, 8, 9, 100, 5000, -1])
def test_truncated_file_is_refused_by_name(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsError, match='flow.safetensors: '):
        load_weights(file)


@pytest.mark.parametrize('size', [0, 1, 9_999_999, 2**40, 2**63, 2**64 - 1])
def test_file_with_a_wrong_header_size_is_refused_by_name(file, size):
    file.write_bytes(struct.pack('<Q', size) + file.read_bytes()[8:])
    with pytest.raises(WeightsError, match='flow.safetensors: '):
        load_weights(file)


@pytest.mark.parametrize('seed', range(5))
def test_random_bytes_are_refused_by_name(tmp_path, seed):
    path = tmp_path / 'a.safetensors'
    content = torch.randint(256, (4000,), generator=torch.Generator().manual_seed(seed))
    path.write_bytes(bytes(content.tolist()))
    with pytest.raises(WeightsError, match='a.safetensors: '):
        load_weights(path)


@pytest.mark.parametrize('seed', range(5))
def test_header_with_random_bytes_in_it_never_raises_another_error(file, seed):
    content = bytearray(file.read_bytes())
    places = torch.randint(8, 3000, (3,), generator=torch.Generator().manual_seed(seed))
    for place in places.tolist():
        content[place] ^= 0x55
    file.write_bytes(content)
    with pytest.raises(WeightsError, match='flow.safetensors'):
        load_weights(file)


def test_pickle_is_refused_and_never_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / 'written'), 'w'))

    path = tmp_path / 'a.safetensors'
    for write in (pickle.dump, torch.save):
        with path.open('wb') as file:
            write(Harmful(), file)
        with pytest.raises(WeightsError, match='a.safetensors: '):
            load_weights(path)
    assert not (tmp_path / 'written').exists()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match='none.safetensors: cannot be read: No such file'):
        load_weights(tmp_path / 'none.safetensors')


def test_folder_is_no_file(tmp_path):
    with pytest.raises(WeightsError, match='cannot be read: Is a directory'):
        load_weights(tmp_path)


def test_safetensors_file_of_another_origin_has_no_card(tmp_path):
    path = tmp_path / 'a.safetensors'
    save_file({'a': torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match='a.safetensors: no card in it'):
        load_weights(path)


# Each asks for more than Python or torch can give, or for much time and memory.
EXCESSIVE_CARDS = [
    pytest.param(text, id=name)
    for name, text in {
        'nested': '[' * 200_000,
        'nested notes': card_text().replace(
            '}}', '}, "notes": {"a": ' + '[' * 90 + ']' * 90 + '}}'
        ),
        'nested network': card_text().replace('"flownet_simple"', '[' * 90 + ']' * 90),
        'infinite width': card_text(arguments={'width': math.inf}),
        'mean': card_text(preprocessing={'mean': [10**400, 0, 0]}),
        'second mean': card_text(preprocessing={'second_mean': [0, 0, -(10**400)]}),
        'scale': card_text(preprocessing={'scale': 10**400}),
        'setting': card_text(
            network='super_parsing', arguments={'classes': 11, 'settings': {'slope': 'x'}}
        ),
        'settings': card_text(
            network='super_parsing', arguments={'classes': 11, 'settings': ['slope']}
        ),
        'classes': card_text(network='fcn8s', arguments={'classes': 2**40}),
        'classes beyond 64 bits': card_text(network='fcn8s', arguments={'classes': 10**400}),
        'hidden layers': card_text(
            network='zoom_out', arguments={'classes': 11, 'hidden_layers': 100_000}
        ),
        'tile': card_text(tile=[10**9, 10**9]),
    }.items()
]


@pytest.mark.parametrize(
    'text',
    [
        *EXCESSIVE_CARDS,
        'no json',
        '[]',
        '5',
        '{}',
        card_text(preprocessing=None),
        card_text(network=None),
        card_text(author='x'),
        card_text(preprocessing={'order': 'gbr'}),
        card_text(preprocessing={'scale': 0}),
        card_text(preprocessing={'scale': float('nan')}),
        card_text(preprocessing={'scale': 'x'}),
        card_text(preprocessing={'mean': [1, 2]}),
        card_text(preprocessing={'mean': ['a', 'b', 'c']}),
        card_text(preprocessing=[1]),
        card_text(upsampling='cubic'),
        card_text(network=['flownet_simple']),
        card_text(network='flownet_3'),
        card_text(arguments=5),
        card_text(arguments={'depth': 3}),
        card_text(arguments={'width': 'wide'}),
        card_text(arguments={'width': -1}),
        card_text(network='front_end', arguments={}),
        card_text(network='front_end', arguments={'classes': 'x', 'width': 'compact'}),
        card_text(network='front_end', arguments={'classes': 3, 'width': 'wide'}),
        card_text(network='front_end_context', arguments={'classes': 3, 'layers': 9}),
        card_text(label_set='ade20k'),
        card_text(label_set=['camvid']),
        card_text(arguments=5, label_set='camvid'),
        card_text(notes=['recipe']),
    ],
)
def test_bad_card_is_refused_by_the_file_s_name(tmp_path, text):
    path = tmp_path / 'a.safetensors'
    write_card(path, text)
    with pytest.raises(WeightsError, match='a.safetensors'):
        load_weights(path)


@pytest.mark.parametrize('text', EXCESSIVE_CARDS)
def test_excessive_card_is_refused_before_memory_is_taken(tmp_path, text):
    path = tmp_path / 'a.safetensors'
    write_card(path, text)
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError):
            load_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize('text', EXCESSIVE_CARDS)
def test_command_tells_in_one_line_why_an_excessive_card_is_refused(tmp_path, capsys, text):
    path = tmp_path / 'a.safetensors'
    write_card(path, text)
    assert main(['info', str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'import_weights: {path}: ')
    assert error.count('\n') == 1
    assert len(error) < len(str(path)) + 500


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'preprocessing': {'mean': [10**400, 0, 0]}}, 'mean is .*; it must be three numbers'),
        ({'preprocessing': {'scale': 10**400}}, 'scale is .*; it must be above 0'),
        ({'notes': {'a': json.loads('[' * 21 + ']' * 21)}}, 'lie more than 20 deep in each other'),
        ({'tile': [9000, 100]}, r'tile is \(9000, 100\); .* pixels, 1 to 8192'),
        (
            {'network': 'zoom_out', 'arguments': {'classes': 3, 'hidden_layers': -1}},
            'hidden_layers is -1; it must be 0 to 8',
        ),
        (
            {'network': 'zoom_out', 'arguments': {'classes': 3, 'hidden_layers': 9}},
            'hidden_layers is 9; it must be 0 to 8',
        ),
        (
            {'network': 'super_parsing', 'arguments': {'classes': 3, 'settings': {'slope': 0}}},
            'super_parsing cannot be built: settings: slope is 0',
        ),
    ],
    ids=['mean', 'scale', 'nested', 'tile', 'too few layers', 'too many layers', 'setting'],
)
def test_message_of_a_bad_card_says_what_would_be_right(tmp_path, changes, message):
    path = tmp_path / 'a.safetensors'
    write_card(path, card_text(**changes))
    with pytest.raises(WeightsError, match=f'a.safetensors: .*{message}'):
        load_weights(path)


def test_unknown_network_is_refused_with_the_known_ones(tmp_path):
    path = tmp_path / 'a.safetensors'
    save_weights(path, FLOW.build(), replace(FLOW, network='flownet_3'))
    with pytest.raises(WeightsError, match="a.safetensors: network is 'flownet_3'; known are"):
        load_weights(path)


def test_classes_of_a_segmentation_network_must_be_as_many_as_its_label_set_has(tmp_path):
    network = FrontEndContext(11, width='compact', layers=7)
    path = tmp_path / 'a.safetensors'
    save_weights(path, network, replace(LABELS, label_set='cityscapes'))
    with pytest.raises(WeightsError, match='a.safetensors: .*11.*cityscapes.*19'):
        load_weights(path)


def test_preprocessing_of_two_images_may_have_two_means():
    preprocessing = Preprocessing('bgr', (1.0, 2.0, 3.0), 1.0, (4.0, 5.0, 6.0))
    means = preprocessing.mean_of(torch.zeros(2, 3, 4, 4))
    assert means[..., 0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert preprocessing.mean_of(torch.zeros(1, 3, 4, 4))[..., 0, 0].tolist() == [[1, 2, 3]]


def test_own_mean_is_that_of_both_images_in_each_channel():
    images = torch.arange(24.0).reshape(2, 3, 2, 2)
    means = Preprocessing(own_mean=True).mean_of(images)
    assert means.flatten().tolist() == [7.5, 11.5, 15.5]  # of 0 ... 3 and 12 ... 15, and so on


def test_tile_and_means_come_back_from_the_file(tmp_path):
    preprocessing = Preprocessing('bgr', second_mean=(4.0, 5.0, 6.0), own_mean=True)
    card = replace(LABELS, tile=(900, 1100), preprocessing=preprocessing)
    save_weights(tmp_path / 'a.safetensors', card.build(), card)
    assert read_card(tmp_path / 'a.safetensors') == card


@pytest.mark.parametrize(
    'tile', [(900,), (900, 0), (900, 1.5), (1, 2, 3), (900, True), (900, 8193)]
)
def test_tile_must_be_two_numbers_of_pixels(tile):
    with pytest.raises(WeightsError, match='it must be two numbers of pixels'):
        replace(LABELS, tile=tile)


def test_tile_may_be_as_large_as_the_largest_picture():
    assert replace(LABELS, tile=(8192, 8192)).tile == (8192, 8192)


def test_card_that_asks_for_gigabytes_is_refused_before_they_are_taken(tmp_path):
    path = tmp_path / 'a.safetensors'
    save_weights(path, FlowNetSimple(width=1 / 32), FLOW)
    save_file(
        load_file(path),
        path,
        {'dense_perception': json.dumps(asdict(replace(FLOW, arguments={'width': 40.0})))},
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(WeightsError, match='does not fit FlowNetSimple'):
        load_weights(path)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
