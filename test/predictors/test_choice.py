from dense_perception.errors import SettingError, WeightsError
from dense_perception.networks import FLOW_NETWORKS, PROPOSAL_NETWORKS, SEGMENTATION_NETWORKS
from dense_perception.predictors.choice import choose_network, FLOW, PROPOSALS, SEGMENTATION
from dense_perception.weights.checkpoint import Card, Preprocessing, save_weights
import pytest
import torch


@pytest.mark.parametrize(
    ('task', 'name'), [(SEGMENTATION, 'front_end_context'), (FLOW, 'flownet_simple')]
)
def test_default_weights_hold_the_default_network(task, name):
    for asked in ('', name):
        choice = choose_network(task, asked, task.default_weights)
        assert (choice.card.network, choice.weights) == (name, task.default_weights)
        assert choice.trained


@pytest.mark.parametrize(
    ('task', 'name'),
    [(task, name) for task in (SEGMENTATION, FLOW, PROPOSALS) for name in task.networks],
)
def test_each_network_is_trained_or_says_that_it_is_not(task, name):
    choice = choose_network(task, name, task.default_weights)
    assert choice.card.network == name
    assert choice.trained == bool(choice.weights)
    assert not choice.network.training
    if not choice.trained:
        assert type(choice.network) is type(choice.card.build())


def test_tasks_have_networks_of_their_own():
    assert SEGMENTATION.networks is SEGMENTATION_NETWORKS
    assert FLOW.networks is FLOW_NETWORKS
    assert PROPOSALS.networks is PROPOSAL_NETWORKS


def test_untrained_weights_are_the_same_each_time_and_take_no_random_numbers():
    torch.manual_seed(5)
    first = choose_network(SEGMENTATION, 'front_end', 'drive').network.state_dict()
    drawn = torch.rand(1)
    second = choose_network(SEGMENTATION, 'front_end', 'drive').network.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)


def saved(tmp_path, network):
    card = Card(network, {'classes': 19, 'width': 'compact'}, Preprocessing(), 'cityscapes')
    save_weights(tmp_path / 'a.safetensors', card.build(), card)
    return str(tmp_path / 'a.safetensors')


def test_weights_that_are_given_decide_and_may_be_asked_for_by_name(tmp_path):
    path = saved(tmp_path, 'fcn16s')
    for asked in ('', 'fcn16s'):
        choice = choose_network(SEGMENTATION, asked, path)
        assert (choice.card.network, choice.weights) == ('fcn16s', path)


def test_weights_of_another_network_are_refused(tmp_path):
    path = saved(tmp_path, 'fcn16s')
    with pytest.raises(
        WeightsError, match='which hold fcn16s; segmentation_network asks for fcn8s'
    ):
        choose_network(SEGMENTATION, 'fcn8s', path)


def test_weights_of_another_task_are_refused(tmp_path):
    with pytest.raises(WeightsError, match='fcn16s is no flow network'):
        choose_network(FLOW, '', saved(tmp_path, 'fcn16s'))
    with pytest.raises(WeightsError, match='flownet_simple is no segmentation network'):
        choose_network(SEGMENTATION, '', 'flow')


@pytest.mark.parametrize('task', [SEGMENTATION, FLOW, PROPOSALS])
def test_network_that_a_task_does_not_have_is_refused_with_those_it_has(task):
    with pytest.raises(SettingError) as caught:
        choose_network(task, 'unet', task.default_weights)
    assert str(caught.value).startswith(f"{task.name}_network is 'unet'; known are ")
    assert all(name in str(caught.value) for name in (*task.networks, *task.forms))


def test_missing_weights_are_named():
    with pytest.raises(WeightsError, match='none.safetensors: no such file'):
        choose_network(SEGMENTATION, 'fcn8s', 'none.safetensors')


@pytest.mark.parametrize(
    ('task', 'form', 'network', 'argument'),
    [
        (SEGMENTATION, 'front_end_context_large', 'front_end_context', ('large', True)),
        (SEGMENTATION, 'dilation7', 'front_end_context', ('layers', 7)),
        (SEGMENTATION, 'dilation8', 'front_end_context', ('layers', 8)),
        (SEGMENTATION, 'dilation10', 'front_end_context', ('layers', 10)),
        (SEGMENTATION, 'fcn16s_at_once', 'fcn16s', ('at_once', True)),
        (SEGMENTATION, 'fcn8s_at_once', 'fcn8s', ('at_once', True)),
        (FLOW, 'flownet_simple_batch_norm', 'flownet_simple', ('batch_norm', True)),
        (FLOW, 'flownet_corr_batch_norm', 'flownet_corr', ('batch_norm', True)),
    ],
)
def test_a_form_of_a_network_has_a_name_of_its_own(task, form, network, argument):
    choice = choose_network(task, form, task.default_weights)
    assert choice.card.network == network
    assert argument in choice.card.arguments.items()
    assert choice.trained == (form == 'dilation10')  # as `drive` is


def test_weights_of_another_form_are_refused_with_what_they_have(tmp_path):
    path = saved(tmp_path, 'front_end_context')
    assert choose_network(SEGMENTATION, 'dilation8', path).trained  # 8 layers where unsaid
    with pytest.raises(
        WeightsError, match='with layers 8; segmentation_network asks for dilation7'
    ):
        choose_network(SEGMENTATION, 'dilation7', path)
    with pytest.raises(WeightsError, match='with large False; .* for front_end_context_large'):
        choose_network(SEGMENTATION, 'front_end_context_large', path)
