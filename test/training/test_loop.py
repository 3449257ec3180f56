import csv
from dataclasses import replace
import math
import time

from dense_perception.errors import SettingError, WeightsError
from dense_perception.training.loop import BEST, LAST, Task, TrainingError, TrainingLoop
from dense_perception.training.record import CURVES
from dense_perception.training.schedule import LoopSettings
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
    device='cpu',
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


def test_checkpoint_of_an_earlier_version_is_gone_on_from(tmp_path):
    whole = trained(tmp_path / 'whole')
    trained(tmp_path / 'parts', stop_at=4)
    path = tmp_path / 'parts' / LAST
    state = torch.load(path, weights_only=True)
    state = {name: state[name] for name in ('network', 'averaged', 'optimizer', 'step')}
    for group in state['optimizer']['param_groups']:
        del group['share']
    torch.save(state, path)
    assert_same(trained(tmp_path / 'parts'), whole)


def test_changed_settings_hold_from_where_a_run_goes_on(tmp_path):
    trained(tmp_path, stop_at=4)
    loop = TrainingLoop(network(), task(), replace(SETTINGS, weight_decay=0.3), tmp_path)
    loop.resume()
    assert loop.step == 4
    assert [group['weight_decay'] for group in loop.optimizer.param_groups] == [0.3, 0.0]


def greedy(model, images):
    """Ask for more memory than there is, as a batch too large for its GPU does."""
    model(images)  # has touched the running averages of batch normalisation
    return torch.empty(2**60, dtype=torch.uint8).float().sum()


def test_lack_of_memory_tells_what_to_lower_and_loses_no_step(tmp_path):
    count = 0

    def sometimes(model, images):
        nonlocal count
        count += 1
        return greedy(model, images) if count == 6 else loss(model, images)

    message = r'memory of cpu did not suffice for step 5: .*alloc.* accumulate above 1, a smaller'
    with pytest.raises(TrainingError, match=message):
        trained(tmp_path / 'parts', loss=sometimes)
    assert torch.load(tmp_path / 'parts' / LAST, weights_only=True)['step'] == 5
    assert_same(trained(tmp_path / 'parts'), trained(tmp_path / 'whole'))


def test_another_error_of_the_loss_is_not_taken_for_lack_of_memory(tmp_path):
    def broken(model, images):
        return model(images[:, :, :1, :1].expand(-1, 2, -1, -1)).sum()

    with pytest.raises(RuntimeError, match='channels'):
        trained(tmp_path, loss=broken)


def scored(*scores):
    values = iter(scores)
    return lambda model: {'score': next(values)}


@pytest.mark.parametrize(
    ('scores', 'lowest', 'best'),
    [
        ((0.2, 0.5, 0.3), False, 0.5),
        ((0.2, 0.5, 0.3), True, 0.2),
        ((math.nan, 0.1, 0.1), False, 0.1),
        ((0.2, math.nan, 0.1), False, 0.2),
    ],
)
def test_best_weights_are_those_of_the_best_score(tmp_path, scores, lowest, best):
    saved = []

    def save(path, model, given):
        saved.append((path, model[0].weight.clone(), given['score']))

    settings = replace(SETTINGS, evaluate_every=3)
    changes = {'best': 'score', 'lowest_is_best': lowest, 'save': save}
    loop = trained(tmp_path, settings, evaluate=scored(*scores), **changes)
    path, weight, score = saved[-1]
    assert path == tmp_path / BEST
    assert score == best
    assert torch.equal(weight, loop.averaged[0].weight) == (best == scores[-1] != scores[-2])


def test_run_that_goes_on_remembers_its_best_score(tmp_path):
    saved = []
    settings = replace(SETTINGS, evaluate_every=3)
    changes = {'best': 'score', 'save': lambda path, model, given: saved.append(given['score'])}
    trained(tmp_path, settings, stop_at=3, evaluate=scored(0.5), **changes)
    trained(tmp_path, settings, evaluate=scored(0.4, 0.6), **changes)
    assert saved == [0.5, 0.6]


