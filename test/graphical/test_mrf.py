from itertools import product

from dense_perception.errors import InputError
from dense_perception.graphical.mrf import alpha_beta_swap, energy, joint_costs
import numpy as np
import pytest

SEEDS = range(12)


def problem(seed, nodes=7, classes=3):
    """Random costs; pairwise ones that break the triangle inequality too."""
    random = np.random.default_rng(seed)
    unary = random.normal(size=(nodes, classes))
    pairs = np.array([(a, b) for a in range(nodes) for b in range(a + 1, nodes)])
    edges = pairs[random.random(len(pairs)) < 0.5]
    pairwise = random.exponential(size=(classes, classes)) ** 2
    pairwise = pairwise + pairwise.T
    np.fill_diagonal(pairwise, 0)
    return unary, edges, pairwise


def least(unary, edges, pairwise):
    nodes, classes = unary.shape
    labellings = (np.array(one) for one in product(range(classes), repeat=nodes))
    return min(energy(one, unary, edges, pairwise) for one in labellings)


def test_energy_of_a_chain_by_hand():
    unary = np.array([[1.0, 5.0], [2.0, 7.0], [4.0, 3.0]])
    pairwise = np.array([[0.0, 10.0], [10.0, 0.0]])
    edges = np.array([[0, 1], [1, 2]])
    assert energy(np.array([0, 0, 1]), unary, edges, pairwise) == 1 + 2 + 3 + 10
    assert energy(np.array([0, 0, 0]), unary, edges, pairwise) == 1 + 2 + 4
    assert alpha_beta_swap(unary, edges, pairwise).tolist() == [0, 0, 0]


@pytest.mark.parametrize('seed', SEEDS)
def test_two_labels_reach_the_least_energy(seed):
    costs = problem(seed, nodes=8, classes=2)
    assert energy(alpha_beta_swap(*costs), *costs) == pytest.approx(least(*costs), abs=1e-6)


@pytest.mark.parametrize('seed', SEEDS)
def test_three_labels_end_between_the_least_energy_and_where_they_start(seed):
    costs = problem(seed)
    start = np.random.default_rng(seed).integers(3, size=7)
    reached = energy(alpha_beta_swap(*costs, start), *costs)
    assert least(*costs) - 1e-9 <= reached <= energy(start, *costs)


@pytest.mark.parametrize('seed', SEEDS)
def test_no_exchange_between_two_labels_lowers_the_energy_further(seed):
    costs = problem(seed)
    labels = alpha_beta_swap(*costs)
    reached = energy(labels, *costs)
    for pair in ((0, 1), (0, 2), (1, 2)):
        inside = np.flatnonzero(np.isin(labels, pair))
        for choice in product(pair, repeat=len(inside)):
            other = labels.copy()
            other[inside] = choice
            assert energy(other, *costs) >= reached - 1e-6


def test_energy_falls_where_labels_start_badly():
    costs = problem(0, nodes=40, classes=6)
    start = costs[0].argmax(1)
    assert energy(alpha_beta_swap(*costs, start), *costs) < energy(start, *costs) - 1


def test_without_pairwise_costs_each_node_takes_its_cheapest_label():
    unary, edges, pairwise = problem(1, nodes=40, classes=6)
    assert np.array_equal(alpha_beta_swap(unary, edges, 0 * pairwise), unary.argmin(1))


def test_no_edges_and_one_node_are_fine():
    nobody = np.zeros((0, 2), np.int64)
    assert alpha_beta_swap(np.array([[3.0, 1.0, 2.0]]), nobody, np.zeros((3, 3))).tolist() == [1]


def test_start_is_left_as_it_is():
    costs = problem(2)
    start = np.zeros(7, np.int64)
    alpha_beta_swap(*costs, start)
    assert not start.any()


@pytest.mark.parametrize('seed', range(4))
def test_joint_energy_is_the_sum_of_both_and_of_incompatible_pairs(seed):
    unary, edges, pairwise = problem(seed)
    other_unary, _, other_pairwise = problem(seed + 50, classes=2)
    incompatible = np.array([[False, True], [True, False], [False, False]])
    costs = joint_costs((unary, pairwise), (other_unary, other_pairwise), incompatible, 0.7)
    random = np.random.default_rng(seed)
    first, second = random.integers(3, size=7), random.integers(2, size=7)
    together = energy(first * 2 + second, costs[0], edges, costs[1])
    apart = energy(first, unary, edges, pairwise) + energy(
        second, other_unary, edges, other_pairwise
    )
    assert together == pytest.approx(apart + 0.7 * incompatible[first, second].sum())
    best = energy(alpha_beta_swap(costs[0], edges, costs[1]), costs[0], edges, costs[1])
    assert best <= together


@pytest.mark.parametrize(
    ('pairwise', 'message'),
    [
        (np.array([[0.0, 1], [2, 0]]), 'symmetric'),
        (np.array([[0.0, -1], [-1, 0]]), 'not negative'),
        (np.array([[1.0, 2], [2, 1]]), '0 for equal labels'),
        (np.zeros((3, 3)), r'pairwise costs are \(3, 3\); \(2, 2\) is needed'),
        (np.array([[0.0, np.inf], [np.inf, 0]]), 'not finite'),
    ],
)
def test_costs_that_no_cut_can_serve_are_refused(pairwise, message):
    with pytest.raises(InputError, match=message):
        alpha_beta_swap(np.zeros((4, 2)), np.array([[0, 1]]), pairwise)


def test_edges_to_missing_nodes_are_refused():
    with pytest.raises(InputError, match='edges name nodes 0 to 4; there are 4'):
        alpha_beta_swap(np.zeros((4, 2)), np.array([[0, 4]]), np.zeros((2, 2)))
