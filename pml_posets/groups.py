"""Groups of samples that may overlap, in the space they are measured in: distances, similarities, merging."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

_ROW_BYTES = 1 << 22  # rows gathered at a time, to stay in the cache
_BLOCK_NUMBERS = 1 << 23  # distances or comparisons held at a time


@dataclass(frozen=True)
class Space:
    """Features on a device, each row also mirrored where mirror images are in use.

    Args:
        table: (N, D) float32.
        mirror: (N, D) float32 or None.
        scale: of the similarity exp(-distance / scale).
    """

    table: Tensor
    mirror: Tensor | None
    scale: float

    @classmethod
    def of(
        cls,
        features: np.ndarray,
        mirrored: np.ndarray | None,
        scale: float,
        device: str | torch.device = "cpu",
    ) -> Space:
        """From validated features; on the CPU without a copy."""
        mirror = None if mirrored is None else torch.from_numpy(mirrored).to(device)
        return cls(torch.from_numpy(features).to(device), mirror, float(scale))

    def rows(self, indices: np.ndarray, flips: np.ndarray) -> Tensor:
        """(..., D) rows of (...) samples, mirrored where flipped; any row for an index of -1."""
        place = self.table.device
        index = torch.from_numpy(np.maximum(indices, 0).reshape(-1)).to(place)
        rows = self.table.index_select(0, index)
        if self.mirror is not None and flips.any():
            where = torch.from_numpy(flips.reshape(-1)).to(place)
            rows[where] = self.mirror[index[where]]
        return rows.view(*indices.shape, -1)

    def distances(
        self,
        indices: np.ndarray,
        flips: np.ndarray,
        others: np.ndarray | None = None,
        other_flips: np.ndarray | None = None,
    ) -> Tensor:
        """Euclidean distances inside groups, or from their members to other ones.

        By matrix products of rows centred on the first of each group, so that rounding stays small beside the
        distances in it; a few groups at a time, so that their rows stay in the processor's cache.

        Args:
            indices: (G, S) int64 samples; any distance where one is -1.
            flips: (G, S) bool, True where it takes part mirrored.
            others: (G, R) int64 samples, or None (default) for the same as indices.
            other_flips: (G, R) bool, with others.

        Returns:
            (G, S, R) float32, on the device.
        """
        width = indices.shape[1] if others is None else others.shape[1]
        result = self.table.new_empty((*indices.shape, width))
        budget = _ROW_BYTES if self.table.device.type == "cpu" else 64 * _ROW_BYTES
        step = max(1, budget // (4 * self.table.shape[1] * (indices.shape[1] + width)))
        for first in range(0, len(indices), step):
            part = slice(first, first + step)
            rows = self.rows(indices[part], flips[part])
            centre = rows[:, :1].clone()
            rows -= centre
            if others is None or other_flips is None:
                found = torch.bmm(rows, rows.transpose(1, 2))
                squares = other_squares = found.diagonal(dim1=1, dim2=2).clone()
            else:
                columns = self.rows(others[part], other_flips[part])
                columns -= centre
                found = torch.bmm(rows, columns.transpose(1, 2))
                squares, other_squares = (
                    torch.linalg.vector_norm(x, dim=2).square_() for x in (rows, columns)
                )
            found.mul_(-2).add_(squares[:, :, None]).add_(other_squares[:, None, :])
            torch.sqrt(found.clamp_min_(0), out=result[part])
        return result


def blocks(num_groups: int, numbers: int) -> Iterator[slice]:
    """Slices of groups of which each takes this many numbers, in bounded memory."""
    step = max(1, _BLOCK_NUMBERS // max(1, numbers))
    for first in range(0, num_groups, step):
        yield slice(first, min(first + step, num_groups))


@dataclass
class Groups:
    """G groups of up to S samples.

    Args:
        members: (G, S) int64 dataset indices, each group's first, then -1 to the end.
        flips: (G, S) bool, True where a member takes part mirrored; False beside -1.
    """

    members: np.ndarray
    flips: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """(G,) int64."""
        return (self.members >= 0).sum(axis=1)

    def pick(self, which: np.ndarray) -> Groups:
        """Some of the groups."""
        return Groups(self.members[which], self.flips[which])

    def similarities(self, space: Space) -> np.ndarray:
        """(G, S) float64, the mean similarity of each member to the others of its group; 0 beside -1."""
        result = np.zeros(self.members.shape)
        sizes = self.sizes
        order = np.argsort(sizes, kind="stable")[::-1]
        for size in _steps(sizes):
            part = order[(sizes[order] <= size[1]) & (sizes[order] > size[0])]
            for block in blocks(part.size, size[1] ** 2):
                chosen = part[block]
                members, flips = self.members[chosen, : size[1]], self.flips[chosen, : size[1]]
                near = torch.exp(space.distances(members, flips).double() / -space.scale)
                there = torch.from_numpy(members >= 0).to(near.device)
                near *= there[:, :, None] & there[:, None, :]
                near.diagonal(dim1=1, dim2=2).zero_()
                total = near.sum(2).cpu().numpy()
                result[chosen, : size[1]] = total / np.maximum(sizes[chosen] - 1, 1)[:, None]
        return result

    def compactness(self, space: Space) -> np.ndarray:
        """(G,) float64, the mean similarity over the pairs of a group; 0 for a group of one."""
        return self.similarities(space).sum(axis=1) / np.maximum(self.sizes, 1)


def _steps(sizes: np.ndarray) -> list[tuple[int, int]]:
    """Ranges (above, up to] of sizes to be padded alike, a quarter more at a time."""
    edges = [1]
    while edges[-1] < sizes.max(initial=0):
        edges.append(min(int(sizes.max()), edges[-1] + max(1, edges[-1] // 4)))
    return list(pairwise(edges))


def unique_groups(groups: Groups, owner: np.ndarray) -> tuple[Groups, np.ndarray]:
    """Of groups with the same members the first; owner (N,) then names the one that stayed."""
    if not len(groups.members):
        return groups, owner
    ordered = np.sort(groups.members, axis=1)
    order = np.lexsort(ordered.T)
    fresh = np.concatenate([[True], (ordered[order[1:]] != ordered[order[:-1]]).any(axis=1)])
    run = np.cumsum(fresh) - 1
    first = np.minimum.reduceat(order, np.flatnonzero(fresh))  # (runs,) lowest id of each
    kept = np.sort(first)
    place = np.empty(len(order), np.int64)
    place[order] = np.searchsorted(kept, first[run])
    return groups.pick(kept), np.where(owner >= 0, place[owner], -1)


def merge(
    groups: Groups,
    owner: np.ndarray,
    space: Space,
    *,
    overlap: float,
    max_size: int,
    codes: np.ndarray | None = None,
) -> Groups:
    """Merge highly overlapping groups, agglomeratively.

    In each pass a group looks for the more compact one (by mean similarity of its pairs) that it overlaps most, as
    a share of the smaller of the two. Where that one has itself no such partner, the two merge, unless the mean
    similarity of the pairs in their union is less than half that of the looser of them. Passes go on until nothing
    merges. A union keeps the members most similar to the more compact group, at most max_size, one a source.

    Args:
        groups: G groups.
        owner: (N,) int64, the group grown from each sample, -1 for none. Groups are compared with those grown from
            their members, so that the pairs to compare number at most G x S.
        space: what similarities are measured in.
        overlap: share of the smaller group from which two groups overlap highly, in (0, 1].
        max_size: members of a merged group at most.
        codes: (N,) int64 sources; None: no rule about them.

    Returns:
        The groups that are left.
    """
    members, flips = groups.members.copy(), groups.flips.copy()
    owner = owner.copy()
    compact = groups.compactness(space)
    alive = np.ones(len(members), bool)
    refused = np.zeros(0, np.int64)  # pairs that the stopping rule kept apart
    while True:
        child, leader = _partners(members, owner, alive, compact, overlap, refused)
        if not child.size:
            return Groups(members[alive], flips[alive])
        turned, joint = _join(Groups(members, flips), leader, child)
        ok = joint.compactness(space) >= 0.5 * np.minimum(compact[leader], compact[child])
        refused = np.union1d(refused, _pair_keys(leader[~ok], child[~ok], len(members)))
        if not ok.any():
            continue
        child, leader, turned = child[ok], leader[ok], turned[ok]
        changed, united = _unite(Groups(members, flips), leader, child, turned, space, max_size, codes)
        members[changed], flips[changed] = united.members, united.flips
        compact[changed] = united.compactness(space)
        members[child], flips[child] = -1, False
        alive[child] = False
        target = np.arange(len(members))
        target[child] = leader
        owner = np.where(owner >= 0, target[owner], -1)


def _pair_keys(a: np.ndarray, b: np.ndarray, num_groups: int) -> np.ndarray:
    return np.minimum(a, b) * num_groups + np.maximum(a, b)


def _matches(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P, S, S) bool: which members of the groups (P, S) are the same sample."""
    return (a[:, :, None] == b[:, None, :]) & (a >= 0)[:, :, None]


