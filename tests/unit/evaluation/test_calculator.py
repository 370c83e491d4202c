"""RetrievalCalculator against PML's own calculator, and inside PML's testers."""

import copy
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.testers import (
    GlobalEmbeddingSpaceTester,
    GlobalTwoStreamEmbeddingSpaceTester,
    WithSameParentLabelTester,
)
from pytorch_metric_learning.utils import logging_presets
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN, FaissKNN

import pml_posets.evaluation
from pml_posets.evaluation import RetrievalCalculator, clustering_scores, retrieval_scores

CPU = torch.device("cpu")
PMLS = (
    "AMI",
    "NMI",
    "mean_average_precision",
    "mean_average_precision_at_r",
    "mean_reciprocal_rank",
    "precision_at_1",
    "r_precision",
)
DEFAULT = {
    "ACC",
    "AMI",
    "ARI",
    "NMI",
    "mean_average_precision_at_r",
    "precision_at_1",
    "r_precision",
    "recall_at_1",
    "recall_at_2",
    "recall_at_4",
    "recall_at_8",
}


def data(seed=0, num=90, classes=8):
    """Weakly grouped, with one sample that is alone in its class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (num,), generator=generator)
    labels[3] = 50
    centres = torch.randn(51, 6, generator=generator)
    return centres[labels] + torch.randn(num, 6, generator=generator), labels


def ours(**settings):
    return RetrievalCalculator(**{"device": CPU, **settings})


def without_clusters(**settings):
    return ours(exclude=("NMI", "AMI", "ACC", "ARI"), **settings)


# --- The same names, the same values


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [None, "max_bin_count"])
@pytest.mark.parametrize("knn", [None, "faiss", "custom"])
def test_pmls_names_have_pmls_values(seed, k, knn):
    query, labels = data(seed)
    make = {None: lambda: None, "faiss": FaissKNN, "custom": lambda: CustomKNN(LpDistance())}[knn]
    if knn == "custom":  # LpDistance normalises
        query = torch.nn.functional.normalize(query)
    theirs = AccuracyCalculator(device=CPU, k=k).get_accuracy(query, labels)
    assert ours(include=PMLS, k=k, knn_func=make()).get_accuracy(query, labels) == pytest.approx(theirs)


@pytest.mark.parametrize("ref_includes_query", [True, False])
@pytest.mark.parametrize("knn", [None, FaissKNN])
def test_with_references(ref_includes_query, knn):
    query, labels = data(1)
    others, other_labels = data(2, num=40)
    other_labels[(other_labels == 2) | (other_labels == 50)] = 77  # no reference has class 2
    if ref_includes_query:
        others, other_labels = torch.cat([query, others]), torch.cat([labels, other_labels])
    given = (query, labels, others, other_labels, ref_includes_query)
    theirs = AccuracyCalculator(device=CPU, exclude=("NMI", "AMI")).get_accuracy(*given)
    found = ours(include=(*PMLS[2:], "recall_at_1"), knn_func=knn and knn(), k=None).get_accuracy(*given)
    assert found.pop("recall_at_1") == pytest.approx(theirs["precision_at_1"])
    assert found == pytest.approx(theirs)


@pytest.mark.parametrize("option", ["avg_of_avgs", "return_per_class"])
def test_averages_by_class(option):
    query, labels = data(3)
    names = PMLS[2:]
    theirs = AccuracyCalculator(device=CPU, include=names, **{option: True}).get_accuracy(query, labels)
    found = ours(include=(*names, "recall_at_4"), k=None, **{option: True}).get_accuracy(query, labels)
    recall = found.pop("recall_at_4")
    for name in names:
        assert found[name] == pytest.approx(theirs[name])
    scores = retrieval_scores(query, labels, similarity="euclidean")
    by_class = [scores.hits[4][(labels == c).numpy()].mean() for c in labels.unique().tolist() if c != 50]
    assert recall == pytest.approx(by_class if option == "return_per_class" else np.mean(by_class))
    with pytest.raises(ValueError, match="mutually exclusive"):
        ours(avg_of_avgs=True, return_per_class=True)


def test_what_is_new():
    query, labels = data(4)
    clusters = torch.arange(90) % 9
    calls = []

    def kmeans(x, num_clusters):
        calls.append((tuple(x.shape), num_clusters))
        return clusters

    found = ours(kmeans_func=kmeans, ks=(3, 1, 20)).get_accuracy(query, labels)
    assert {name for name in found if name.startswith("recall")} == {
        "recall_at_1",
        "recall_at_3",
        "recall_at_20",
    }
    scores = retrieval_scores(query, labels, ks=(1, 3, 20), similarity="euclidean")
    for k, recall in scores.recall.items():
        assert found[f"recall_at_{k}"] == recall
    clustered = clustering_scores(labels, clusters)
    assert (found["ACC"], found["ARI"]) == (clustered.accuracy, clustered.ari)
    assert (found["NMI"], found["AMI"]) == (clustered.nmi, clustered.ami)
    assert calls == [((90, 6), 9)]


def test_what_is_measured():
    query, labels = data(5)
    assert set(ours().get_accuracy(query, labels)) == DEFAULT
    assert set(ours(ks=()).get_accuracy(query, labels)) == {n for n in DEFAULT if "recall" not in n}
    some = ours(include=("recall_at_2", "NMI"))
    assert some.get_curr_metrics() == ["NMI", "recall_at_2"]
    assert list(some.get_accuracy(query, labels, include=("recall_at_2",))) == ["recall_at_2"]
    assert list(some.get_accuracy(query, labels, exclude=("recall_at_2",))) == ["NMI"]
    assert "recall_at_4" not in ours(exclude=["recall_at_4"]).get_curr_metrics()
    with pytest.raises(ValueError, match="recall_at_2"):  # PML lists what there is
        ours(include=("recall_at_3",))


def test_labels_are_compared_as_whole_numbers():
    query = torch.tensor([[0.0], [0.1], [0.2], [0.3]])
    labels = torch.tensor([0, 1, 0, 1]) + 2**24
    made = ours(
        include=("recall_at_1", "r_precision", "ACC"), kmeans_func=lambda x, num: torch.arange(4) % num
    )
    assert made.get_accuracy(query, labels) == {"ACC": 1.0, "r_precision": 0.0, "recall_at_1": 0.0}
    assert AccuracyCalculator(include=("r_precision",), device=CPU).get_accuracy(query, labels) == {
        "r_precision": 1.0  # theirs: one class of four
    }


def test_features_far_from_the_origin_are_ranked_alike():
    query, labels = data(4, num=900)
    query = torch.cat([query] * 11, dim=1)  # wide enough for faiss to use matrix products
    far = query + 2**12
    exact = without_clusters().get_accuracy(far - 2**12, labels)  # rounded as the far ones
    assert without_clusters().get_accuracy(far, labels) == exact


def test_labels_that_a_tester_made_floats():
    query, labels = data(4)
    assert without_clusters().get_accuracy(query, labels.float()) == without_clusters().get_accuracy(
        query, labels
    )
    with pytest.raises(TypeError, match=r"query_labels must be whole numbers, and below 2\^24"):
        ours().get_accuracy(query, labels.float() + 2.0**24)


def test_a_clustering_may_leave_samples_out():
    query, labels = data(7)
    clusters = labels.clone()
    clusters[:30] = -1
    found = ours(include=("ACC", "ARI", "NMI", "AMI"), kmeans_func=lambda x, num: clusters)
    found = found.get_accuracy(query, labels)
    expected = clustering_scores(labels, clusters)
    assert found["ACC"] == pytest.approx(60 / 90)
    assert found["NMI"] == expected.nmi
    assert found["AMI"] == expected.ami


def test_nobody_to_find():
    query, labels = torch.eye(4), torch.arange(4)
    assert all(math.isnan(v) for v in without_clusters().get_accuracy(query, labels).values())
    per_class = without_clusters(return_per_class=True).get_accuracy(query, labels)
    assert all(len(v) == 4 and all(map(math.isnan, v)) for v in per_class.values())
    alone = without_clusters().get_accuracy(query[:1], labels[:1])
    assert math.isnan(alone["recall_at_1"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_arrays(dtype):
    query, labels = data(8)
    query = query.to(dtype)
    expected = without_clusters().get_accuracy(query.float(), labels)
    assert without_clusters().get_accuracy(query, labels.int()) == expected
    if dtype == torch.float64:
        assert without_clusters().get_accuracy(query.numpy(), labels.numpy()) == expected


def test_another_distance():
    query, labels = data(9)
    found = without_clusters(knn_func=CustomKNN(CosineSimilarity())).get_accuracy(query, labels)
    assert found["recall_at_4"] == pytest.approx(retrieval_scores(query, labels).recall[4])
    assert found["recall_at_4"] != without_clusters().get_accuracy(query, labels)["recall_at_4"]


def test_copies():
    query, labels = data(10)
    made = without_clusters()
    expected = made.get_accuracy(query, labels)
    assert copy.deepcopy(made).get_accuracy(query, labels) == expected
    assert pickle.loads(pickle.dumps(made)).get_accuracy(query, labels) == expected


# --- In PML's testers


class Points(torch.utils.data.Dataset):
    def __init__(self, seed, hierarchy=False):
        self.points, labels = data(seed)
        self.labels = torch.stack([labels, labels // 3], 1) if hierarchy else labels

    def __len__(self):
        return len(self.points)

    def __getitem__(self, i):
        return self.points[i], self.labels[i]


def test_in_a_tester_with_logging(tmp_path):
    keeper, _, _ = logging_presets.get_record_keeper(str(tmp_path / "csv"), str(tmp_path / "board"))
    hooks = logging_presets.get_hook_container(keeper, primary_metric="recall_at_2")
    trunk = torch.nn.Linear(6, 5)
    tester = GlobalEmbeddingSpaceTester(
        accuracy_calculator=ours(ks=(1, 2)),
        dataloader_num_workers=0,
        data_device=CPU,
        end_of_testing_hook=hooks.end_of_testing_hook,
    )
    train, test = Points(0), Points(1)
    splits = [("val", ["val"]), ("train", ["val", "train"])]
    for epoch in (1, 2):
        found = tester.test({"train": train, "val": test}, epoch, trunk, splits_to_eval=splits)
    with torch.no_grad():
        unit = torch.nn.functional.normalize(trunk(torch.cat([train.points, test.points])))
    labels = torch.cat([train.labels, test.labels])
    alone = retrieval_scores(unit[90:], test.labels, similarity="euclidean")
    both = retrieval_scores(unit, labels, queries=np.arange(90), similarity="euclidean")
    for split, scores in (("val", alone), ("train", both)):
        assert found[split]["recall_at_2_level0"] == pytest.approx(scores.recall[2])
        assert found[split]["mean_average_precision_at_r_level0"] == pytest.approx(scores.map_at_r)
        assert {"ACC_level0", "ARI_level0", "NMI_level0", "AMI_level0"} <= set(found[split])
    assert found["train"]["recall_at_2_level0"] != found["val"]["recall_at_2_level0"]
    assert hooks.get_curr_primary_metric(tester, "val") == found["val"]["recall_at_2_level0"]
    keeper.save_records()
    history = hooks.get_accuracy_history(tester, "val", metrics=["recall_at_1"])
    assert history["recall_at_1_level0"] == [found["val"]["recall_at_1_level0"]] * 2


def test_in_a_tester_with_levels():
    settings = {"dataloader_num_workers": 0, "data_device": CPU, "label_hierarchy_level": "all"}
    points, trunk = {"val": Points(2, hierarchy=True)}, torch.nn.Identity()
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    for kind in (GlobalEmbeddingSpaceTester, WithSameParentLabelTester):
        found = kind(accuracy_calculator=ours(), **settings).test(points, 1, trunk)["val"]
        theirs = kind(accuracy_calculator=AccuracyCalculator(include=names, device=CPU), **settings)
        for name, value in theirs.test(points, 1, trunk)["val"].items():
            assert found[name] == pytest.approx(value, nan_ok=True), name
        assert "recall_at_8_level0" in found
    # Parents with a lone child give NaN to both: what is compared above must not be NaN everywhere.
    assert (
        "AVERAGE_ACC"
        in GlobalEmbeddingSpaceTester(accuracy_calculator=ours(), **settings).test(points, 1, trunk)["val"]
    )


def test_the_default_of_a_script_without_us():
    tester = GlobalEmbeddingSpaceTester(accuracy_calculator=RetrievalCalculator(), dataloader_num_workers=0)
    found = tester.test({"val": Points(3)}, 1, torch.nn.Identity())["val"]
    assert set(found) == {f"{name}_level0" for name in DEFAULT} | {"epoch"}
    assert all(0 <= found[f"{name}_level0"] <= 1 for name in DEFAULT)


def test_in_a_tester_of_two_streams():
    class TwoStreams(Points):
        def __getitem__(self, i):
            return self.points[i], self.points[i] + 0.01, self.labels[i]

    tester = GlobalTwoStreamEmbeddingSpaceTester(
        accuracy_calculator=without_clusters(), dataloader_num_workers=0, data_device=CPU
    )
    found = tester.test({"val": TwoStreams(1)}, 1, torch.nn.Identity())["val"]
    assert 0.5 < found["recall_at_1_level0"] <= 1


# --- Memory


def resident(line):
    """VmRSS, or VmHWM: the most since it was set back, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(rf"{line}:\s+(\d+) kB", status).group(1))


