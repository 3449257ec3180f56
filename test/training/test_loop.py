import csv
from dataclasses import replace
import math

from dense_perception.errors import WeightsError
from dense_perception.training.loop import (
    LAST,
    learning_rate_at,
    LoopSettings,
    Task,
    TrainingError,
    TrainingLoop,
)
import pytest
import torch
from torch import nn

SETTINGS = LoopSettings(
    steps=9,
    batch=4,
    learning_rate=0.01,
    warmup_steps=2,
    average=0.9,
    seed=3,
    precision='float32',
    checkpoint_every=2,
    evaluate_every=100,
)


def network():
    """Return a network with everything whose state must survive: norm, dropout, decay."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(4, 1, 1),
    )


def batch(random, size):
    return torch.from_numpy(random.random((size, 1, 6, 6))).float()


def loss(model, images):
    return (model(images) - images.flip(3)).square().mean()


def task(**changes):
    return replace(Task(batch, loss, lambda model: {'score': 1.0}), **changes)


def trained(folder, settings=SETTINGS, stop_at=None, **changes):
    loop = TrainingLoop(network(), task(**changes), settings, folder)
    loop.resume()
    loop.run(stop_at)
    return loop


def assert_same(one, two):
    for part in ('network', 'averaged'):
        states = getattr(one, part).state_dict(), getattr(two, part).state_dict()
        for name, value in states[0].items():
            assert torch.equal(value, states[1][name]), f'{part} {name}'
    for state, other in zip(
        one.optimizer.state_dict()['state'].values(),
        two.optimizer.state_dict()['state'].values(),
        strict=True,
    ):
        assert all(torch.equal(value, other[name]) for name, value in state.items())


def log_rows(folder):
    with (folder / 'log.csv').open(newline='') as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ('step', 'share'),
    [(0, 0.01), (49, 0.5), (99, 1.0), (100, 1.0), (550, 0.5), (325, 0.853553), (1000, 0.0)],
)
def test_learning_rate_rises_linearly_and_falls_along_half_a_cosine(step, share):
    settings = LoopSettings(steps=1000, warmup_steps=100, learning_rate=2.0)
    assert learning_rate_at(step, settings) == pytest.approx(2 * share, abs=1e-5)


def test_learning_rate_may_start_at_its_highest():
    assert learning_rate_at(0, LoopSettings(warmup_steps=0, learning_rate=2.0)) == 2.0


def test_training_lowers_the_loss(tmp_path):
    settings = replace(SETTINGS, steps=200)
    loop = trained(tmp_path, settings)
    images = torch.rand(16, 1, 6, 6)
    before = network().eval()
    assert loss(loop.averaged, images) < 0.5 * loss(before, images)


@pytest.mark.parametrize('stop_at', [1, 4, 5])
def test_stopped_and_resumed_run_equals_an_unbroken_one(tmp_path, stop_at):
    whole = trained(tmp_path / 'whole')
    trained(tmp_path / 'parts', stop_at=stop_at)
    resumed = trained(tmp_path / 'parts')
    assert resumed.step == 9
    assert_same(resumed, whole)


def test_run_killed_between_checkpoints_and_resumed_equals_an_unbroken_one(tmp_path):
    whole = trained(tmp_path / 'whole')
    count = 0

    def killed(model, images):
        nonlocal count
        count += 1
        if count == 6:  # five steps done, four of them in the checkpoint
            raise KeyboardInterrupt
        return loss(model, images)

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / 'parts', loss=killed)
    assert torch.load(tmp_path / 'parts' / LAST, weights_only=True)['step'] == 4
    assert_same(trained(tmp_path / 'parts'), whole)


def test_random_numbers_drawn_elsewhere_do_not_change_a_run(tmp_path):
    whole = trained(tmp_path / 'one')

    def noisy(model, images):
        result = loss(model, images)
        torch.rand(5)
        return result

    assert_same(trained(tmp_path / 'two', loss=noisy), whole)


def test_another_seed_gives_another_run(tmp_path):
    one = trained(tmp_path / 'one')
    two = trained(tmp_path / 'two', replace(SETTINGS, seed=4))
    assert not torch.equal(one.network[0].weight, two.network[0].weight)


def test_finished_run_that_is_resumed_does_nothing(tmp_path):
    assert_same(trained(tmp_path), trained(tmp_path))


def test_averaged_weights_follow_the_trained_ones_by_the_decay(tmp_path):
    settings = replace(SETTINGS, steps=2, average=0.1, learning_rate=0.1)
    first = trained(tmp_path / 'a', settings, stop_at=1)
    second = trained(tmp_path / 'b', settings)
    start, one, two = network()[0].weight, first.network[0].weight, second.network[0].weight
    after_one = 0.1 * start + 0.9 * one
    torch.testing.assert_close(first.averaged[0].weight, after_one)
    torch.testing.assert_close(second.averaged[0].weight, 0.1 * after_one + 0.9 * two)


def test_average_of_a_short_run_does_not_hold_its_random_start(tmp_path):
    settings = replace(SETTINGS, steps=1, average=0.999)
    loop = trained(tmp_path, settings)
    start, one = network()[0].weight, loop.network[0].weight
    torch.testing.assert_close(loop.averaged[0].weight, start + (one - start) * (1 - 2 / 11))


def test_weight_decay_spares_biases_and_norms(tmp_path):
    settings = replace(SETTINGS, weight_decay=0.5)
    loop = TrainingLoop(network(), task(), settings, tmp_path)
    decay = {
        id(value): group['weight_decay']
        for group in loop.optimizer.param_groups
        for value in group['params']
    }
    named = {name: decay[id(value)] for name, value in loop.network.named_parameters()}
    assert {name for name, value in named.items() if value == 0.5} == {'0.weight', '4.weight'}
    assert len(named) == 6


def test_loss_that_is_not_a_number_ends_the_run_and_keeps_the_last_checkpoint(tmp_path):
    count = 0

    def broken(model, images):
        nonlocal count
        count += 1
        return loss(model, images * (math.nan if count == 4 else 1))

    with pytest.raises(TrainingError, match=r'loss of step 3 is nan; .*last.pt. Resume with'):
        trained(tmp_path / 'broken', loss=broken)
    assert torch.load(tmp_path / 'broken' / LAST, weights_only=True)['step'] == 2
    assert_same(trained(tmp_path / 'broken'), trained(tmp_path / 'whole'))


def test_gradient_that_is_not_a_number_ends_the_run_and_keeps_the_last_checkpoint(tmp_path):
    count = 0

    def broken(model, images):
        nonlocal count
        count += 1
        value = loss(model, images)
        # The square root of 0 has no gradient, though the loss itself is a number.
        return value + (value - value.detach()).sqrt() if count == 4 else value

    with pytest.raises(TrainingError, match='gradient of step 3 is'):
        trained(tmp_path / 'broken', loss=broken)
    assert torch.load(tmp_path / 'broken' / LAST, weights_only=True)['step'] == 2
    assert_same(trained(tmp_path / 'broken'), trained(tmp_path / 'whole'))


@pytest.mark.parametrize('content', [b'', b'no checkpoint', b'PK\x03\x04 truncated', b'\x80\x02.'])
def test_damaged_checkpoint_is_refused_by_name(tmp_path, content):
    (tmp_path / LAST).write_bytes(content)
    with pytest.raises(WeightsError, match='last.pt: cannot be resumed from'):
        trained(tmp_path)


def test_truncated_checkpoint_is_refused_by_name(tmp_path):
    trained(tmp_path, stop_at=2)
    path = tmp_path / LAST
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(WeightsError, match='last.pt: cannot be resumed from'):
        trained(tmp_path)


def test_checkpoint_of_another_network_is_refused_by_name(tmp_path):
    trained(tmp_path, stop_at=2)
    other = nn.Sequential(nn.Conv2d(1, 5, 3))
    with pytest.raises(WeightsError, match='last.pt: cannot be resumed from'):
        TrainingLoop(other, task(), SETTINGS, tmp_path).resume()


def test_run_is_scored_now_and_then_and_at_its_end(tmp_path):
    settings = replace(SETTINGS, evaluate_every=4)
    trained(tmp_path, settings)
    rows = log_rows(tmp_path)
    assert [row['step'] for row in rows] == ['4', '8', '9']
    assert {row['score'] for row in rows} == {'1.0'}


def test_scoring_sees_the_averaged_network_ready_for_inference(tmp_path):
    seen = []

    def evaluate(model):
        seen.append((any(module.training for module in model.modules()), model[0].weight.clone()))
        return {'score': 0.0}

    loop = trained(tmp_path, evaluate=evaluate)
    ((training, weight),) = seen
    assert not training
    assert torch.equal(weight, loop.averaged[0].weight)


def test_scoring_does_not_change_the_run(tmp_path):
    often = trained(tmp_path / 'often', replace(SETTINGS, evaluate_every=1))
    assert_same(often, trained(tmp_path / 'once'))


def test_logged_loss_goes_on_where_a_resumed_run_left_off(tmp_path):
    def steady(model, images):
        return 0 * loss(model, images) + 2.0

    settings = replace(SETTINGS, evaluate_every=3)
    trained(tmp_path, settings, stop_at=5, loss=steady)
    trained(tmp_path, settings, loss=steady)
    assert [float(row['loss']) for row in log_rows(tmp_path)] == pytest.approx([2.0] * 4)


def test_error_of_a_batch_reaches_the_caller(tmp_path):
    def broken(random, size):
        raise ZeroDivisionError('batch')

    with pytest.raises(ZeroDivisionError, match='batch'):
        trained(tmp_path, batch=broken)