def _partners(
    members: np.ndarray,
    owner: np.ndarray,
    alive: np.ndarray,
    compact: np.ndarray,
    overlap: float,
    refused: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (child, leader) to merge in this pass; a leader may have several children, but is nobody's child."""
    num_groups, width = members.shape
    group = np.repeat(np.arange(num_groups), width)[members.reshape(-1) >= 0]
    other = owner[members[members >= 0]]
    met = (other >= 0) & (other != group)
    keys = np.setdiff1d(_pair_keys(group[met], other[met], num_groups), refused)
    a, b = keys // num_groups, keys % num_groups
    sizes = (members >= 0).sum(axis=1)
    shared = np.zeros(keys.size, np.int64)
    for part in blocks(keys.size, width**2):
        shared[part] = _matches(members[a[part]], members[b[part]]).sum(axis=(1, 2))
    share = shared / np.maximum(np.minimum(sizes[a], sizes[b]), 1)
    high = share >= overlap
    a, b, share = a[high], b[high], share[high]
    rank = np.empty(num_groups, np.int64)  # 0 for the most compact
    rank[np.lexsort((np.arange(num_groups), -compact))] = np.arange(num_groups)
    child, leader = np.where(rank[a] > rank[b], a, b), np.where(rank[a] > rank[b], b, a)
    order = np.lexsort((rank[leader], -share, child))
    child, first_of = np.unique(child[order], return_index=True)
    leader = leader[order][first_of]
    is_child = np.zeros(num_groups, bool)
    is_child[child] = True
    free = ~is_child[leader]
    child, leader = child[free], leader[free]
    order = np.lexsort((rank[child], leader))
    return child[order], leader[order]


def _join(groups: Groups, leader: np.ndarray, child: np.ndarray) -> tuple[np.ndarray, Groups]:
    """The union of each pair in full, and whether the child stands the other way round (by shared members)."""
    a, b = groups.members[leader], groups.members[child]
    a_flips, b_flips = groups.flips[leader], groups.flips[child]
    turned = np.zeros(leader.size, bool)
    fresh = np.zeros(b.shape, bool)
    for part in blocks(leader.size, a.shape[1] ** 2):
        same = _matches(a[part], b[part])
        fresh[part] = (b[part] >= 0) & ~same.any(axis=1)
        opposed = (same & (a_flips[part][:, :, None] != b_flips[part][:, None, :])).sum(axis=(1, 2))
        turned[part] = 2 * opposed > same.sum(axis=(1, 2))
    joint = np.concatenate([a, np.where(fresh, b, -1)], axis=1)
    joint_flips = np.concatenate([a_flips, fresh & (b_flips ^ turned[:, None])], axis=1)
    front = np.argsort(joint < 0, axis=1, kind="stable")
    return turned, Groups(np.take_along_axis(joint, front, 1), np.take_along_axis(joint_flips, front, 1))


def _unite(
    groups: Groups,
    leader: np.ndarray,
    child: np.ndarray,
    turned: np.ndarray,
    space: Space,
    max_size: int,
    codes: np.ndarray | None,
) -> tuple[np.ndarray, Groups]:
    """The leaders' ids and what each is after taking in its children (sorted by leader)."""
    changed = np.unique(leader)
    # One entry a (leader, sample): the leader's own before its children's, whose orientation follows theirs.
    rows = np.concatenate([changed, leader])
    samples = np.concatenate([groups.members[changed], groups.members[child]])
    flips = np.concatenate([groups.flips[changed], groups.flips[child] ^ turned[:, None]])
    there = samples >= 0
    place = np.searchsorted(changed, np.repeat(rows, samples.shape[1])[there.reshape(-1)])
    sample, flip = samples[there], flips[there]
    num_samples = len(space.table)
    key, once = np.unique(place * num_samples + sample, return_index=True)
    place, sample, flip = key // num_samples, key % num_samples, flip[once]
    own = groups.pick(changed)
    score = _similarity_to(own, place, sample, flip, space)
    order = np.lexsort((sample, -score, place))
    place, sample, flip = place[order], sample[order], flip[order]
    if codes is not None:
        source = codes[sample]
        best = np.unique(place * (codes.max() + 1) + source, return_index=True)[1]
        best.sort()
        place, sample, flip = place[best], sample[best], flip[best]
    starts = np.searchsorted(place, np.arange(changed.size))
    position = np.arange(place.size) - starts[place]
    short = position < max_size
    shape = (changed.size, groups.members.shape[1])
    united = Groups(np.full(shape, -1, np.int64), np.zeros(shape, bool))
    united.members[place[short], position[short]] = sample[short]
    united.flips[place[short], position[short]] = flip[short]
    return changed, united


def _similarity_to(
    own: Groups, place: np.ndarray, sample: np.ndarray, flip: np.ndarray, space: Space
) -> np.ndarray:
    """(E,) mean similarity of each entry (sorted by place) to the members of group `place`, itself left out."""
    counts = np.bincount(place, minlength=len(own.members))
    starts = np.concatenate([[0], np.cumsum(counts)])
    score = np.zeros(place.size)
    for above, width in _steps(counts):
        part = np.flatnonzero((counts > above) & (counts <= width))
        for block in blocks(part.size, width * own.members.shape[1]):
            chosen = part[block]
            entry = np.minimum(starts[chosen][:, None] + np.arange(width), place.size - 1)  # (b, width)
            inside = np.arange(width) < counts[chosen][:, None]
            members = own.members[chosen]
            gaps = space.distances(sample[entry], flip[entry], members, own.flips[chosen])
            near = torch.exp(gaps.double() / -space.scale).cpu().numpy()
            counted = (members >= 0)[:, None, :] & (sample[entry][:, :, None] != members[:, None, :])
            mean = (near * counted).sum(axis=2) / np.maximum(counted.sum(axis=2), 1)
            score[entry[inside]] = mean[inside]
    return score
