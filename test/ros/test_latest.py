from threading import Event, Thread
import time
from types import SimpleNamespace

from dense_perception.ros import latest as module
from dense_perception.ros.latest import HANGS_AFTER_S, Latest, LatestOfEach, Worker
import pytest


def in_thread(function):
    results = []
    thread = Thread(target=lambda: results.append(function()))
    thread.start()
    return thread, results


def test_the_newest_item_is_taken():
    latest = Latest()
    latest.put(1)
    latest.put(2)
    assert latest.take(0) == 2


def test_an_item_that_was_replaced_counts_as_dropped():
    latest = Latest()
    for number in range(5):
        latest.put(number)
    assert latest.dropped == 4


def test_an_item_that_was_taken_does_not_count_as_dropped():
    latest = Latest()
    for number in range(5):
        latest.put(number)
        latest.take(0)
    assert latest.dropped == 0


def test_an_item_is_taken_once():
    latest = Latest()
    latest.put(1)
    latest.take(0)
    assert latest.take(0) is None


def test_taking_from_an_empty_slot_waits_no_longer_than_asked():
    start = time.monotonic()
    assert Latest().take(0.05) is None
    assert 0.05 <= time.monotonic() - start < 1


def test_a_waiting_thread_gets_the_item_at_once():
    latest = Latest()
    thread, results = in_thread(lambda: (latest.take(10), time.monotonic()))
    time.sleep(0.05)
    latest.put('frame')
    put = time.monotonic()
    thread.join(10)
    assert results[0][0] == 'frame'
    assert results[0][1] - put < 1


def test_closing_wakes_a_waiting_thread():
    latest = Latest()
    thread, results = in_thread(lambda: latest.take(None))
    latest.close()
    thread.join(10)
    assert results == [None]


def test_closing_drops_the_item_that_waits():
    latest = Latest()
    latest.put(1)
    latest.close()
    assert (latest.take(0), latest.dropped, latest.closed) == (None, 1, True)


def test_an_item_put_after_closing_is_dropped():
    latest = Latest()
    latest.close()
    latest.put(1)
    assert (latest.take(0), latest.dropped) == (None, 1)


@pytest.mark.parametrize('period_s', [0.0, 0.0005])
def test_every_item_is_taken_or_counted_and_none_out_of_order(period_s):
    latest = Latest()
    taken = []

    def receive():
        while (item := latest.take(None)) is not None:
            taken.append(item)
            time.sleep(0.001)

    thread, _ = in_thread(receive)
    for number in range(500):
        latest.put(number)
        time.sleep(period_s)
    deadline = time.monotonic() + 10
    while len(taken) + latest.dropped < 500 and time.monotonic() < deadline:
        time.sleep(0.005)
    latest.close()
    thread.join(10)
    assert taken == sorted(taken)
    assert taken[-1] == 499
    assert len(taken) + latest.dropped == 500


# Several senders.


def test_of_each_sender_the_newest_item_is_taken_and_who_waited_longest_is_first():
    latest = LatestOfEach()
    for sender, item in [('left', 1), ('front', 2), ('left', 3)]:
        latest.put(sender, item)
    assert list(latest.take(0).items()) == [('left', 3), ('front', 2)]
    assert latest.take(0) == {}


def test_putting_tells_whether_an_item_of_the_same_sender_was_lost():
    latest = LatestOfEach()
    assert not latest.put('left', 1)
    assert not latest.put('front', 2)
    assert latest.put('left', 3)


def test_closing_tells_whose_items_waited_and_later_ones_are_lost():
    latest = LatestOfEach()
    latest.put('left', 1)
    latest.put('front', 2)
    assert latest.close() == ['left', 'front']
    assert latest.put('rear', 3)
    assert latest.take(None) == {}


def test_a_slow_sender_is_served_in_every_round_beside_one_that_never_rests():
    latest = LatestOfEach()
    rounds = []
    for number in range(10):
        for burst in range(100):
            latest.put('fast', 100 * number + burst)
        latest.put('slow', number)
        rounds.append(latest.take(0))
    assert rounds == [{'fast': 100 * number + 99, 'slow': number} for number in range(10)]


# The thread that takes them.


@pytest.fixture
def clock(monkeypatch):
    """Return the time in seconds that workers go by, in a list."""
    now = [100.0]
    monkeypatch.setattr(module, 'time', SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def at_work():
    """Return a worker at work, and a function that has it say that it gets on."""
    latest = Latest()
    begun, told, go_on = Event(), Event(), Event()

    def work(taken):
        begun.set()
        assert go_on.wait(30)
        worker.progress()
        told.set()
        assert end.wait(30)

    def get_on():
        go_on.set()
        assert told.wait(30)

    end = Event()
    worker = Worker('inference', latest, work, lambda *_: None)
    latest.put(1)
    worker.start()
    assert begun.wait(30)
    yield worker, get_on
    go_on.set()
    end.set()
    latest.close()
    worker.join()


def test_work_without_progress_for_long_hangs(clock, at_work):
    worker, _ = at_work
    assert worker.trouble == ''
    clock[0] += HANGS_AFTER_S + 1
    assert worker.trouble.startswith('inference hangs in ')


def test_work_that_gets_on_does_not_hang(clock, at_work):
    worker, get_on = at_work
    clock[0] += HANGS_AFTER_S + 1
    get_on()
    assert worker.trouble == ''


def test_progress_of_another_thread_is_none_of_the_work(clock, at_work):
    worker, _ = at_work
    clock[0] += HANGS_AFTER_S + 1
    worker.progress()
    assert worker.trouble.startswith('inference hangs in ')


def test_progress_of_another_thread_does_not_begin_any_work(clock):
    worker = Worker('inference', Latest(), lambda _: None, lambda *_: None)
    worker.progress()
    clock[0] += HANGS_AFTER_S + 1
    assert worker.trouble == ''
