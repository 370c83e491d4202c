"""Nearest neighbours, exact or approximate.

A search runs in two steps. A backend (faiss, or tiles of matrix products in torch) proposes a few more
candidates than were asked for; then one shared step measures those again by plain differences, keeps the
nearer of a sample and its mirror image, and sorts by (distance, index). That is why the backends give the
same answer. No step ever holds an N x N matrix.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .._validation import as_features
from ..distributed.process_group import all_gather_rows, is_main
from ..distributed.sharing import shard, shares_work, together
from ._candidates import (
    MIN_IVF_SAMPLES,
    MIN_REDUCED_SAMPLES,
    FaissIndex,
    Questions,
    Tiles,
    principal_directions,
    squared_gaps,
)
from ._cells import Cells

Method = Literal["exact", "approximate"]
Backend = Literal["auto", "faiss", "torch"]


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The answer of a search; row q belongs to query q.

    Attributes:
        indices: (Q, k) int64, dataset indices by ascending distance; -1 where there was no further neighbour.
        distances: (Q, k) float32, Euclidean (not squared), ascending; inf where the index is -1.
        flips: (Q, k) bool, True where the query's mirror image was the nearer; None without mirror images.

    Example:
        >>> search([[0.0], [1.0], [3.0]], k=1).indices.ravel().tolist()
        [1, 0, 1]
    """

    indices: NDArray[np.int64]
    distances: NDArray[np.float32]
    flips: NDArray[np.bool_] | None = None


