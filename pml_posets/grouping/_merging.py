"""How overlapping groups become classes: highly overlapping ones merge, then each sample takes one label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ._groups import Groups, Space, blocks


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
    new_id = np.empty(len(order), np.int64)
    new_id[order] = np.searchsorted(kept, first[run])
    return groups.pick(kept), np.where(owner >= 0, new_id[owner], -1)


def merge(
    groups: Groups,
    owner: np.ndarray,
    space: Space,
    *,
    overlap: float,
    widening: float,
    max_size: int,
    codes: np.ndarray | None = None,
) -> tuple[Groups, int]:
    """Merge highly overlapping groups, agglomeratively; also the size of the largest before it was cut off.

    In each pass a group looks for the more compact one (by mean similarity of its pairs) that it overlaps
    most, as a share of the smaller of the two, among the groups grown from its members (`owner`: (N,), -1 for
    none). Where that one has itself no such partner, the two merge, unless the mean similarity of the pairs
    in their union is less than half that of the tighter of them, or their mean distance more than `widening`
    times that of the tighter. Passes go on until nothing merges. A union keeps the members most similar to
    the more compact group, at most max_size, one a source.
    """
    members, flips = groups.members.copy(), groups.flips.copy()
    owner, largest = owner.copy(), members.shape[1]
    compact, width = groups.means(space)
    alive = np.ones(len(members), bool)
    refused = np.zeros(0, np.int64)  # pairs that the stopping rule kept apart
    while True:
        child, leader = _partners(members, owner, alive, compact, overlap, refused)
        if not child.size:
            return Groups(members[alive], flips[alive]), largest
        joint = _Joint.of(Groups(members, flips), leader, child, space)
        ok = joint.compact >= 0.5 * np.maximum(compact[leader], compact[child])
        if np.isfinite(widening):
            ok &= joint.width <= widening * np.minimum(width[leader], width[child]) * (1 + 1e-6)
        refused = np.union1d(refused, _pair_keys(leader[~ok], child[~ok], len(members)))
        if not ok.any():
            continue
        child, leader, joint = child[ok], leader[ok], joint.pick(ok)
        changed, first, number = np.unique(leader, return_index=True, return_counts=True)
        united, full = _unite(joint, np.searchsorted(changed, leader), len(space.table), max_size, codes)
        largest = max(largest, full)
        wider = ((0, 0), (0, max(0, united.members.shape[1] - members.shape[1])))
        members, flips = np.pad(members, wider, constant_values=-1), np.pad(flips, wider)
        members[changed], flips[changed] = -1, False
        filled = slice(united.members.shape[1])
        members[changed, filled], flips[changed, filled] = united.members, united.flips
        compact[changed], width[changed] = joint.compact[first], joint.width[first]
        other = (number > 1) | (united.sizes != joint.groups.sizes[first])  # than the union of two, measured
        compact[changed[other]], width[changed[other]] = united.pick(other).means(space)
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
    """Pairs (child, leader) to merge in this pass; a leader has children, but is nobody's child."""
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


