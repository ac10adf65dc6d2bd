"""Agglomerative clustering of one image after the other, compiled with numba; :mod:`vitrim.kernels.clustering_cpu` runs it.

Distances are compared as integers, by the bit patterns of floating-point numbers, which order as the numbers do: minima
of integers run on vector units, minima of floats (which must care for NaN) do not, and that is a factor of five.

Complete and average linkage use a nearest-neighbour array in which every row knows a lower bound of its nearest
distance. Merges come in height order, so the search stops after ``n - k`` of them instead of building the whole tree
(Müllner, Modern hierarchical, agglomerative clustering algorithms, arXiv:1109.2378). Single linkage is Prim's minimum
spanning tree without its ``k - 1`` longest edges.
"""

# pyright: basic, reportUnknownParameterType=false, reportMissingParameterType=false
# Compiled by numba, which finds the types itself.
from __future__ import annotations

import numpy as np
from numba import njit

SINGLE, COMPLETE, AVERAGE = 0, 1, 2
LINKAGES = {"single": SINGLE, "complete": COMPLETE, "average": AVERAGE}
# Marks: the larger of an entry and its mark is the entry of the living, and DEAD for the others.
ALIVE, DEAD = -(2**63), 2**63 - 1


# All in one file: compiled code is kept on disk until this file changes.
# Loops are spelt out, also where NumPy has a word: array expressions take seconds to compile.
# Loops that matter run over slices: from a variable start, every index would be checked for being negative.


@njit(nogil=True, cache=True)
def cluster_images(data, labels, k, linkage, cosine, unit, tile, matrix, keys, rows):
    """Cluster the images of ``data`` one after the other. ``keys`` is ``matrix``, seen as integers."""
    n = labels.shape[1]
    low, mask, parent, spare, more, rest = rows[0, :n], rows[1, :n], rows[2, :n], rows[3, :n], rows[4, :n], rows[5, :n]
    for image in range(len(data)):
        for a in range(n):
            mask[a] = ALIVE
            parent[a] = a
        if cosine:
            _cosine_distances(data[image], unit, tile, matrix)
        else:
            _copy_distances(data[image], tile, matrix)
            _make_sortable(matrix, keys, n, linkage == AVERAGE)
        if linkage != SINGLE or not _spanning_tree(keys, n, k, low, mask, parent, spare, more, rest):
            _nearest_neighbours(matrix, keys, n, k, linkage, low, mask, parent, spare, more, rest)
        count = 0
        for a in range(n):
            # Clusters are called by their first member, so a parent comes before its children.
            labels[image, a] = count if parent[a] == a else labels[image, parent[a]]
            count += parent[a] == a


@njit(nogil=True, cache=True, inline="always")
def _smallest(row, mask):
    """Smallest entry that is not masked."""
    smallest = DEAD
    for j in range(len(row)):
        smallest = min(smallest, max(row[j], mask[j]))
    return smallest


@njit(nogil=True, cache=True, inline="always")
def _place(row, mask, value):
    """First position of a value that is not masked. This and the search for the value each run on vector units."""
    first = DEAD
    for j in range(len(row)):
        first = min(first, j if max(row[j], mask[j]) == value else DEAD)
    return first


@njit(nogil=True, cache=True, fastmath={"contract", "nsz"})
def _nearest_neighbours(matrix, keys, n, k, linkage, low, mask, parent, size, seen, merged):
    """Merge the closest pair ``n - k`` times: smallest distance, then lowest row, then lowest column.

    A merge changes one row and one column. Columns are strided, hence slow, so they wait: ``merged`` lists the clusters
    whose columns are out of date, ``seen`` how far along that list each row is. A row catches up when it is looked at.
    """
    for i in range(n):
        low[i] = _smallest(keys[i, i + 1 : n], mask[i + 1 : n])
        size[i] = 1
        seen[i] = 0
    done = 0
    while done < n - k:
        # The dead have a bound that is never the lowest: no mask is needed, and a row is as good as any.
        bound = _smallest(low, low)
        i = _place(low, low, bound)
        row = keys[i]
        _catch_up(keys, i, merged, seen, done)
        value = _smallest(row[i + 1 : n], mask[i + 1 : n])
        if value > bound:
            # The neighbour of this row was merged away; its bound is exact again now.
            low[i] = value
            continue
        j = i + 1 + _place(row[i + 1 : n], mask[i + 1 : n], value)
        _catch_up(keys, j, merged, seen, done)
        _combine(matrix, keys, n, i, j, linkage, size)
        mask[j] = low[j] = DEAD
        parent[j] = i
        merged[done] = i
        done += 1
        seen[i] = done
        for a in range(i):
            low[a] = min(low[a], max(row[a], mask[a]))
        low[i] = _smallest(row[i + 1 : n], mask[i + 1 : n])


