"""How overlapping groups become classes: highly overlapping ones merge, then each sample takes one label."""

from __future__ import annotations

import numpy as np
import torch

from ._groups import Groups, Space, blocks, size_ranges


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
) -> Groups:
    """Merge highly overlapping groups, agglomeratively.

    In each pass a group looks for the more compact one (by mean similarity of its pairs) that it overlaps
    most, as a share of the smaller of the two, among the groups grown from its members (`owner`: (N,), -1 for
    none). Where that one has itself no such partner, the two merge, unless the mean similarity of the pairs
    in their union is less than half that of the tighter of them, or their mean distance more than `widening`
    times that of the tighter. Passes go on until nothing merges. A union keeps the members most similar to
    the more compact group, at most max_size, one a source.
    """
    members, flips = groups.members.copy(), groups.flips.copy()
    owner = owner.copy()
    compact, width = groups.means(space)
    alive = np.ones(len(members), bool)
    refused = np.zeros(0, np.int64)  # pairs that the stopping rule kept apart
    while True:
        child, leader = _partners(members, owner, alive, compact, overlap, refused)
        if not child.size:
            return Groups(members[alive], flips[alive])
        turned, joint = _join(Groups(members, flips), leader, child)
        united_compact, united_width = joint.means(space)
        ok = united_compact >= 0.5 * np.maximum(compact[leader], compact[child])
        if np.isfinite(widening):
            ok &= united_width <= widening * np.minimum(width[leader], width[child]) * (1 + 1e-6)
        refused = np.union1d(refused, _pair_keys(leader[~ok], child[~ok], len(members)))
        if not ok.any():
            continue
        child, leader, turned = child[ok], leader[ok], turned[ok]
        changed, united = _unite(Groups(members, flips), leader, child, turned, space, max_size, codes)
        wider = ((0, 0), (0, max(0, united.members.shape[1] - members.shape[1])))
        members, flips = np.pad(members, wider, constant_values=-1), np.pad(flips, wider)
        members[changed], flips[changed] = -1, False
        filled = slice(united.members.shape[1])
        members[changed, filled], flips[changed, filled] = united.members, united.flips
        compact[changed], width[changed] = united.means(space)
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


def _join(groups: Groups, leader: np.ndarray, child: np.ndarray) -> tuple[np.ndarray, Groups]:
    """Whether each child stands the other way round (by the shared members), and the union in full."""
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
    return turned, Groups(joint, joint_flips).packed()


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
    filled = samples >= 0
    group = np.searchsorted(changed, np.repeat(rows, samples.shape[1])[filled.reshape(-1)])
    sample, flip = samples[filled], flips[filled]
    num_samples = len(space.table)
    key, once = np.unique(group * num_samples + sample, return_index=True)
    group, sample, flip = key // num_samples, key % num_samples, flip[once]
    own = groups.pick(changed)
    score = _similarity_to(own, group, sample, flip, space)
    order = np.lexsort((sample, -score, group))
    group, sample, flip = group[order], sample[order], flip[order]
    if codes is not None:
        source = codes[sample]
        best = np.unique(group * (codes.max() + 1) + source, return_index=True)[1]
        best.sort()
        group, sample, flip = group[best], sample[best], flip[best]
    starts = np.searchsorted(group, np.arange(changed.size))
    position = np.arange(group.size) - starts[group]
    short = position < max_size
    shape = (changed.size, int(position[short].max()) + 1)
    united = Groups(np.full(shape, -1, np.int64), np.zeros(shape, bool))
    united.members[group[short], position[short]] = sample[short]
    united.flips[group[short], position[short]] = flip[short]
    return changed, united


def _similarity_to(
    own: Groups, group: np.ndarray, sample: np.ndarray, flip: np.ndarray, space: Space
) -> np.ndarray:
    """(E,) mean similarity of each entry (sorted by group) to the others of its group."""
    counts = np.bincount(group, minlength=len(own.members))
    starts = np.concatenate([[0], np.cumsum(counts)])
    score = np.zeros(group.size)
    for above, width in size_ranges(counts):
        part = np.flatnonzero((counts > above) & (counts <= width))
        for block in blocks(part.size, width * own.members.shape[1]):
            chosen = part[block]
            entry = np.minimum(starts[chosen][:, None] + np.arange(width), group.size - 1)  # (b, width)
            inside = np.arange(width) < counts[chosen][:, None]
            members = own.members[chosen]
            gaps = space.distances(sample[entry], flip[entry], members, own.flips[chosen])
            near = torch.exp(gaps.double() / -space.scale).cpu().numpy()
            counted = (members >= 0)[:, None, :] & (sample[entry][:, :, None] != members[:, None, :])
            mean = (near * counted).sum(axis=2) / np.maximum(counted.sum(axis=2), 1)
            score[entry[inside]] = mean[inside]
    return score


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
