from contextlib import redirect_stdout
import csv
import io
import sys

from dense_perception.cli.bench import main
from dense_perception.evaluation.engine_rates import Product, usual_engines
from dense_perception.evaluation.stages import ImageSize
import numpy as np
import pytest
import torch

STAGES = [
    'labels: preprocess',
    'labels: network, cpu',
    'labels: scores to labels',
    'labels: scores to labels and confidence',
    'flow: preprocess',
    'flow: network, cpu',
    'flow: upscale',
    'image to labels',
    'image to labels and confidence',
    'images to flow',
]
NETWORKS = [
    'matrix product',
    'plain torch-float32',
    'torch-float32',
    'torch-bfloat16',
    'OpenCV dnn-float32',
]
FLOWS = ['flow, cpu', 'flow_corr, cpu', 'OpenCV DIS', 'OpenCV Farneback']
QUICK = ('--size', '64x48', '--device', 'cpu', '--seconds', '0.01')


@pytest.fixture(scope='module')
def bench(tmp_path_factory):
    """Return the rows of a run, as they are written, and what it printed."""
    path = tmp_path_factory.mktemp('bench') / 'table.csv'
    # The last one needs another device.
    engines = ('torch-float32', 'torch-bfloat16', 'graph-float16')
    with redirect_stdout(io.StringIO()) as printed:
        assert main([*QUICK, '--engines', *engines, '--out', str(path)]) == 0
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file)), printed.getvalue()


def row(rows, what):
    return next(one for one in rows if one['what'].startswith(what))


@pytest.mark.parametrize(
    ('group', 'expected'),
    [
        ('stages', STAGES),
        ('labelling network', NETWORKS),
        ('flow network', NETWORKS),
        ('flow', FLOWS),
    ],
)
def test_every_stage_engine_and_peer_has_a_positive_time(bench, group, expected):
    rows = [one for one in bench[0] if one['group'] == group]
    for what in expected:
        found = row(rows, what)
        assert float(found['p50 ms']) > 0
        assert int(found['calls']) >= 3


def test_a_p99_stands_where_there_are_twenty_calls(bench):
    assert {int(one['calls']) for one in bench[0]} & set(range(3, 20))
    for one in bench[0]:
        if int(one['calls']) < 20:
            assert one['p99 ms'] == ''
        else:
            assert float(one['p99 ms']) >= float(one['p50 ms'])


def test_the_table_has_these_columns(bench):
    assert list(bench[0][0]) == [
        'input',
        'group',
        'what',
        'p50 ms',
        'p99 ms',
        'calls',
        'per s',
        'GMAC/s',
        'of product',
        'x plain',
        'equal',
        'device MiB',
        'process MiB',
        'device',
    ]


def test_each_row_names_its_input_its_memory_and_the_machine(bench):
    for one in bench[0]:
        assert one['input'] == '64x48'
        assert float(one['process MiB']) > 50  # torch alone takes more
        assert f'torch {torch.__version__}' in one['device']


def test_the_network_of_64x48_pixels_has_its_multiply_accumulates(bench):
    for what in ('plain torch-float32', 'torch-float32', 'labels: network'):
        found = row(bench[0], what)
        gigamacs = float(found['GMAC/s']) * float(found['p50 ms']) / 1000
        assert gigamacs == pytest.approx(0.1088, rel=0.05)


def test_an_engine_is_compared_with_plain_torch_and_the_product_of_its_number_type(bench):
    found, plain = row(bench[0], 'torch-bfloat16'), row(bench[0], 'plain torch-float32')
    speed = float(plain['p50 ms']) / float(found['p50 ms'])
    assert float(found['x plain']) == pytest.approx(speed, abs=0.02)
    turns = [one for one in bench[0] if one['group'] == 'labelling network']
    products = [one for one in turns if one['what'].startswith('matrix product')]
    (product,) = (one for one in products if one['what'].endswith('bfloat16'))
    share = float(found['GMAC/s']) / float(product['GMAC/s'])
    assert float(found['of product']) == pytest.approx(share, abs=0.01)


def test_float32_gives_the_same_labels_everywhere(bench):
    for what in ('plain torch-float32', 'torch-float32', 'OpenCV dnn-float32'):
        assert float(row(bench[0], what)['equal']) > 0.995


