"""Markov random field over superpixels, solved by swapping two labels at a time."""

from dense_perception.errors import InputError
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# Capacities become whole numbers of 32 bits, which scipy's maximum flow takes; their sum stays
# below this, so an energy is exact to about a billionth of the largest sum.
_LARGEST_FLOW = 2**29


def energy(labels: Indices, unary: Floats, edges: Indices, pairwise: Floats) -> float:
    """
    Return the energy of a labelling; arguments as for `alpha_beta_swap`.

    :param labels: (S,) label of each node.
    """
    ends = labels[edges]
    own = unary[np.arange(len(labels)), labels].sum()
    return float(own + pairwise[ends[:, 0], ends[:, 1]].sum())


def alpha_beta_swap(
    unary: Floats, edges: Indices, pairwise: Floats, labels: Indices | None = None
) -> Indices:
    """
    Lower the energy until no exchange between two labels lowers it further.

    Boykov, Veksler and Zabih (2001), section 3. For two labels at a time, a minimum cut says which
    of the nodes that have one of them should have which. The triangle inequality is not needed.
    A cut that does not lower the energy is not taken, so the energy never rises.

    :param unary: (S, C) cost of each label at each node.
    :param edges: (E, 2) nodes that are neighbours.
    :param pairwise: (C, C) cost of two labels side by side: symmetric, not negative, 0 on the
        diagonal.
    :param labels: (S,) where to start; by default each node's cheapest.
    :returns: (S,) int64.
    :raises InputError: the pairwise costs are no semi-metric, or a cost is not finite.
    """
    _check(unary, edges, pairwise)
    labels = (unary.argmin(1) if labels is None else labels).astype(np.int64)
    lowest = energy(labels, unary, edges, pairwise)
    classes = unary.shape[1]
    pairs = [(alpha, beta) for alpha in range(classes) for beta in range(alpha + 1, classes)]
    unchanged = 0  # exchanges tried in a row without success
    while unchanged < len(pairs):
        for alpha, beta in pairs:
            swapped = _swap(labels, (alpha, beta), unary, edges, pairwise)
            reached = energy(swapped, unary, edges, pairwise)
            # Less than rounding is no gain.
            if reached < lowest - 1e-9 * (1 + abs(lowest)):
                labels, lowest, unchanged = swapped, reached, 0
            else:
                unchanged += 1
            if unchanged == len(pairs):
                break
    return labels


def joint_costs(
    first: tuple[Floats, Floats],
    second: tuple[Floats, Floats],
    incompatible: NDArray[np.bool_],
    weight: float,
) -> tuple[Floats, Floats]:
    """
    Return the costs of two labellings that are found together; Tighe and Lazebnik (2010), eq. 8.

    A pair of labels, one of each labelling, becomes one label: the second runs fastest.

    :param first: unary (S, C) and pairwise (C, C) costs of one labelling.
    :param second: unary (S, G) and pairwise (G, G) costs of the other.
    :param incompatible: (C, G), labels that should not meet at a node.
    :param weight: cost of those.
    :returns: unary (S, C G) and pairwise (C G, C G) costs; pairwise they stay a semi-metric.
    """
    (unary, pairwise), (other_unary, other_pairwise) = first, second
    classes, others = incompatible.shape
    both = unary[:, :, None] + other_unary[:, None] + weight * incompatible
    between = pairwise[:, None, :, None] + other_pairwise[None, :, None, :]
    size = classes * others
    return both.reshape(len(unary), size), between.reshape(size, size)


def _check(unary: Floats, edges: Indices, pairwise: Floats) -> None:
    nodes, classes = unary.shape
    if pairwise.shape != (classes, classes):
        raise InputError(f'pairwise costs are {pairwise.shape}; ({classes}, {classes}) is needed')
    if not (np.isfinite(unary).all() and np.isfinite(pairwise).all()):
        raise InputError('a cost is not finite')
    symmetric = np.array_equal(pairwise, pairwise.T)
    if not symmetric or (pairwise < 0).any() or pairwise.diagonal().any():
        raise InputError('pairwise costs must be symmetric, not negative, and 0 for equal labels')
    if edges.size and not (edges.min() >= 0 and edges.max() < nodes):
        raise InputError(f'edges name nodes {edges.min()} to {edges.max()}; there are {nodes}')


def _swap(
    labels: Indices, pair: tuple[int, int], unary: Floats, edges: Indices, pairwise: Floats
) -> Indices:
    """Return the best labelling that exchanges only two labels."""
    alpha, beta = pair
    inside = (labels == alpha) | (labels == beta)
    nodes = np.flatnonzero(inside)
    if not len(nodes):
        return labels
    costs = unary[:, pair].copy()  # (S, 2)
    directed = np.concatenate([edges, edges[:, ::-1]])
    outside = directed[inside[directed[:, 0]] & ~inside[directed[:, 1]]]
    for column, label in enumerate(pair):
        np.add.at(costs[:, column], outside[:, 0], pairwise[label, labels[outside[:, 1]]])
    place = np.cumsum(inside) - 1
    within = place[edges[inside[edges].all(1)]]  # (e, 2)
    first = _source_side(costs[nodes], within, float(pairwise[pair]))
    swapped = labels.copy()
    swapped[nodes] = np.where(first, alpha, beta)
    return swapped


def _source_side(costs: Floats, edges: Indices, price: float) -> NDArray[np.bool_]:
    """
    Cut nodes in two parts at the least cost.

    :param costs: (n, 2) of being in the first part, or in the second.
    :param edges: (e, 2), each cut at `price`.
    :returns: (n,) whether a node is in the first part.
    """
    count = len(costs)
    source, sink = count, count + 1
    costs = costs - costs.min(1, keepdims=True)
    places = np.arange(count)
    tails = np.concatenate([np.full(count, source), places, edges[:, 0], edges[:, 1]])
    heads = np.concatenate([places, np.full(count, sink), edges[:, 1], edges[:, 0]])
    prices = np.full(2 * len(edges), price)
    capacities = np.concatenate([costs[:, 1], costs[:, 0], prices])
    total = capacities.sum()
    if total == 0:
        return np.zeros(count, bool)
    whole = np.rint(capacities * (_LARGEST_FLOW / total)).astype(np.int32)
    graph = csr_array(coo_array((whole, (tails, heads)), (count + 2, count + 2)))
    flow = maximum_flow(graph, source, sink).flow
    residual = csr_array(graph - flow)
    residual.eliminate_zeros()
    reached = breadth_first_order(residual, source, return_predecessors=False)
    first = np.zeros(count + 2, bool)
    first[reached] = True
    return first[:count]