@njit(nogil=True, cache=True, inline="always")
def _catch_up(keys, a, merged, seen, done):
    """Fetch what row ``a`` has missed from the rows of the clusters that were merged since it was last looked at."""
    for e in range(seen[a], done):
        keys[a, merged[e]] = keys[merged[e], a]
    seen[a] = done


@njit(nogil=True, cache=True, fastmath={"contract", "nsz"})
def _combine(matrix, keys, n, i, j, linkage, size):
    """Distances from the union of clusters ``i`` and ``j``, into row ``i`` (Lance and Williams, 1967)."""
    if linkage == AVERAGE:
        here, there = matrix[i], matrix[j]
        ours, theirs, both = float(size[i]), float(size[j]), float(size[i] + size[j])
        for a in range(n):
            here[a] = (ours * here[a] + theirs * there[a]) / both
    else:
        row, other = keys[i], keys[j]
        if linkage == SINGLE:
            for a in range(n):
                row[a] = min(row[a], other[a])
        else:
            for a in range(n):
                row[a] = max(row[a], other[a])
    size[i] += size[j]


@njit(nogil=True, cache=True)
def _spanning_tree(keys, n, k, weight, mask, parent, near, end, best):
    """Single linkage by Prim's algorithm. False, and nothing done, where equal distances make the cut ambiguous."""
    for j in range(n):
        best[j] = keys[0, j]
        near[j] = 0
    mask[0] = DEAD
    for edge in range(n - 1):
        value = _smallest(best, mask)
        u = _place(best, mask, value)
        weight[edge], end[edge] = value, u
        mask[u] = DEAD
        row = keys[u]
        for j in range(n):
            closer = (row[j] < best[j]) & (mask[j] != DEAD)
            near[j] = u if closer else near[j]
            best[j] = min(best[j], row[j])
    for j in range(n):
        mask[j] = ALIVE
    if k == n:
        return True
    cut = _rank(weight[: n - 1], n - k)
    below = 0
    for edge in range(n - 1):
        below += weight[edge] <= cut
    if below > n - k:
        return False
    for edge in range(n - 1):
        if weight[edge] <= cut:
            a, b = _root(parent, near[end[edge]]), _root(parent, end[edge])
            parent[max(a, b)] = min(a, b)
    return True


@njit(nogil=True, cache=True)
def _root(parent, a):
    while parent[a] != a:
        parent[a] = parent[parent[a]]
        a = parent[a]
    return a