def test_log_of_a_killed_run_tells_no_step_twice(tmp_path):
    def killed(model, images):
        if count.step == 7:
            raise KeyboardInterrupt
        return loss(model, images)

    settings = replace(SETTINGS, evaluate_every=3, checkpoint_every=4)
    count = TrainingLoop(network(), task(loss=killed), settings, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        count.run()
    assert [row['step'] for row in log_rows(tmp_path)] == ['3', '6']  # the checkpoint is of 4
    trained(tmp_path, settings)
    assert [row['step'] for row in log_rows(tmp_path)] == ['3', '6', '9']


def test_log_tells_the_rate_and_the_unreadable_samples(tmp_path):
    trained(tmp_path, unreadable=lambda: 3)
    (row,) = log_rows(tmp_path)
    assert row['unreadable'] == '3'
    assert float(row['learning_rate']) == pytest.approx(0.01 * (1 + math.cos(math.pi * 6 / 7)) / 2)


@pytest.mark.parametrize(('slow', 'low', 'high'), [('batch', 0.4, 1.0), ('loss', 0.0, 0.3)])
def test_log_tells_how_long_steps_waited_for_their_batches(tmp_path, slow, low, high):
    def late(random, size):
        time.sleep(0.08 if slow == 'batch' else 0)
        return batch(random, size)

    def careful(model, images):
        time.sleep(0.08 if slow == 'loss' else 0)
        return loss(model, images)

    settings = replace(SETTINGS, loaders=1)
    trained(tmp_path, settings, batch=late, loss=careful)
    (row,) = log_rows(tmp_path)
    assert low <= float(row['data_wait']) <= high


def test_curves_can_be_read_by_tensorboard(tmp_path):
    events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    trained(tmp_path, replace(SETTINGS, log_every=3))
    curves = events.EventAccumulator(str(tmp_path / CURVES))
    curves.Reload()
    names = {'loss', 'gradient', 'learning_rate', 'data_wait', 'score'}
    assert set(curves.Tags()['scalars']) == names
    assert [point.step for point in curves.Scalars('loss')] == [3, 6, 9]
    assert [point.value for point in curves.Scalars('score')] == [1.0]


def test_frozen_layers_stay_as_they_are_and_drop_nothing(tmp_path):
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)), nn.Conv2d(4, 1, 1)
    )
    model[0].requires_grad_(False)
    before = {name: value.clone() for name, value in model[0].state_dict().items()}
    seen = []

    def watched(model, images):
        seen.append((model[0][2].training, model[1].training))
        return loss(model, images)

    loop = TrainingLoop(model, task(loss=watched), SETTINGS, tmp_path)
    weight = model[1].weight.detach().clone()
    loop.run()
    assert set(seen) == {(False, True)}
    assert not torch.equal(model[1].weight, weight)
    for name, value in loop.averaged[0].state_dict().items():
        assert torch.equal(value, before[name])


def test_float16_lowers_the_scale_of_its_loss_until_gradients_fit_and_goes_on(tmp_path):
    settings = replace(SETTINGS, precision='float16', device='cpu', steps=12)

    def large(model, images):
        return 30 * loss(model, images)  # its gradients times 65536 are no float16

    whole = trained(tmp_path / 'whole', settings, loss=large)
    assert 1 <= whole._scaler.get_scale() < 65536
    assert not torch.equal(whole.network[0].weight, network()[0].weight)
    trained(tmp_path / 'parts', settings, stop_at=5, loss=large)
    parts = trained(tmp_path / 'parts', settings, loss=large)
    assert_same(parts, whole)
    assert parts._scaler.get_scale() == whole._scaler.get_scale()


def test_batch_smaller_than_its_parts_is_refused(tmp_path):
    with pytest.raises(SettingError, match='batch is 4; 1 processes that accumulate 5 parts'):
        trained(tmp_path, replace(SETTINGS, accumulate=5))


def test_checkpoint_that_cannot_be_written_is_told_and_the_one_before_kept(tmp_path):
    trained(tmp_path, stop_at=2)
    (tmp_path / f'{LAST}.partial').mkdir()
    with pytest.raises(TrainingError, match='last.pt: cannot be written: '):
        trained(tmp_path)
    assert torch.load(tmp_path / LAST, weights_only=True)['step'] == 2
