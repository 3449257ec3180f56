from threading import Event

from dense_perception.predictors.engines.telling import telling


def test_what_takes_long_is_told_of_while_it_lasts():
    told, twice = [], Event()

    def tell(note):
        told.append(note)
        if len(told) == 2:
            twice.set()

    with telling(tell, 'graph', every_s=0.001):
        assert twice.wait(30)
    count = len(told)
    assert told[0] == 'graph: still being made after 0 s'
    assert not Event().wait(0.05)
    assert len(told) == count


def test_what_is_quick_is_not_told_of():
    told = []
    with telling(told.append, 'graph', every_s=60):
        pass
    assert told == []
