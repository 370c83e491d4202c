"""Real processes that exchange, share work and fail; what one process does alone is the reference."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from ranks import run, values
from trainings import noise

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


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7, 100])
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_shards_are_contiguous_and_even(count, parts):
    shards = [shard(count, number, parts) for number in range(parts)]
    assert [i for part in shards for i in part] == list(range(count))
    sizes = [len(part) for part in shards]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(("arguments", "text"), [((5, 2, 2), "got 5, 2, 2"), ((-1,), "got -1")])
def test_bad_shards(arguments, text):
    with pytest.raises(ValueError, match=f"0 <= number < num_shares, {text}"):
        shard(*arguments)


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


def start(monkeypatch, **environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_one_process_of_torchrun_has_a_group(monkeypatch):
    start(monkeypatch, RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    with from_environment("cpu"):
        assert torch.distributed.is_initialized()
        assert world_size() == 1
        assert all_gather_rows(np.arange(2)).tolist() == [0, 1]
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ("cuda", "1 GPUs here for process 2: start torchrun with --nproc-per-node=1"),
        ("cuda:1", 'give the device "cuda", not "cuda:1"'),
    ],
)
def test_more_processes_than_gpus(device, text, monkeypatch):
    start(monkeypatch, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=text):
        from_environment(device).__enter__()


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


def gathered_here_alone():
    return all_gather_rows(np.ones((2, 4)) if rank() == 1 else np.empty((0, 0)))


def broadcast_weights():
    cold = torch.full((2, 3, 4, 5), float(rank())).to(memory_format=torch.channels_last)
    batches = torch.nn.BatchNorm2d(3).num_batches_tracked.add_(rank())
    broadcast_tensors([cold, batches])
    return cold.sum().item(), int(batches)


def equal_tensors():
    own = torch.tensor([[rank(), 0.5]], dtype=torch.bfloat16)
    return all_gather_equal(own).tolist(), all_reduce_sum(own.float()).tolist()


TURNED = np.arange(6).reshape(2, 3).T
EXCHANGES = {  # what each rank calls, and what it gets where there are n
    "nothing": (lambda: all_gather_rows(np.empty((0, 5))).shape, lambda n: (0, 5)),
    "empty elsewhere": (gathered_here_alone, lambda n: np.ones((2, 4))),
    "read-only": (
        lambda: all_gather_rows(np.broadcast_to(np.float32(rank()), (1, 2))),
        lambda n: np.repeat(np.arange(n), 2).reshape(n, 2),
    ),
    "transposed": (lambda: all_gather_rows(TURNED), lambda n: np.concatenate([TURNED] * n)),
    "objects": (lambda: all_gather_objects({"rank": rank()}), lambda n: [{"rank": r} for r in range(n)]),
    "from main": (lambda: broadcast_object({"rank": rank()}), lambda n: {"rank": 0}),
    "only main": (lambda: from_main(lambda: (rank(), shares_work())), lambda n: (0, False)),
    "sharing": (lambda: (shares_work(), from_main(shares_work)), lambda n: (True, False)),
    "weights": (broadcast_weights, lambda n: (0.0, 0)),
    "equal": (equal_tensors, lambda n: ([[r, 0.5] for r in range(n)], [[sum(range(n)), n / 2]])),
}
FAILING = {
    "misfit": lambda: all_gather_rows(np.zeros((1, 2 + rank()))),
    "main": lambda: from_main(lambda: [][rank()]),
    "one": lambda: fails_on_the_last(),
    "first": lambda: main_first(lambda: [][rank()]),
    "later": lambda: main_first(fails_on_the_last_alone),
}


def exchange(sizes):
    """Everything at once: starting processes is what takes time."""
    found, errors = {}, {}
    for dtype in DTYPES:
        own = blocks(dtype, sizes)[rank()]
        found[dtype] = all_gather_rows(own)
        found[f"tensor {dtype}"] = all_gather_rows(torch.from_numpy(own)).numpy()
    own = torch.from_numpy(blocks("float32", sizes)[rank()]).bfloat16()
    found["bfloat16"] = all_gather_rows(own).float().numpy()
    with shared_work():
        found |= {name: call() for name, (call, _) in EXCHANGES.items()}
        in_turn = main_first(lambda: (rank(), shares_work(), time.monotonic()))
        for name, function in FAILING.items():
            try:
                function()
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {error}"
    return found, in_turn, errors


def fails_on_the_last_alone():
    if rank() == world_size() - 1:
        raise KeyError("a broken image")


def fails_on_the_last():
    with share_errors():
        fails_on_the_last_alone()


@pytest.mark.parametrize("sizes", [(3, 2), (1, 0, 0, 5)])
def test_exchange(sizes):
    n = len(sizes)
    expected = {name: of_ranks(n) for name, (_, of_ranks) in EXCHANGES.items()}
    expected["bfloat16"] = np.concatenate(blocks("float32", sizes))
    for dtype in DTYPES:
        expected[dtype] = expected[f"tensor {dtype}"] = np.concatenate(blocks(dtype, sizes))
    everyone = values(run(n, exchange, sizes))
    for number, (found, in_turn, errors) in enumerate(everyone):
        np.testing.assert_equal(found, expected)
        for dtype in DTYPES:
            assert found[dtype].dtype == found[f"tensor {dtype}"].dtype == dtype
        assert in_turn[:2] == (number, False)
        assert number == 0 or in_turn[2] > everyone[0][1][2]
        assert "must agree in width and dtype" in errors["misfit"]
        first = "IndexError" if number == 0 else "RankError: rank 0 has failed: IndexError"
        assert errors["main"].startswith(first)
        assert errors["first"].startswith(first)
        last = "" if number == n - 1 else f"RankError: rank {n - 1} has failed: "
        assert errors["one"] == errors["later"] == f"{last}KeyError: 'a broken image'"


# --- Gradients


def parts_of_a_network():
    torch.manual_seed(1)
    return torch.nn.Linear(4, 3).double(), torch.nn.Linear(3, 2).double(), torch.nn.Linear(1, 1).double()


def loss_of(embeddings, head):
    return (torch.cdist(embeddings, embeddings).cos() * head(embeddings).sum(1)).mean()


def gradients(everyone):
    """Weights before and after the gathering, and some that only one rank or none has used."""
    first, head, lone = parts_of_a_network()
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    part = x if everyone else x[list(shard(12))]
    loss = loss_of(gather_with_gradient(first(part)), head)
    (loss + lone.weight.sum() if rank() == 1 else loss).backward()
    weights = [*first.parameters(), *head.parameters(), *lone.parameters()]
    average_gradients([*weights, *weights])
    return loss.item(), [None if w.grad is None else w.grad.numpy() for w in weights]


def test_gradients_are_those_of_the_joint_batch():
    loss, expected = gradients(everyone=True)
    for value, found in values(run(3, gradients, False)):
        assert value == pytest.approx(loss, rel=1e-12)
        for one, other in zip(found[:4], expected[:4], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(found[4], 1 / 3)  # the mean of 1 and zeros
        assert found[5] is None


# --- Shared work


def pictures(count, broken=None):
    """Random images; the one with the number `broken` is not finite."""
    images = noise(count, 16, channels=3)
    if broken is not None:
        images[broken].fill_(torch.nan)
    return images


def shared_features(share):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
    hog = HOGLDA(image_size=16, cell_size=8)
    hog.fit_background(pictures(6), num_patches=50, progress=False)
    options = {"mirror": True, "batch_size": 4, "progress": False}
    rows = np.random.default_rng(0).normal(size=(61, 5)).astype(np.float32)
    found = {}
    with shared_work() if share else share_errors():
        found["network"] = extract(network, pictures(21), **options)
        found["one batch"] = extract(network, pictures(3), **options)
        found["HOG"] = hog.transform(pictures(21), **options)
        for method in ("exact", "approximate"):
            near = search(rows, 4, mirrored=-rows, sources=np.arange(61) // 3, chunk_size=8, method=method)
            found[method] = near.indices, near.distances, near.flips
        few = search(rows, 2, queries=[5, 1], chunk_size=1, backend="torch")
        found["few"] = few.indices, few.distances
        found["none"] = search(rows, 2, queries=[]).indices.shape
        found["groups"] = SurrogateGrouping().fit_predict(rows)
        with pytest.raises((ValueError, RankError), match=r"features of dataset\[9\] hold a NaN"):
            extract(network, pictures(12, broken=9), **options)
    return found


def test_shared_work_is_that_of_one_process():
    torch.set_num_threads(1)
    expected = shared_features(False)
    for found in values(run(4, shared_features, True)):
        assert found.keys() == expected.keys()
        for name, whole in expected.items():
            parts = ((x if isinstance(x, tuple) else (x,)) for x in (found[name], whole))
            for one, other in zip(*parts, strict=True):
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
    assert issubclass(RankError, RuntimeError)
