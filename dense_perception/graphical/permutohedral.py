"""Gaussian filtering of values at scattered points, in time linear in their number."""

from typing import Any

from dense_perception.errors import InputError
import torch
from torch import Tensor
import torch.nn.functional as F


class PermutohedralLattice:
    """
    Approximate Gaussian filter in a space of few dimensions.

    Adams, Baek and Davis (2010), section 3. Points of d features lie in simplices of a lattice
    that has d + 1 axes. A point's value is shared among the d + 1 vertices of its simplex
    (splat), vertices are blurred with (1/2, 1, 1/2) along each axis in turn (blur), and points
    read from their vertices (slice). The lattice holds only vertices that a point touches. It is
    built once; filtering is then nothing but weighted sums of rows that are listed in tables.
    """

    def __init__(self, features: Tensor) -> None:
        """
        Build the lattice.

        :param features: (P, d) float; one point per row, in units of the standard deviation.
        :raises InputError: the features are not finite, or spread too far to be numbered.
        """
        points, dimensions = features.shape
        self.axes = dimensions + 1
        corners, self._ranks, self._shares = _enclosing_simplices(features)
        keys, strides = _keys(corners, self._ranks)
        self._keys, self._vertices = torch.unique(keys, return_inverse=True)  # (M,), (d + 1, P)
        self._splat = _Rows.of_vertices(self._vertices, self._shares, len(self._keys))
        self._slice = _Rows(
            self._vertices.T.contiguous(),
            # The scale makes a point on a vertex weigh itself with 1, if all neighbours exist.
            self._shares.T.contiguous() / (1 + 2.0**-dimensions),
        )
        self._neighbours = [self._find_neighbours(strides, axis) for axis in range(self.axes)]
        self._blurs = [self._blur(*neighbours) for neighbours in self._neighbours]

    def __len__(self) -> int:
        """Return the number of vertices."""
        return len(self._keys)

    def filter(self, values: Tensor, *, transposed: bool = False) -> Tensor:
        """
        Sum the values of all points, weighted by a Gaussian of their distance.

        Differentiable in the values.

        :param values: (P, C) float.
        :param transposed: apply the transposed filter, which blurs the axes in reverse order.
        :returns: (P, C); not normalised, a point's own weight is at most about 1.
        """
        return _Filter.apply(values, self, transposed)

    def apply_tables(self, values: Tensor, transposed: bool) -> Tensor:
        """Return `filter` of the values, without derivatives."""
        vertex_values = self._splat.sums(values)  # (M, C)
        for blur in reversed(self._blurs) if transposed else self._blurs:
            vertex_values = blur.sums(vertex_values)
        return self._slice.sums(vertex_values)

    def diagonal(self) -> Tensor:
        """
        Weight with which each point enters its own sum, (P,).

        Each blur goes one step or none along its axis. From one vertex of a simplex to another,
        either the axes between them are gone forwards, or all others are gone backwards.
        """
        total = torch.zeros_like(self._shares[0])
        for start in range(self.axes):
            for end in range(self.axes):
                # An axis lies between two vertices if its rank does.
                low, high = self.axes - 1 - max(start, end), self.axes - 1 - min(start, end)
                between = (self._ranks > low) & (self._ranks <= high)  # (d + 1, P)
                both = self._shares[start] * self._shares[end]
                forwards = int(end >= start)
                total += both * self._path_weights(start, between, forwards)
                total += both * self._path_weights(start, ~between, 1 - forwards)
                if start == end:
                    total += both * self._path_weights(start, ~between, forwards)
        return total / (1 + 2.0 ** (1 - self.axes))

    def _path_weights(self, start: int, gone: Tensor, direction: int) -> Tensor:
        """Blur weight from a vertex along the axes that are gone, 0 if a vertex is missing."""
        place = self._vertices[start]
        exists = torch.ones_like(place, dtype=torch.bool)
        for axis, (indices, found) in enumerate(self._neighbours):
            exists = exists & (~gone[axis] | found[place, direction])
            place = torch.where(gone[axis], indices[place, direction], place)
        return torch.where(exists, 0.5 ** gone.sum(0), 0)

    def _find_neighbours(self, strides: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Index of the vertex before and after each along an axis, and if it exists; (M, 2)."""
        step = strides.sum() - self.axes * strides[axis]  # last stride is 0
        wanted = torch.stack([self._keys - step, self._keys + step], 1)  # (M, 2)
        indices = torch.searchsorted(self._keys, wanted).clamp_max(len(self._keys) - 1)
        return indices, self._keys[indices] == wanted

    def _blur(self, indices: Tensor, found: Tensor) -> '_Rows':
        own = torch.arange(len(indices), device=indices.device)[:, None]
        weights = 0.5 * found.to(self._shares.dtype)
        return _Rows(
            torch.cat([own, indices], 1),
            torch.cat([torch.ones_like(weights[:, :1]), weights], 1),
        )


class _Rows:
    """Lists of rows and their weights, one list for each row of the result."""

    def __init__(self, rows: Tensor, weights: Tensor, starts: Tensor | None = None) -> None:
        """
        Keep the lists.

        :param rows: (R, K) integers; or all lists in one, where their starts are given.
        :param weights: the same shape.
        :param starts: (R,) integers, index of the first entry of each list.
        """
        self.rows, self.weights, self.starts = rows, weights, starts

    @classmethod
    def of_vertices(cls, vertices: Tensor, shares: Tensor, count: int) -> '_Rows':
        """List for each vertex the points of whose simplex it is one; both (d + 1, P)."""
        points = vertices.shape[1]
        order = vertices.flatten().argsort(stable=True)
        sizes = torch.bincount(vertices.flatten(), minlength=count)
        starts = sizes.cumsum(0) - sizes
        return cls(order % points, shares.flatten()[order], starts)

    def sums(self, values: Tensor) -> Tensor:
        """Return the weighted sum of the rows of each list, (R, C)."""
        return F.embedding_bag(
            self.rows,
            values,
            self.starts,
            mode='sum',
            per_sample_weights=self.weights.to(values.dtype),
        )


class _Filter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, lattice: PermutohedralLattice, transposed: bool
    ) -> Tensor:
        ctx.lattice, ctx.transposed = lattice, transposed
        return lattice.apply_tables(values.contiguous(), transposed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.lattice.filter(gradients[0], transposed=not ctx.transposed), None, None


def _elevation(dimensions: int) -> Tensor:
    """
    Matrix onto the plane of the lattice, (d, d + 1).

    Adams, Baek and Davis (2010), section 3.1: an orthogonal basis of the plane whose coordinates
    sum to 0, scaled so that splat, blur and slice together have a standard deviation of about 1.
    """
    scale = (2 / 3) ** 0.5 * (dimensions + 1)
    matrix = torch.zeros(dimensions, dimensions + 1, dtype=torch.float64)
    for row in range(dimensions):
        matrix[row, : row + 1] = 1
        matrix[row, row + 1] = -(row + 1)
        matrix[row] *= scale / ((row + 1) * (row + 2)) ** 0.5
    return matrix


def _enclosing_simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """
    Find the simplex that each point lies in.

    Adams, Baek and Davis (2010), section 3.1.

    :param features: (P, d).
    :returns: vertex 0 in units of d + 1, integers; ranks of the point's coordinates relative to
        it, 0 for the largest; the point's barycentric coordinates. Each (d + 1, P).
    """
    axes = features.shape[1] + 1
    elevation = _elevation(axes - 1).to(features)
    elevated = elevation.T @ features.T  # (d + 1, P)
    if not bool(elevated.isfinite().all()):
        raise InputError('features for the lattice hold nan or infinity; all must be finite')
    corners = (elevated / axes).round()
    ranks = _ranks(elevated - axes * corners) + corners.sum(0).long()
    # Rounding may leave the plane; the coordinates that were rounded furthest bring it back.
    back = (ranks < 0).long() - (ranks >= axes).long()
    corners, ranks = corners + back, ranks + axes * back
    distances = elevated - axes * corners
    ordered = torch.empty_like(distances).scatter_(0, ranks, distances) / axes
    shares = (ordered[:-1] - ordered[1:]).flip(0)
    return corners.long(), ranks, torch.cat([1 - shares.sum(0, keepdim=True), shares])


def _ranks(values: Tensor) -> Tensor:
    """Place of each value in its column, 0 for the largest; of equal ones the first is first."""
    ranks = torch.zeros_like(values, dtype=torch.long)
    for first in range(len(values)):
        for second in range(first + 1, len(values)):
            smaller = values[first] < values[second]
            ranks[first] += smaller
            ranks[second] += ~smaller
    return ranks


def _keys(corners: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """
    Give each vertex of the simplices a number, such that a step on the lattice adds a constant.

    The last coordinate follows from the others and is left out: its stride is 0.

    :returns: keys, (d + 1, P), in the order of the vertices; stride per coordinate, (d + 1,).
    """
    axes = len(corners)
    low = corners.amin(1) - 2  # vertices and their neighbours lie within two units of the corner
    spans = ((corners.amax(1) + 3 - low) * axes).tolist()
    strides, size = [], 1
    for span in spans[:-1]:
        strides.append(size)
        size *= span
    if size >= 2**62:
        raise InputError(f'features for the lattice spread over {size} cells; 2^62 is the most')
    stride = torch.tensor([*strides, 0], device=corners.device)
    base = ((corners - low[:, None]) * axes * stride[:, None]).sum(0)  # (P,)
    keys = []
    for vertex in range(axes):
        wrapped = ((ranks > axes - 1 - vertex) * stride[:, None]).sum(0)
        keys.append(base + vertex * stride.sum() - axes * wrapped)
    return torch.stack(keys), stride