@dataclass
class _Joint:
    """The unions of P pairs of groups, in full."""

    groups: Groups  # (P, S): the leader's members, then the child's others, turned like the leader
    compact: np.ndarray  # (P,) mean similarity of the pairs
    width: np.ndarray  # (P,) mean distance of the pairs
    score: np.ndarray  # (P, S) mean similarity of each to the leader's members

    @classmethod
    def of(cls, groups: Groups, leader: np.ndarray, child: np.ndarray, space: Space) -> _Joint:
        """A child stands the other way round where more than half of the shared members do."""
        a, b = groups.members[leader], groups.members[child]
        a_flips, b_flips = groups.flips[leader], groups.flips[child]
        turned = np.zeros(leader.size, bool)
        fresh = np.zeros(b.shape, bool)
        for part in blocks(leader.size, a.shape[1] ** 2):
            same = _matches(a[part], b[part])
            fresh[part] = (b[part] >= 0) & ~same.any(axis=1)
            opposed = (same & (a_flips[part][:, :, None] != b_flips[part][:, None, :])).sum(axis=(1, 2))
            turned[part] = 2 * opposed > same.sum(axis=(1, 2))
        members = np.concatenate([a, np.where(fresh, b, -1)], axis=1)
        flips = np.concatenate([a_flips, fresh & (b_flips ^ turned[:, None])], axis=1)
        union, own = Groups(members, flips).packed(), (a >= 0).sum(axis=1)
        result = cls(union, np.zeros(leader.size), np.zeros(leader.size), np.zeros(members.shape))
        for chosen, gaps, pairs in union.matrices(space):
            near = torch.exp(gaps / -space.scale) * pairs
            number = pairs.sum((1, 2))
            result.compact[chosen] = (near.sum((1, 2)) / number).cpu().numpy()
            result.width[chosen] = ((gaps * pairs).sum((1, 2)) / number).cpu().numpy()
            ours = torch.from_numpy(np.arange(gaps.shape[1]) < own[chosen, None]).to(gaps.device).double()
            mean = torch.bmm(near, ours[:, :, None]) / torch.bmm(pairs, ours[:, :, None]).clamp_min(1)
            result.score[chosen, : gaps.shape[1]] = mean[:, :, 0].cpu().numpy()
        return result

    def pick(self, which: np.ndarray) -> _Joint:
        """Some of the pairs."""
        return _Joint(self.groups.pick(which), self.compact[which], self.width[which], self.score[which])


def _unite(
    joint: _Joint, group: np.ndarray, num_samples: int, max_size: int, codes: np.ndarray | None
) -> tuple[Groups, int]:
    """What each group (numbered from 0, ascending) is with the unions that it leads, cut off at max_size;
    also the size of the largest before that.
    """
    filled = joint.groups.members >= 0
    group = np.repeat(group, filled.sum(axis=1))
    sample, flip, score = joint.groups.members[filled], joint.groups.flips[filled], joint.score[filled]
    key, once = np.unique(group * num_samples + sample, return_index=True)  # as the first union has it
    group, sample, flip, score = key // num_samples, key % num_samples, flip[once], score[once]
    order = np.lexsort((sample, -score, group))
    group, sample, flip = group[order], sample[order], flip[order]
    if codes is not None:
        source = codes[sample]
        best = np.unique(group * (codes.max() + 1) + source, return_index=True)[1]
        best.sort()
        group, sample, flip = group[best], sample[best], flip[best]
    num_groups = int(group[-1]) + 1
    position = np.arange(group.size) - np.searchsorted(group, np.arange(num_groups))[group]
    full = int(position.max()) + 1
    short = position < max_size
    shape = (num_groups, min(full, max_size))
    united = Groups(np.full(shape, -1, np.int64), np.zeros(shape, bool))
    united.members[group[short], position[short]] = sample[short]
    united.flips[group[short], position[short]] = flip[short]
    return united, full


def disjoint(groups: Groups, score: np.ndarray, min_size: int) -> Groups:
    """Each sample in its group of highest score; groups below min_size dissolve, the worse half at a time."""
    group, slot = np.nonzero(groups.members >= 0)
    sample, value = groups.members[group, slot], score[group, slot]
    order = np.lexsort((group, -value, sample))
    group, slot, sample, value = group[order], slot[order], sample[order], value[order]
    num_groups = len(groups.members)
    alive = np.ones(num_groups, bool)
    while True:
        open_ = np.flatnonzero(alive[group])
        keep = open_[np.unique(sample[open_], return_index=True)[1]]
        sizes = np.bincount(group[keep], minlength=num_groups)
        small = np.flatnonzero(alive & (sizes < min_size))
        if not small.size:
            break
        total = np.bincount(group[keep], weights=value[keep], minlength=num_groups)
        mean = total[small] / np.maximum(sizes[small], 1)
        worst = np.lexsort((small, mean, sizes[small]))[: max(1, (small.size + 1) // 2)]
        alive[small[worst]] = False
    members = np.full(groups.members.shape, -1, np.int64)
    flips = np.zeros(members.shape, bool)
    members[group[keep], slot[keep]] = sample[keep]
    flips[group[keep], slot[keep]] = groups.flips[group[keep], slot[keep]]
    return Groups(members[alive], flips[alive]).packed()