@njit(nogil=True, cache=True)
def _rank(values, place):
    """The ``place``-th smallest of some integers, by bisection: 64 counts, which is less than a sort."""
    low, high = ALIVE, DEAD
    while low < high:
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        count = 0
        for j in range(len(values)):
            count += values[j] <= middle
        if count >= place:
            high = middle
        else:
            low = middle + 1
    return low


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def _cosine_distances(x, unit, tile, matrix):
    """Distances ``1 - cos`` of the rows of ``x (n, d)``, at least 0; a zero vector is at distance 1 from all others.

    ``unit (d, stride)`` gets the unit vectors as columns. Sixteen rows at a time go through it, so that what is read from
    the second cache serves sixteen times; eight channels a pass, so that a running sum is loaded and stored once for eight.
    """
    n = len(x)
    zero, one, infinity = x.dtype.type(0), x.dtype.type(1), x.dtype.type(np.inf)
    _normalise(x, unit, tile[0])
    rows, columns = tile.shape
    for top in range(0, n, rows):
        bottom = min(top + rows, n)
        # Left of the diagonal nothing is needed.
        for left in range(top, n, columns):
            width = min(columns, unit.shape[1] - left)
            for r in range(rows):
                line = tile[r]
                for j in range(width):
                    line[j] = one
            for t in range(0, len(unit), 8):
                u0, u1, u2, u3 = unit[t, left:], unit[t + 1, left:], unit[t + 2, left:], unit[t + 3, left:]
                u4, u5, u6, u7 = unit[t + 4, left:], unit[t + 5, left:], unit[t + 6, left:], unit[t + 7, left:]
                for i in range(top, bottom):
                    line = tile[i - top]
                    a0, a1, a2, a3 = unit[t, i], unit[t + 1, i], unit[t + 2, i], unit[t + 3, i]
                    a4, a5, a6, a7 = unit[t + 4, i], unit[t + 5, i], unit[t + 6, i], unit[t + 7, i]
                    for j in range(width):
                        line[j] -= ((a0 * u0[j] + a1 * u1[j]) + (a2 * u2[j] + a3 * u3[j])) + (
                            (a4 * u4[j] + a5 * u5[j]) + (a6 * u6[j] + a7 * u7[j])
                        )
            for r in range(rows):
                line = tile[r]
                for j in range(width):
                    value = zero if line[j] < zero else line[j]
                    line[j] = value if value < infinity else infinity
            _store(tile, matrix, n, top, left)


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def _normalise(x, unit, factor):
    """Unit vectors as columns, 128 at a time: written in order, read from the first cache."""
    for start in range(0, len(x), 128):
        part = x[start : start + 128]
        for a in range(len(part)):
            row = part[a]
            square = x.dtype.type(0)
            for t in range(len(row)):
                square += row[t] * row[t]
            factor[a] = x.dtype.type(1) / max(x.dtype.type(np.sqrt(square)), x.dtype.type(1e-12))
        for t in range(x.shape[1]):
            line = unit[t, start:]
            for a in range(len(part)):
                line[a] = part[a, t] * factor[a]


@njit(nogil=True, cache=True)
def _copy_distances(distance, tile, matrix):
    """Mirror the upper triangle; what is not a finite number is further away than everything else."""
    n = len(distance)
    rows, columns = tile.shape
    infinity = tile.dtype.type(np.inf)
    for top in range(0, n, rows):
        for left in range(top, n, columns):
            for i in range(top, min(top + rows, n)):
                for j in range(left, min(left + columns, n)):
                    value = distance[min(i, j), max(i, j)]
                    tile[i - top, j - left] = value if abs(value) < infinity else infinity
            _store(tile, matrix, n, top, left)


@njit(nogil=True, cache=True)
def _store(tile, matrix, n, top, left):
    """Write a tile of distances into the matrix and, transposed, into its other half."""
    height, width = min(len(tile), n - top), min(tile.shape[1], n - left)
    for r in range(height):
        line, row = tile[r], matrix[top + r, left:]
        for c in range(width):
            row[c] = line[c]
    for c in range(width):
        row = matrix[left + c, top:]
        for r in range(height):
            row[r] = tile[r, c]


@njit(nogil=True, cache=True)
def _make_sortable(matrix, keys, n, average):
    """Make the bit patterns order as the distances, also negative ones; almost always they do already."""
    lowest = 0
    for i in range(n):
        row = keys[i]
        for j in range(n):
            lowest = min(lowest, row[j])
    if lowest >= 0:
        return
    smallest = 0.0
    for i in range(n):
        for j in range(n):
            smallest = min(smallest, matrix[i, j])
    for i in range(n):
        for j in range(n):
            if average:
                # A shift moves every average by the same amount. It also turns -0 into 0.
                matrix[i, j] = matrix[i, j] - smallest
            else:
                keys[i, j] ^= (keys[i, j] >> 63) & DEAD
