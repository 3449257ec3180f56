from fractions import Fraction
import json
import math

from dense_perception.errors import InputError
from dense_perception.metrics.exact import ExactSum
from hypothesis import given, strategies
import pytest

numbers = strategies.lists(strategies.floats(-1e9, 1e9), max_size=20)


def total(values):
    result = ExactSum()
    for value in values:
        result = result.plus(value)
    return result


@given(numbers, numbers, numbers)
def test_parts_add_up_to_the_whole_in_any_grouping(first, second, third):
    a, b, c = map(total, (first, second, third))
    assert (a + b) + c == a + (b + c) == c + b + a == total([*third, *first, *second])


def test_nothing_is_lost_beside_a_large_number():
    assert total([1e16, 1.0, -1e16]).mean(1) == 1
    assert 1e16 + 1.0 - 1e16 == 0  # as floats would have it


def test_mean_is_rounded_once():
    assert total([0.1] * 3).mean(3) == 0.1
    assert total([0.1] * 3).value == 3 * Fraction(0.1)


@pytest.mark.parametrize('number', [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays(number):
    result = total([1.0, number]) + total([2.0])
    assert math.isnan(result.mean(3))
    assert math.isnan(ExactSum.from_json(result.to_json()).mean(3))


def test_mean_of_nothing_is_nan():
    assert math.isnan(ExactSum().mean(0))


@given(numbers)
def test_sum_comes_back_from_json(values):
    result = total(values)
    assert ExactSum.from_json(json.loads(json.dumps(result.to_json()))) == result


@pytest.mark.parametrize('text', ['', 'a', '1/0', None])
def test_what_is_no_ratio_is_refused(text):
    with pytest.raises(InputError, match='is no sum; it must be a ratio like 7/2'):
        ExactSum.from_json(text)
