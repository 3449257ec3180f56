from dense_perception.cli.import_weights import main
from dense_perception.networks.fcn import FCN8s
from dense_perception.networks.flownet import FlowNetCorr
from dense_perception.weights.checkpoint import load_weights
from dense_perception.weights.sources import SOURCES
import pytest
import torch


@pytest.fixture
def flownet(tmp_path):
    """Return a narrow FlowNetCorr of FlowNetPytorch."""
    state = FlowNetCorr(width=1 / 16).state_dict()
    path = tmp_path / 'flownetc.pth'
    torch.save(
        {'state_dict': {key.removeprefix('refinement.'): v for key, v in state.items()}}, path
    )
    return path


@pytest.mark.parametrize('command', [['import'], []])
def test_file_is_converted_and_what_it_is_is_told(flownet, tmp_path, capsys, command):
    out = tmp_path / 'a.safetensors'
    assert main([*command, str(flownet), '--out', str(out), '--precision', 'float16']) == 0
    printed = capsys.readouterr().out
    assert f'{flownet} is flownetc_epe1.766 of Dosovitskiy et al. (2015)' in printed
    assert 'flownet_corr, rgb minus (114.75, 110.16, 104.80), divided by 255' in printed
    network, card = load_weights(out)
    assert isinstance(network, FlowNetCorr)
    assert card.notes['source'] == 'flownetc_epe1.766'


def test_converted_file_lies_beside_the_published_one_by_default(flownet):
    assert main([str(flownet)]) == 0
    assert load_weights(flownet.with_suffix('.safetensors'))[1].network == 'flownet_corr'


def test_info_tells_what_a_published_and_a_converted_file_are(flownet, capsys):
    main([str(flownet)])
    capsys.readouterr()
    assert main(['info', str(flownet)]) == 0
    printed = capsys.readouterr().out
    assert 'flownetc.pth: flownetc_epe1.766 of Dosovitskiy et al. (2015)' in printed
    assert '35 tensors of' in printed
    assert "flownet_corr {'width': 0.0625}" in printed
    assert main(['info', str(flownet.with_suffix('.safetensors'))]) == 0
    assert 'safetensors: flownet_corr, ' in capsys.readouterr().out


def test_unsuitable_file_is_an_error_in_one_line(tmp_path, capsys):
    path = tmp_path / 'a.pth'
    torch.save(FCN8s(3, 'compact').state_dict(), path)
    assert main([str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'import_weights: {path}: ')
    assert error.count('\n') == 1
    assert not path.with_suffix('.safetensors').exists()


def test_converted_file_is_not_converted_again(flownet, capsys):
    main([str(flownet)])
    assert main([str(flownet.with_suffix('.safetensors'))]) == 1
    assert 'a converted file already' in capsys.readouterr().err


def test_list_is_one_table_of_all_networks(capsys):
    assert main(['list']) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    columns = ('network', 'paper', 'parameters', 'GMAC', 'classes', 'weights known', 'runs in')
    places = [header.index(column) for column in columns]
    assert places == sorted(places)
    corr = next(line for line in lines if 'flownetc_epe1.766' in line)
    assert corr.split() == [
        'flownet_corr', 'Dosovitskiy', 'et', 'al.', '(2015)', '39,174,320', '60.6', '-',
        'flownetc_epe1.766', 'FlowEstimator,', 'node',
    ]  # fmt: skip
    assert '*drive' in '\n'.join(lines)


def test_weights_without_an_address_are_fetched_by_hand(capsys):
    assert main(['fetch', 'flownet2_c']) == 1
    page = SOURCES['flownet2_c'].page
    assert f'no address of its own; get it from {page} and import it' in capsys.readouterr().err


def test_fetched_file_is_checked_and_converted(flownet, tmp_path, capsys, serve):
    url = f'{serve(flownet.parent)}/{flownet.name}'
    folder, out = tmp_path / 'fetched', tmp_path / 'a.safetensors'
    arguments = ['fetch', 'flownetc_epe1.766', '--url', url, '--folder', str(folder)]
    assert main([*arguments, '--out', str(out)]) == 1
    assert 'it was deleted' in capsys.readouterr().err  # it is not the published file
    digest = SOURCES['flownetc_epe1.766'].sha256
    assert main([*arguments, '--sha256', digest, '--out', str(out)]) == 1
    assert not out.exists()
    capsys.readouterr()
    assert main(['fetch', 'flownetc_bn', '--folder', str(folder), '--url', url]) == 0
    printed = capsys.readouterr()
    assert 'none is published to compare it with' in printed.out
    assert 'flownetc.pth: 100%' in printed.err  # the bar
    assert (folder / flownet.name).read_bytes() == flownet.read_bytes()
