"""Real processes that exchange, share work and fail; what one process does alone is the reference."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from ranks import run, values

from pml_posets.distributed import process_group as distributed
from pml_posets.distributed.process_group import (
    RankError,
    abort_on_error,
    all_gather_equal,
    all_gather_objects,
    all_gather_rows,
    all_reduce_sum,
    broadcast_object,
    broadcast_tensors,
    from_environment,
    is_main,
    rank,
    world_size,
)
from pml_posets.distributed.sharing import (
    from_main,
    main_first,
    shard,
    share_errors,
    shared_work,
    shares_work,
)
from pml_posets.features.hog_lda import HOGLDA
from pml_posets.features.network import extract
from pml_posets.grouping.surrogate import SurrogateGrouping
from pml_posets.neighbors.nearest import search
from pml_posets.training._ranks import average_gradients, gather_with_gradient

DTYPES = ["float32", "float64", "float16", "int64", "uint8", "bool"]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_shards_are_contiguous_and_even(count, parts):
    shards = [shard(count, number, parts) for number in range(parts)]
    assert [i for part in shards for i in part] == list(range(count))
    sizes = [len(part) for part in shards]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_bad_shards():
    with pytest.raises(ValueError, match="0 <= number < num_shares, got 5, 2, 2"):
        shard(5, 2, 2)
    with pytest.raises(ValueError, match="got -1"):
        shard(-1)


# --- One process


def test_one_process_is_the_identity(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with from_environment("cpu") as place:
        assert (place, rank(), world_size(), is_main()) == (torch.device("cpu"), 0, 1, True)
    block, x = np.arange(6).reshape(3, 2), torch.ones(2, 2, requires_grad=True)
    assert all_gather_rows(block) is block
    assert gather_with_gradient(x) is x
    assert all_gather_equal(x) is x
    assert all_reduce_sum(x) is x
    assert broadcast_object(x) is x
    assert all_gather_objects(4) == [4]
    assert from_main(lambda: 5) == 5
    assert main_first(lambda: 6) == 6
    average_gradients([torch.nn.Parameter(torch.ones(1))])
    broadcast_tensors([x])
    distributed.barrier()
    with shared_work(), abort_on_error(), share_errors():
        assert not shares_work()
        assert list(shard(3)) == [0, 1, 2]


@pytest.mark.parametrize("context", [abort_on_error, share_errors])
def test_one_process_raises_its_own_errors(context):
    with pytest.raises(KeyError, match="mine"), context():
        raise KeyError("mine")


def test_one_process_of_torchrun_has_a_group(monkeypatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }.items():
        monkeypatch.setenv(name, value)
    with from_environment("cpu"):
        assert torch.distributed.is_initialized()
        assert world_size() == 1
        assert all_gather_rows(np.arange(2)).tolist() == [0, 1]
    assert not torch.distributed.is_initialized()


def test_more_processes_than_gpus(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="1 GPUs here for process 2: start torchrun with --nproc-per-node=1"):
        from_environment("cuda").__enter__()
    with pytest.raises(ValueError, match='give the device "cuda", not "cuda:1"'):
        from_environment("cuda:1").__enter__()


def test_old_names_say_their_new_ones():
    import pml_posets.distributed as package

    with pytest.warns(DeprecationWarning, match="guarded is now abort_on_error"):
        assert package.guarded is abort_on_error
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing


@pytest.mark.parametrize("block", [3, [1, 2], np.float32(2)])
def test_what_is_no_block_of_rows(block):
    with pytest.raises(TypeError, match="block of rows must be an array or a tensor"):
        all_gather_rows(block)


# --- Exchange


def blocks(dtype, sizes):
    """The rows of all ranks."""
    numbers = np.random.default_rng(0).integers(0, 100, (sum(sizes), 3))
    return np.split((numbers % 2 if dtype == "bool" else numbers).astype(dtype), np.cumsum(sizes)[:-1])


def exchange(sizes):
    """Everything at once: starting processes is what takes time."""
    found = {}
    for dtype in DTYPES:
        own = blocks(dtype, sizes)[rank()]
        found[dtype] = all_gather_rows(own)
        found[f"tensor {dtype}"] = all_gather_rows(torch.from_numpy(own)).numpy()
    own = torch.from_numpy(blocks("float32", sizes)[rank()]).bfloat16()
    found["bfloat16"] = all_gather_rows(own).float().numpy()
    found["nothing"] = all_gather_rows(np.empty((0, 5))).shape
    found["empty elsewhere"] = all_gather_rows(np.ones((2, 4)) if rank() == 1 else np.empty((0, 0)))
    found["read-only"] = all_gather_rows(np.broadcast_to(np.float32(rank()), (1, 2)))
    found["transposed"] = all_gather_rows(np.arange(6).reshape(2, 3).T)
    found["objects"] = all_gather_objects({"rank": rank()})
    found["from main"] = broadcast_object({"rank": rank()})
    found["only main"] = from_main(lambda: (rank(), shares_work()))
    with shared_work():
        found["sharing"] = shares_work(), from_main(shares_work)
        found["in turn"] = main_first(lambda: (rank(), shares_work(), time.monotonic()))
    model = torch.nn.BatchNorm2d(3)
    cold = torch.full((2, 3, 4, 5), float(rank())).to(memory_format=torch.channels_last)
    broadcast_tensors([cold, model.num_batches_tracked.add_(rank())])
    found["weights"] = cold.sum().item(), int(model.num_batches_tracked)
    own = torch.tensor([[rank(), 0.5]], dtype=torch.bfloat16)
    found["equal"] = all_gather_equal(own).tolist(), all_reduce_sum(own.float()).tolist()
    try:
        all_gather_rows(np.zeros((1, 2 + rank())))
    except ValueError as error:
        found["misfit"] = str(error)
    failing = {
        "main": lambda: from_main(lambda: [][rank()]),
        "one": fails_on_the_last,
        "first": lambda: main_first(lambda: [][rank()]),
        "later": lambda: main_first(fails_on_the_last_alone),
    }
    for name, function in failing.items():
        try:
            with shared_work():
                function()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def fails_on_the_last_alone():
    if rank() == world_size() - 1:
        raise KeyError("a broken image")


def fails_on_the_last():
    with share_errors():
        fails_on_the_last_alone()


@pytest.mark.parametrize("sizes", [(3, 2), (4, 0, 2), (1, 0, 0, 5)])
def test_exchange(sizes):
    world = len(sizes)
    everyone = values(run(world, exchange, sizes))
    for number, found in enumerate(everyone):
        for dtype in DTYPES:
            whole = np.concatenate(blocks(dtype, sizes))
            for name in (dtype, f"tensor {dtype}"):
                assert found[name].dtype == whole.dtype
                np.testing.assert_array_equal(found[name], whole)
        np.testing.assert_array_equal(found["bfloat16"], np.concatenate(blocks("float32", sizes)))
        assert found["nothing"] == (0, 5)
        np.testing.assert_array_equal(found["empty elsewhere"], np.ones((2, 4)))
        np.testing.assert_array_equal(found["read-only"], np.repeat(np.arange(world), 2).reshape(world, 2))
        np.testing.assert_array_equal(
            found["transposed"], np.concatenate([np.arange(6).reshape(2, 3).T] * world)
        )
        assert found["objects"] == [{"rank": r} for r in range(world)]
        assert found["from main"] == {"rank": 0}
        assert found["only main"] == (0, False)
        assert found["sharing"] == (True, False)
        assert found["weights"] == (0.0, 0)
        assert found["equal"] == ([[r, 0.5] for r in range(world)], [[sum(range(world)), world / 2]])
        assert "must agree in width and dtype" in found["misfit"]
        assert found["in turn"][:2] == (number, False)
        assert number == 0 or found["in turn"][2] > everyone[0]["in turn"][2]
        for name in ("main", "first"):
            assert found[name].startswith(
                "IndexError" if number == 0 else "RankError: rank 0 has failed: IndexE"
            )
        last = number == world - 1
        expected = "KeyError: " if last else f"RankError: rank {world - 1} has failed: KeyError: "
        assert found["one"] == found["later"] == f"{expected}'a broken image'"


# --- Gradients


def parts_of_a_network():
    torch.manual_seed(1)
    return torch.nn.Linear(4, 3).double(), torch.nn.Linear(3, 2).double(), torch.nn.Linear(1, 1).double()


def loss_of(embeddings, head):
    return (torch.cdist(embeddings, embeddings).cos() * head(embeddings).sum(1)).mean()


def gradients(world, everyone):
    """Weights before and after the gathering, and some that only one rank or none has used."""
    first, head, lone = parts_of_a_network()
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    part = x if everyone else x[list(shard(12))]
    loss = loss_of(gather_with_gradient(first(part)), head)
    (loss + lone.weight.sum() if rank() == 1 else loss).backward()
    weights = [*first.parameters(), *head.parameters(), *lone.parameters()]
    average_gradients([*weights, *weights])
    return loss.item(), [None if w.grad is None else w.grad.numpy() for w in weights]


@pytest.mark.parametrize("world", [2, 3])
def test_gradients_are_those_of_the_joint_batch(world):
    loss, expected = gradients(world, True)
    for value, found in values(run(world, gradients, world, False)):
        assert value == pytest.approx(loss, rel=1e-12)
        for one, other in zip(found[:4], expected[:4], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(found[4], 1 / world)  # the mean of 1 and zeros
        assert found[5] is None


# --- Shared work


class Pictures:
    """Deterministic images; the one with the number `broken` is not finite."""

    def __init__(self, count, broken=None):
        self.images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        if broken is not None:
            self.images[broken] = torch.nan

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], "a label"


def shared_features(share):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
    hog = HOGLDA(image_size=16, cell_size=8)
    hog.fit_background(Pictures(6), num_patches=50, progress=False)
    options = {"mirror": True, "batch_size": 4, "progress": False}
    rows = np.random.default_rng(0).normal(size=(61, 5)).astype(np.float32)
    found = {}
    with shared_work() if share else share_errors():
        found["network"] = extract(network, Pictures(21), **options)
        found["one batch"] = extract(network, Pictures(3), **options)
        found["HOG"] = hog.transform(Pictures(21), **options)
        for method in ("exact", "approximate"):
            near = search(rows, 4, mirrored=-rows, sources=np.arange(61) // 3, chunk_size=8, method=method)
            found[method] = near.indices, near.distances, near.flips
        few = search(rows, 2, queries=[5, 1], chunk_size=1, backend="torch")
        found["few"] = few.indices, few.distances
        found["none"] = search(rows, 2, queries=[]).indices.shape
        found["groups"] = SurrogateGrouping().fit_predict(rows)
        with pytest.raises((ValueError, RankError), match=r"features of dataset\[9\] hold a NaN"):
            extract(network, Pictures(12, broken=9), **options)
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_shared_work_is_that_of_one_process(world):
    torch.set_num_threads(1)
    expected = shared_features(False)
    for found in values(run(world, shared_features, True)):
        assert found.keys() == expected.keys()
        for name, whole in expected.items():
            for one, other in zip(
                *((x if isinstance(x, tuple) else (x,)) for x in (found[name], whole)), strict=True
            ):
                np.testing.assert_array_equal(one, other, err_msg=name)


# --- Failures


def one_fails(how):
    with abort_on_error():
        for turn in range(1000):
            if rank() == 1 and turn == 3:
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ValueError("no such class")
            average_gradients([torch.nn.Parameter(torch.ones(1))])
            all_gather_rows(np.arange(3))
    return "the end"


@pytest.mark.parametrize("how", ["kill", "error"])
def test_a_rank_that_fails_ends_all(how):
    begun = time.monotonic()
    first, second, third = run(3, one_fails, how)
    assert time.monotonic() - begun < 30
    assert second == (("dead", -signal.SIGKILL) if how == "kill" else ("error", "ValueError: no such class"))
    assert first[0] == third[0] == "error"
    for _, text in (first, third):
        assert text.startswith("RankError: ")
    if how == "error":
        assert "rank 1 has failed: ValueError: no such class" in first[1] + third[1]


def goes_on_alone():
    try:
        with abort_on_error():
            if rank() == 1:
                raise ValueError("no such class")
            distributed.barrier()
    except (ValueError, RankError):
        pass
    assert [str(rank()), str(world_size())] == [os.environ["RANK"], os.environ["WORLD_SIZE"]]
    with pytest.raises(RankError, match="ended with an error before"):
        distributed.barrier()


def test_a_rank_that_has_failed_is_not_the_main_one():
    results = run(2, goes_on_alone)
    assert [state for state, _ in results] == ["error", "error"]  # the end of the group is an exchange too
    assert all("RankError: the process group has ended with an error" in text for _, text in results)