def test_there_is_never_a_square_matrix():
    num = 12_000
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(num, 32, generator=generator)
    labels = torch.randint(0, num // 20, (num,), generator=generator)
    made = without_clusters()
    made.get_accuracy(query[:100], labels[:100])  # all that is loaded is loaded
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # sets VmHWM back
    except OSError as error:
        pytest.skip(f"the peak of memory cannot be set back here: {error}")
    before = resident("VmRSS")
    assert len(made.get_accuracy(query, labels)) == 7
    assert resident("VmHWM") - before < num * num  # not even a byte a pair
    square = torch.zeros(num, num, dtype=torch.uint8).fill_(1)  # it would have been seen
    assert resident("VmHWM") - before >= square.numel()


# --- What is wrong, in words


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda q, c: ours(ks=(0,)), ValueError, "every k of ks must be at least 1"),
        (lambda q, c: ours(ks=(1.0,)), TypeError, "every k of ks must be an integer"),
        (lambda q, c: ours(k=0), ValueError, "k must be an integer greater than 0"),
        (
            lambda q, c: ours().get_accuracy(q, c + 0.5),
            TypeError,
            "query_labels must be whole numbers",
        ),
        (lambda q, c: ours().get_accuracy(q, c[:5]), ValueError, r"must have shape \(90,\)"),
        (lambda q, c: ours().get_accuracy(q * math.nan, c), ValueError, "must be finite"),
        (
            lambda q, c: ours().get_accuracy(q, c, q[:, :3], c),
            ValueError,
            "must have 3 columns like reference",
        ),
        (lambda q, c: ours().get_accuracy(q, c, q.flip(0), c, True), ValueError, "must be equal to query"),
        (lambda q, c: ours().get_accuracy(q, c, q, c + 1, True), ValueError, "must be equal to query_labels"),
        (lambda q, c: ours().get_accuracy(q, c, q[:5], c[:5], True), (ValueError, RuntimeError), "must"),
    ],
)
def test_wrong_input(call, error, text):
    with pytest.raises(error, match=text):
        call(*data())


def test_it_is_loaded_when_asked_for():
    assert "RetrievalCalculator" in pml_posets.evaluation.__all__
    with pytest.raises(AttributeError, match="no attribute 'RetrivalCalculator'"):
        _ = pml_posets.evaluation.RetrivalCalculator


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_numbers_whose_squares_leave_float32(scale):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    rows = np.float32(np.eye(3)[labels] + 0.1 * rng.normal(size=(60, 3)))
    scores = RetrievalCalculator(ks=(1,)).get_accuracy(rows * np.float32(scale), labels)
    assert scores["recall_at_1"] == 1.0
    assert scores["ACC"] == 1.0
