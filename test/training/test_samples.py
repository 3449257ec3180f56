import logging

from dense_perception.data.segmentation import LabelledImage
from dense_perception.errors import InputError
from dense_perception.training.samples import Samples
import numpy as np
import pytest


class Pictures:
    """Twenty small samples; those at the places in `damaged` cannot be read."""

    def __init__(self, *damaged):
        self.damaged, self.read = damaged, []

    def __len__(self):
        return 20

    def __getitem__(self, index):
        self.read.append(index)
        if index in self.damaged:
            raise InputError(f'{index}.png: 3 bytes that cannot be decoded as a picture')
        image = np.full((10, 10, 3), index, np.uint8)
        return LabelledImage(str(index), image, image[..., 0])


def drawn(samples, count=200, seed=0):
    return [samples.draw(np.random.default_rng((seed, place))).name for place in range(count)]


def test_every_sample_is_drawn():
    assert set(drawn(Samples(Pictures()))) == {str(index) for index in range(20)}


def test_another_sample_stands_in_for_a_damaged_one_and_always_the_same(caplog):
    one, two = Samples(Pictures(4)), Samples(Pictures(4))
    names = drawn(one)
    assert '4' not in names
    assert names == drawn(two)[:200]
    whole = drawn(Samples(Pictures()))
    assert all(name == other for name, other in zip(names, whole, strict=True) if other != '4')


def test_damaged_sample_is_told_by_name_once_and_counted(caplog):
    samples = Samples(Pictures(4))
    with caplog.at_level(logging.WARNING):
        drawn(samples)
        assert len(list(samples.readable())) == 19
    assert [record.getMessage() for record in caplog.records] == [
        'passed over: 4.png: 3 bytes that cannot be decoded as a picture'
    ]
    assert samples.unreadable == 1


def test_too_many_damaged_samples_end_with_their_names():
    samples = Samples(Pictures(4, 7, 9), largest_unreadable_share=0.1)
    with pytest.raises(InputError, match=r'3 of 20 samples .* more than 2: .*4.png.*7.png.*9.png'):
        list(samples.readable())


def test_as_many_damaged_samples_as_are_allowed_are_passed_over():
    samples = Samples(Pictures(4, 7), largest_unreadable_share=0.1)
    assert len(list(samples.readable())) == 18


def test_samples_are_kept_in_memory_up_to_the_limit():
    pictures = Pictures()
    samples = Samples(pictures, memory_mb=5 * 400e-6)  # each has 300 bytes and 100
    list(samples.readable())
    pictures.read.clear()
    list(samples.readable())
    assert pictures.read == list(range(5, 20))


def test_every_third_sample_may_be_asked_for():
    assert [sample.name for sample in Samples(Pictures()).readable(6)] == ['0', '6', '12', '18']