def test_an_engine_of_another_device_is_told_and_left_out(bench):
    rows, printed = bench
    assert 'graph-float16 runs on a cuda device, not on cpu' in printed
    assert not [one for one in rows if one['what'] == 'graph-float16']


@pytest.mark.ros
def test_messages_are_timed_where_there_is_ros(bench):
    for what in ('receive rgb8', 'decode bayer_rggb8', 'encode flow', 'serialise labels'):
        assert float(row(bench[0], what)['p50 ms']) > 0


@pytest.mark.ros
def test_a_plain_picture_is_received_and_decoded_from_both_encodings():
    from dense_perception.ros.message_stages import incoming

    image = np.full((6, 8, 3), (200, 100, 50), np.uint8)
    calls = incoming(image)
    for encoding in ('rgb8', 'bayer_rggb8'):
        assert calls[f'receive {encoding}'](0).encoding == encoding
        np.testing.assert_array_equal(calls[f'decode {encoding}'](0), image)


@pytest.mark.ros
def test_results_become_the_bytes_of_their_messages():
    from dense_perception.ros.message_stages import outgoing

    calls = outgoing(np.full((6, 8, 3), 7, np.uint8))
    assert calls['encode labels'](0).encoding == 'mono8'
    assert calls['encode flow'](0).encoding == '32FC2'
    assert len(calls['serialise labels'](0)) > 6 * 8
    assert len(calls['serialise flow'](0)) > 6 * 8 * 2 * 4


def test_without_ros_everything_else_is_timed_and_no_engines_are_a_choice(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, 'dense_perception.ros.message_stages', None)
    monkeypatch.chdir(tmp_path)
    assert main([*QUICK, '--engines', 'none']) == 0
    assert 'no ROS 2 here, so messages are not timed' in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    assert path.name.startswith('bench_')
    assert path.name.endswith(f'_torch{torch.__version__.replace("+", "_")}.csv')
    with path.open(newline='', encoding='utf-8') as file:
        names = [one['what'] for one in csv.DictReader(file)]
    assert 'plain torch-float32' in names
    assert not [name for name in names if name.startswith(('receive', 'serialise', 'torch-'))]


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        (('--size', '0x480'), 'size is 0x480; each side must be 32 pixels or more'),
        (('--size', '480'), "size is '480'; it must be WIDTHxHEIGHT, such as 480x360"),
        (('--size', '-64x48'), "size is '-64x48'; it must be WIDTHxHEIGHT"),
        (('--size', '100000x1000'), 'size is 100000x1000; at most 67108864 pixels are taken'),
        (('--engines', 'magic'), "engine is 'magic'; it must be some of torch-float32, "),
        (('--engines', 'none', 'torch-float32'), "engine is 'none'; it must be some of"),
        (('--device', 'toaster'), "device is 'toaster', which cannot be used here"),
        (('--seconds', '0'), 'seconds is 0.0; it must be above 0'),
        (('--seconds', 'nan'), 'seconds is nan; it must be above 0'),
        (('--calibration', '/no/such/folder'), '/no/such/folder'),
        (('--out', '/no/such/folder/a.csv'), 'out is /no/such/folder/a.csv; it must be a file'),
    ],
)
def test_a_bad_argument_is_refused_before_anything_is_timed(arguments, error, capsys):
    option, *values = arguments
    words = [f'{option}={values[0]}', *values[1:]] if len(values) == 1 else list(arguments)
    assert main(words) == 1
    printed = capsys.readouterr()
    assert printed.out == ''
    assert printed.err.startswith('bench: ')
    assert error in printed.err


def test_a_size_is_read_width_first():
    assert ImageSize.parse('2048x1024') == ImageSize(width=2048, height=1024)


def test_engines_of_a_gpu_are_not_tried_on_a_cpu():
    names = usual_engines(torch.device('cpu'))
    assert 'torch-float32' in names
    assert not [name for name in names if 'float16' in name and 'bfloat16' not in name]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8'])
def test_a_product_of_matrices_counts_its_multiply_accumulates(dtype):
    product = Product(dtype, torch.device('cpu'), 64)
    assert product(0).shape == (64, 64)
    assert product.gigamacs == pytest.approx(64**3 / 1e9)
    if dtype == 'int8':
        assert product(0).abs().max() > 127  # sums are not wrapped around
