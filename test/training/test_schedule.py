from dense_perception.errors import SettingError
from dense_perception.training.schedule import (
    learning_rate_at,
    LoopSettings,
    make_optimizer,
    set_learning_rate,
)
import pytest
import torch
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))


@pytest.mark.parametrize(
    ('step', 'share'),
    [(0, 0.01), (49, 0.5), (99, 1.0), (100, 1.0), (550, 0.5), (325, 0.853553), (1000, 0.0)],
)
def test_learning_rate_rises_linearly_and_falls_along_half_a_cosine(step, share):
    settings = LoopSettings(steps=1000, warmup_steps=100, learning_rate=2.0)
    assert learning_rate_at(step, settings) == pytest.approx(2 * share, abs=1e-5)


def test_learning_rate_may_start_at_its_highest():
    assert learning_rate_at(0, LoopSettings(warmup_steps=0, learning_rate=2.0)) == 2.0


@pytest.mark.parametrize(
    ('step', 'rate'),
    [(0, 1e-4), (299_999, 1e-4), (300_000, 5e-5), (399_999, 5e-5), (400_000, 2.5e-5)]
    + [(500_000, 1.25e-5), (599_999, 1.25e-5)],
)
def test_stairs_halve_the_rate_as_flownet_was_trained(step, rate):
    settings = LoopSettings(
        steps=600_000,
        learning_rate=1e-4,
        warmup_steps=0,
        schedule='step',
        decay_first=300_000,
        decay_every=100_000,
        decay_factor=0.5,
    )
    assert learning_rate_at(step, settings) == pytest.approx(rate)


@pytest.mark.parametrize(('step', 'share'), [(0, 1.0), (50, 0.25), (90, 0.01)])
def test_polynomial_falls_to_zero(step, share):
    settings = LoopSettings(
        steps=100, learning_rate=3.0, warmup_steps=0, schedule='poly', power=2.0
    )
    assert learning_rate_at(step, settings) == pytest.approx(3 * share)


def test_constant_rate_still_rises_first():
    settings = LoopSettings(
        steps=100, learning_rate=3.0, warmup_steps=3, schedule='constant', batch=1
    )
    assert [learning_rate_at(step, settings) for step in (0, 2, 3, 99)] == [1.0, 3.0, 3.0, 3.0]


def test_weight_decay_spares_biases_and_norms():
    model = network()
    optimizer = make_optimizer(model, LoopSettings(weight_decay=0.5))
    decay = {
        id(value): group['weight_decay']
        for group in optimizer.param_groups
        for value in group['params']
    }
    named = {name: decay[id(value)] for name, value in model.named_parameters()}
    assert {name for name, value in named.items() if value == 0.5} == {'0.weight', '2.weight'}
    assert len(named) == 6


def test_biases_learn_at_their_own_rate():
    model = network()
    optimizer = make_optimizer(model, LoopSettings(optimizer='sgd', bias_rate=2.0))
    set_learning_rate(optimizer, 0.3)
    assert [group['lr'] for group in optimizer.param_groups] == [0.3, 0.6]


def test_sgd_adds_decay_to_the_gradient_and_keeps_momentum():
    model = nn.Conv2d(1, 1, 1, bias=False)
    model.weight.data.fill_(2.0)
    settings = LoopSettings(optimizer='sgd', momentum=0.99, weight_decay=0.1)
    optimizer = make_optimizer(model, settings)
    set_learning_rate(optimizer, 0.5)
    for _ in range(2):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    # velocity 1 + 0.2 = 1.2, weight 2 - 0.6 = 1.4; velocity 0.99 * 1.2 + 1.14 = 2.328
    assert model.weight.item() == pytest.approx(1.4 - 0.5 * 2.328)


@pytest.mark.parametrize('name', ['adam', 'adamw'])
def test_first_step_of_adam_is_the_learning_rate(name):
    model = nn.Conv2d(1, 1, 1, bias=False)
    model.weight.data.fill_(2.0)
    settings = LoopSettings(optimizer=name, momentum=0.8, weight_decay=0.1)
    optimizer = make_optimizer(model, settings)
    assert optimizer.param_groups[0]['betas'] == (0.8, 0.999)
    set_learning_rate(optimizer, 0.01)
    model.weight.grad = torch.full_like(model.weight, 7.0)
    optimizer.step()
    decay = 0.01 * 0.1 * 2 if name == 'adamw' else 0  # decoupled, or lost in the normalisation
    assert model.weight.item() == pytest.approx(2 - 0.01 - decay, abs=1e-6)


def test_frozen_parameters_are_left_out():
    model = network()
    model[0].requires_grad_(False)
    count = sum(
        len(group['params']) for group in make_optimizer(model, LoopSettings()).param_groups
    )
    assert count == 4


def test_network_without_anything_to_train_is_refused():
    with pytest.raises(SettingError, match='no parameter of Sequential is to be trained'):
        make_optimizer(network().requires_grad_(False), LoopSettings())