def search(
    features: ArrayLike | Tensor,
    k: int,
    *,
    queries: ArrayLike | None = None,
    query_features: ArrayLike | Tensor | None = None,
    mirrored: ArrayLike | Tensor | None = None,
    sources: Sequence[Any] | NDArray[Any] | None = None,
    query_sources: Sequence[Any] | NDArray[Any] | None = None,
    exclude_self: bool = True,
    method: Method = "exact",
    backend: Backend = "auto",
    device: str | torch.device = "cpu",
    chunk_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Neighbors:
    """Find the k nearest samples of each query by Euclidean distance.

    Args:
        features: (N, D) the samples to search among.
        k: neighbours per query, >= 1. Where fewer exist, the rest is -1 (index) and inf (distance).
        queries: (Q,) dataset indices whose features ask; None: every sample asks. Not with query_features.
        query_features: (Q, D) a separate set of queries, which no sample of `features` is identical to.
        mirrored: features of the queries' horizontally mirrored images, (N, D) in dataset order, or (Q, D)
            beside query_features. The distance of a pair is then min(|f_q - f_j|, |m_q - f_j|).
        sources: (N,) ints or strings; samples of the query's own source (itself among them) are left out.
        query_sources: (Q,) the sources of query_features; needed exactly when both of those are given.
        exclude_self: whether a sample is left out of its own list (by index: equal copies of it stay).
        method: "exact", or "approximate": from 8,192 samples on candidates, several times more than asked
            for, are the nearest in the first principal directions (up to 512, for features longer than 256)
            among the 96 sqrt(N) or so of the nearest cells (see `pml_posets.cells`); they are then measured
            in full. With backend="faiss" they are sought among all samples, from 200,000 on by its inverted
            file. Fewer samples are searched exactly, because that is faster.
        backend: "faiss", "torch" or "auto" (faiss on the CPU where it is installed, otherwise torch).
        device: where to compute, e.g. "cpu" or "cuda:0".
        chunk_size: queries handled at once; None: 1024 on a CPU, 8192 on a GPU. Memory grows with it.
        seed: of the approximate search (sample for the directions, cells of the inverted file).
        progress: whether to show a progress bar.

    Inside `pml_posets.sharing.shared_work` every rank answers some chunks of the queries, and gets all
    answers: those of one process (of an approximate search up to rounding). Every rank builds the index.

    Returns:
        Neighbors. Deterministic; of equal distances the lower index comes first, and a pair that is equally
        near with and without mirroring is not flipped. Backends agree, except on which of many (more than
        about 4 k) exactly equal distances they list.

    Raises:
        TypeError: indices are not integers or features not numbers.
        ValueError: a shape does not fit, an index is out of range, a value is not finite, an option is
            unknown or the device is not there.
        ImportError: backend="faiss" without faiss.

    Source: section 3.1 of the paper (similarity exp(-distance), maximal over the frame and its mirror image).

    Differs from the paper: in nothing known.

    Example:
        >>> found = search([[0.0], [1.0], [1.5], [9.0]], k=2, sources=["a", "a", "b", "c"])
        >>> found.indices[0].tolist(), found.distances[0].tolist()
        ([2, 3], [1.5, 9.0])
    """
    database = as_features(features)
    k = _count(k, "k")
    rows, vectors, mirrors = _queries(database, queries, query_features, mirrored)
    codes, query_codes = _source_codes(sources, query_sources, len(database), rows, len(vectors))
    place = _device(device)
    use_faiss = _choose_backend(backend, place)
    _option(method, ("exact", "approximate"), "method")
    num_queries = len(vectors) if rows is None else len(rows)
    if chunk_size is None:
        chunk_size = 8192 if place.type == "cuda" else 1024
    chunk_size = _count(chunk_size, "chunk_size")
    own = rows if exclude_self else None
    excluded = _num_excluded(codes, query_codes, num_queries, own is not None)
    available = np.minimum(k, len(database) - excluded)
    indices = np.full((num_queries, k), -1, dtype=np.int64)
    distances = np.full((num_queries, k), np.inf, dtype=np.float32)
    flips = np.zeros((num_queries, k), dtype=bool)
    order = np.argsort(excluded, kind="stable")  # queries that need equally long lists go together
    num_chunks = -(-num_queries // chunk_size)
    mine = shard(num_chunks) if shares_work() else range(num_chunks)  # whole chunks: the same numbers
    own_rows = order[mine.start * chunk_size : mine.stop * chunk_size]
    starts: Any = range(0, len(own_rows), chunk_size)
    if progress and (is_main() or not shares_work()):
        from tqdm.auto import tqdm

        starts = tqdm(starts, desc="neighbours", unit="chunk")
    shared = together() if shares_work() else nullcontext()
    with shared, torch.no_grad(), torch.autocast(place.type, enabled=False), _full_precision():
        finder = _Finder(database, codes, k, method, backend, use_faiss, place, seed)
        asked = finder.together(own_rows, vectors, own_rows if rows is None else rows[own_rows])
        for start in starts:
            block = asked[start : start + chunk_size]
            ask = Questions(
                own=None if own is None else torch.from_numpy(own[block]).to(place),
                codes=None if query_codes is None else torch.from_numpy(query_codes[block]).to(place),
                excluded=excluded[block],
            )
            picked = block if rows is None else rows[block]
            views = [torch.from_numpy(x[picked]).to(place) for x in (vectors, mirrors) if x is not None]
            index, square, flip = finder.find(views, ask, available[block])
            indices[block], flips[block] = index.cpu().numpy(), flip.cpu().numpy()
            distances[block] = square.sqrt().cpu().numpy()
    if shares_work():
        for found in (indices, distances, flips):
            found[order] = all_gather_rows(found[own_rows])
    return Neighbors(indices, distances, None if mirrors is None else flips)


class _Finder:
    """Proposes, measures, and asks again in double precision where rounding may have misled the proposal."""

    def __init__(
        self,
        database: NDArray[np.float32],
        codes: NDArray[np.int64] | None,
        k: int,
        method: str,
        backend: Backend,
        use_faiss: bool,
        place: torch.device,
        seed: int,
    ) -> None:
        with warnings.catch_warnings():  # a memory map is read-only, and is only read
            warnings.filterwarnings("ignore", message=".*not writable.*")
            self.table = torch.from_numpy(database).to(place)
        self.place = place
        table_codes = None if codes is None else torch.from_numpy(codes).to(place)
        self.exact = Tiles(self.table, table_codes)
        approximate = method == "approximate"
        self.directions = principal_directions(self.table, seed) if approximate else None
        large = MIN_IVF_SAMPLES if backend == "faiss" else MIN_REDUCED_SAMPLES
        cells = approximate and len(database) >= large
        self.k, self.approximate = k, cells or self.directions is not None
        self.width = min(len(database), 2 * k + 64 if self.approximate else k + max(8, k // 4))
        small = self.table if self.directions is None else self.table @ self.directions
        self.proposer: Tiles | FaissIndex | Cells = self.exact
        if cells and backend != "faiss":
            self.proposer = Cells(small, table_codes, seed)
        elif use_faiss:
            self.proposer = FaissIndex(small.cpu().numpy(), codes, place, cells, seed)
        elif self.directions is not None:
            self.proposer = Tiles(small, table_codes)

    def together(
        self, asked: NDArray[np.int64], vectors: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The queries asked, in an order in which those of one cell come together; their rows of vectors."""
        if not isinstance(self.proposer, Cells) or not len(asked):
            return asked
        step = max(1, 2**24 // vectors.shape[1])
        parts = [
            self.proposer.place_of(self.reduced(torch.from_numpy(vectors[rows[i : i + step]]).to(self.place)))
            for i in range(0, len(rows), step)
        ]
        return asked[torch.cat(parts).argsort(stable=True).cpu().numpy()]

    def reduced(self, view: Tensor) -> Tensor:
        """(B, D) to what is looked for candidates in."""
        return view if self.directions is None else view @ self.directions

    def find(
        self, views: list[Tensor], ask: Questions, available: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, D) queries and maybe their mirror images to (B, k) indices, squared distances and flips."""
        proposer, seen = self.proposer, views
        if isinstance(proposer, FaissIndex) and not proposer.can(ask, self.width):
            proposer = self.exact
        else:
            seen = [self.reduced(view) for view in views]
        proposals = [proposer.propose(view, ask, self.width) for view in seen]
        answer = _measure(self.table, views, [found for found, _ in proposals], self.k)
        if self.approximate:
            unsure = (answer[0] >= 0).sum(1).cpu().numpy() < available
        else:
            unsure = _ambiguous(self.exact, views, answer[1], proposals, available)
        if unsure.any():
            which = torch.from_numpy(np.flatnonzero(unsure)).to(self.table.device)
            again = [view[which] for view in views]
            asked = ask.pick(which)
            found = [self.exact.propose(view, asked, 4 * self.width, torch.float64)[0] for view in again]
            for old, new in zip(answer, _measure(self.table, again, found, self.k), strict=True):
                old[which] = new
        return answer


def _measure(
    table: Tensor, views: list[Tensor], found: list[Tensor], k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The k best of (B, K) candidates per view: (B, k) indices, squared distances by differences, flips."""
    width = found[0].shape[1]
    parts = zip(views, found, strict=True)
    squares = torch.cat([squared_gaps(table, view, index) for view, index in parts], 1)
    index = torch.cat(found, 1)
    flip = (torch.arange(index.shape[1], device=table.device) >= width).expand_as(index)
    squares, index, flip = _sorted(squares, index, flip)
    if len(views) > 1:  # an index that both views proposed counts once, at its nearer distance
        order = index.argsort(dim=1, stable=True)
        squares, index, flip = (part.gather(1, order) for part in (squares, index, flip))
        squares[:, 1:].masked_fill_(index[:, 1:] == index[:, :-1], torch.inf)
        squares, index, flip = _sorted(squares, index, flip)
    squares, index, flip = squares[:, :k], index[:, :k], flip[:, :k]
    missing = k - index.shape[1]
    if missing > 0:
        pad = torch.nn.functional.pad
        squares = pad(squares, (0, missing), value=torch.inf)
        index, flip = pad(index, (0, missing)), pad(flip, (0, missing))
    empty = squares.isinf()
    return index.masked_fill(empty, -1), squares.clone(), flip.masked_fill(empty, False)


def _sorted(squares: Tensor, index: Tensor, flip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows by (squared distance, index, flip)."""
    columns = (squares, index, flip.to(torch.uint8))
    for least_first in (2, 1, 0):
        order = columns[least_first].argsort(dim=1, stable=True)
        columns = (columns[0].gather(1, order), columns[1].gather(1, order), columns[2].gather(1, order))
    return columns[0], columns[1], columns[2].bool()


def _ambiguous(
    tiles: Tiles,
    views: list[Tensor],
    squares: Tensor,
    proposals: list[tuple[Tensor, Tensor]],
    available: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """(B,) whether rounding may have kept one of the k nearest off the list of candidates."""
    if proposals[0][0].shape[1] == len(tiles.table):
        return np.zeros(len(squares), dtype=bool)
    last = squares.gather(1, torch.from_numpy(np.maximum(available - 1, 0)).to(squares.device)[:, None])[:, 0]
    rounding = 2 * torch.finfo(torch.float32).eps * max(8.0, tiles.table.shape[1] ** 0.5)
    unsure = torch.zeros(len(squares), dtype=torch.bool, device=squares.device)
    for view, (_, best) in zip(views, proposals, strict=True):
        unsure |= last >= best[:, -1] - rounding * (view.square().sum(1) + tiles.max_square)
    return unsure.cpu().numpy() & (available > 0)


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32 inside, whatever the caller trains with."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _queries(
    database: NDArray[np.float32], queries: ArrayLike | None, query_features: Any, mirrored: Any
) -> tuple[NDArray[np.int64] | None, NDArray[np.float32], NDArray[np.float32] | None]:
    """The queries' dataset indices (None: they are not of the dataset), and the rows to pick them from."""
    if queries is not None and query_features is not None:
        raise ValueError("give queries (dataset indices) or query_features (vectors), not both")
    vectors, rows = database, None
    if query_features is not None:
        vectors = as_features(query_features, "query_features")
        if vectors.shape[1] != database.shape[1]:
            raise ValueError(
                f"query_features must have {database.shape[1]} dimensions like features, got {vectors.shape}"
            )
    elif queries is None:
        rows = np.arange(len(database), dtype=np.int64)
    else:
        rows = np.asarray(queries)
        if rows.size == 0:
            rows = rows.astype(np.int64)
        if rows.dtype.kind not in "iu":
            raise TypeError(f"queries must be integer dataset indices, got dtype {rows.dtype}")
        if rows.ndim != 1:
            raise ValueError(f"queries must have shape (Q,), got {rows.shape}")
        rows = rows.astype(np.int64)
        outside = rows[(rows < 0) | (rows >= len(database))]
        if len(outside):
            raise ValueError(f"queries must lie in 0..{len(database) - 1}, got {outside[0]}")
    if mirrored is None:
        return rows, vectors, None
    mirrors = as_features(mirrored, "mirrored")
    if mirrors.shape != vectors.shape:
        whose = "features" if query_features is None else "query_features"
        raise ValueError(f"mirrored must have the shape {vectors.shape} of {whose}, got {mirrors.shape}")
    return rows, vectors, mirrors


def _source_codes(
    sources: Any, query_sources: Any, num_samples: int, rows: NDArray[np.int64] | None, num_vectors: int
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """Sources as consecutive numbers, of the samples and of the queries."""
    if query_sources is not None and (sources is None or rows is not None):
        raise ValueError(
            "query_sources need sources and query_features: samples of the dataset have their own"
        )
    if sources is None:
        return None, None
    names = np.asarray(sources)
    if names.shape != (num_samples,):
        raise ValueError(f"sources must have shape ({num_samples},) to match features, got {names.shape}")
    if rows is not None:
        codes = np.unique(names, return_inverse=True)[1].astype(np.int64)
        return codes, codes[rows]
    if query_sources is None:
        raise ValueError("sources leave out the query's own source: query_features need query_sources too")
    query_names = np.asarray(query_sources)
    if query_names.shape != (num_vectors,):
        raise ValueError(
            f"query_sources must have shape ({num_vectors},) like query_features, got {query_names.shape}"
        )
    if (names.dtype.kind in "US") != (query_names.dtype.kind in "US"):
        raise TypeError(
            f"sources and query_sources must be of one type, got {names.dtype} and {query_names.dtype}"
        )
    codes = np.unique(np.concatenate([names, query_names]), return_inverse=True)[1].astype(np.int64)
    return codes[:num_samples], codes[num_samples:]


def _num_excluded(
    codes: NDArray[np.int64] | None, query_codes: NDArray[np.int64] | None, num_queries: int, own: bool
) -> NDArray[np.int64]:
    """(Q,) how many samples each query must not find."""
    if codes is None or query_codes is None:
        return np.full(num_queries, int(own), dtype=np.int64)
    counts = np.bincount(codes, minlength=int(query_codes.max(initial=0)) + 1)
    return counts[query_codes].astype(np.int64)


def _choose_backend(backend: str, place: torch.device) -> bool:
    """Whether faiss is to be used."""
    _option(backend, ("auto", "faiss", "torch"), "backend")
    there = find_spec("faiss") is not None
    if backend != "faiss":
        return backend == "auto" and there and place.type == "cpu"
    if not there:
        raise ImportError('backend="faiss" needs faiss: pip install faiss-cpu, or use backend="torch"')
    if place.type == "cuda":
        import faiss

        if not hasattr(faiss, "StandardGpuResources"):
            raise ValueError(f'this faiss has no GPU support, got device="{place}": use backend="torch"')
    return True


def _device(device: str | torch.device) -> torch.device:
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f'device "{place}" asked for, but torch sees no GPU: use device="cpu"')
    return place


def _option(value: str, known: tuple[str, ...], name: str) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _count(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)
