"""RetrievalCalculator against PML's own calculator, and inside PML's testers."""

import copy
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester, WithSameParentLabelTester
from pytorch_metric_learning.utils import logging_presets
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN, FaissKNN
from refusals import refuses

import pml_posets.evaluation
from pml_posets.evaluation import RetrievalCalculator, clustering_scores, retrieval_scores

CPU = torch.device("cpu")
CLUSTERING = ("ACC", "AMI", "ARI", "NMI")
RANKING = ("mean_average_precision_at_r", "precision_at_1", "r_precision")
PMLS = (*RANKING, "mean_average_precision", "mean_reciprocal_rank")
DEFAULT = {*CLUSTERING, *RANKING, "recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8"}


def data(seed=0, num=90, classes=8):
    """Weakly grouped, with one sample that is alone in its class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (num,), generator=generator)
    labels[3] = 50
    centers = torch.randn(51, 6, generator=generator)
    return centers[labels] + torch.randn(num, 6, generator=generator), labels


def ours(**settings):
    return RetrievalCalculator(**{"device": CPU, **settings})


def without_clusters(**settings):
    return ours(exclude=CLUSTERING, **settings)


@pytest.mark.parametrize("k", [None, "max_bin_count"])
@pytest.mark.parametrize("knn", [None, "faiss", "custom"])
def test_pmls_names_have_pmls_values(k, knn):
    query, labels = data(1)
    make = {None: lambda: None, "faiss": FaissKNN, "custom": lambda: CustomKNN(LpDistance())}[knn]
    if knn == "custom":  # LpDistance normalizes
        query = torch.nn.functional.normalize(query)
    theirs = AccuracyCalculator(device=CPU, k=k).get_accuracy(query, labels)
    found = ours(include=(*PMLS, "NMI", "AMI"), k=k, knn_func=make()).get_accuracy(query, labels)
    assert found == pytest.approx(theirs)


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
    found = ours(include=(*PMLS, "recall_at_1"), knn_func=knn and knn(), k=None).get_accuracy(*given)
    assert found.pop("recall_at_1") == pytest.approx(theirs["precision_at_1"])
    assert found == pytest.approx(theirs)


@pytest.mark.parametrize("option", ["avg_of_avgs", "return_per_class"])
def test_averages_by_class(option):
    query, labels = data(3)
    theirs = AccuracyCalculator(device=CPU, include=PMLS, **{option: True}).get_accuracy(query, labels)
    found = ours(include=(*PMLS, "recall_at_4"), k=None, **{option: True}).get_accuracy(query, labels)
    recall = found.pop("recall_at_4")
    for name in PMLS:
        assert found[name] == pytest.approx(theirs[name])
    scores = retrieval_scores(query, labels, similarity="euclidean")
    by_class = [scores.hits[4][(labels == c).numpy()].mean() for c in labels.unique().tolist() if c != 50]
    assert recall == pytest.approx(by_class if option == "return_per_class" else np.mean(by_class))


@pytest.mark.parametrize("unassigned", [0, 30])  # a clustering may leave samples out
def test_what_is_new(unassigned):
    query, labels = data(4)
    clusters, calls = torch.arange(90) % 9, []
    clusters[:unassigned] = -1

    def kmeans(x, num_clusters):
        calls.append((tuple(x.shape), num_clusters))
        return clusters

    found = ours(kmeans_func=kmeans, ks=(3, 1, 20)).get_accuracy(query, labels)
    scores = retrieval_scores(query, labels, ks=(1, 3, 20), similarity="euclidean")
    recalls = {name: value for name, value in found.items() if name.startswith("recall")}
    assert recalls == {f"recall_at_{k}": recall for k, recall in scores.recall.items()}
    clustered = clustering_scores(labels, clusters)
    expected = [clustered.accuracy, clustered.ami, clustered.ari, clustered.nmi]
    assert [found[name] for name in CLUSTERING] == expected
    assert calls == [((90, 6), 9)]


def test_what_is_measured():
    query, labels = data(5)
    assert set(ours().get_accuracy(query, labels)) == DEFAULT
    assert set(ours(ks=()).get_accuracy(query, labels)) == {n for n in DEFAULT if "recall" not in n}
    for name in (*DEFAULT, *PMLS):  # what it needs, neighbors or clusters, is found for one alone
        assert list(ours(include=(name,), k=None).get_accuracy(query, labels)) == [name]
    some = ours(include=("recall_at_2", "NMI"))
    assert some.get_curr_metrics() == ["NMI", "recall_at_2"]
    assert list(some.get_accuracy(query, labels, include=("recall_at_2",))) == ["recall_at_2"]
    assert list(some.get_accuracy(query, labels, exclude=("recall_at_2",))) == ["NMI"]
    assert "recall_at_4" not in ours(exclude=["recall_at_4"]).get_curr_metrics()


def test_labels_are_compared_as_whole_numbers():
    query, labels = torch.tensor([[0.0], [0.1], [0.2], [0.3]]), torch.tensor([0, 1, 0, 1]) + 2**24
    names = ("recall_at_1", "r_precision", "ACC")
    found = ours(include=names, kmeans_func=lambda x, num: torch.arange(4) % num).get_accuracy(query, labels)
    assert found == {"ACC": 1.0, "r_precision": 0.0, "recall_at_1": 0.0}
    query, labels = data(4)  # those that a tester made floats
    found = without_clusters().get_accuracy(query, labels.float())
    assert found == without_clusters().get_accuracy(query, labels)


def test_features_far_from_the_origin_are_ranked_alike():
    query, labels = data(4, num=900)
    far = torch.cat([query] * 11, dim=1) + 2**12  # wide enough for faiss to use matrix products
    exact = without_clusters().get_accuracy(far - 2**12, labels)  # rounded as the far ones
    assert without_clusters().get_accuracy(far, labels) == exact


def test_nobody_to_find():
    query, labels = torch.eye(4), torch.arange(4)
    assert all(math.isnan(v) for v in without_clusters().get_accuracy(query, labels).values())
    per_class = without_clusters(return_per_class=True).get_accuracy(query, labels)
    assert all(len(v) == 4 and all(map(math.isnan, v)) for v in per_class.values())
    assert math.isnan(without_clusters().get_accuracy(query[:1], labels[:1])["recall_at_1"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_arrays_and_copies(dtype):
    query, labels = data(8)
    query, made = query.to(dtype), without_clusters()
    expected = made.get_accuracy(query.float(), labels)
    assert made.get_accuracy(query, labels.int()) == expected
    assert copy.deepcopy(made).get_accuracy(query, labels) == expected
    assert pickle.loads(pickle.dumps(made)).get_accuracy(query, labels) == expected
    assert made.get_accuracy(query.float().numpy(), labels.numpy()) == expected


def test_another_distance():
    query, labels = data(9)
    found = without_clusters(knn_func=CustomKNN(CosineSimilarity())).get_accuracy(query, labels)
    assert found["recall_at_4"] == pytest.approx(retrieval_scores(query, labels).recall[4])
    assert found["recall_at_4"] != without_clusters().get_accuracy(query, labels)["recall_at_4"]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_numbers_whose_squares_leave_float32(scale):
    labels = np.arange(60) % 3
    rows = np.float32(np.eye(3)[labels] + 0.1 * np.random.default_rng(0).normal(size=(60, 3)))
    scores = RetrievalCalculator(ks=(1,)).get_accuracy(rows * np.float32(scale), labels)
    assert (scores["recall_at_1"], scores["ACC"]) == (1.0, 1.0)


class Points(torch.utils.data.Dataset):
    def __init__(self, seed, hierarchy=False):
        self.points, labels = data(seed)
        self.labels = torch.stack([labels, labels // 3], 1) if hierarchy else labels

    def __len__(self):
        return len(self.points)

    def __getitem__(self, i):
        return self.points[i], self.labels[i]


def make_tester(calculator, kind=GlobalEmbeddingSpaceTester, **settings):
    return kind(accuracy_calculator=calculator, dataloader_num_workers=0, data_device=CPU, **settings)


def test_in_a_tester_with_logging(tmp_path):
    keeper, _, _ = logging_presets.get_record_keeper(str(tmp_path / "csv"), str(tmp_path / "board"))
    hooks = logging_presets.get_hook_container(keeper, primary_metric="recall_at_2")
    trunk = torch.nn.Linear(6, 5)
    logged = make_tester(ours(ks=(1, 2)), end_of_testing_hook=hooks.end_of_testing_hook)
    train, test = Points(0), Points(1)
    splits = [("val", ["val"]), ("train", ["val", "train"])]
    for epoch in (1, 2):
        found = logged.test({"train": train, "val": test}, epoch, trunk, splits_to_eval=splits)
    with torch.no_grad():
        unit = torch.nn.functional.normalize(trunk(torch.cat([train.points, test.points])))
    labels = torch.cat([train.labels, test.labels])
    alone = retrieval_scores(unit[90:], test.labels, similarity="euclidean")
    both = retrieval_scores(unit, labels, queries=np.arange(90), similarity="euclidean")
    for split, scores in (("val", alone), ("train", both)):
        assert found[split]["recall_at_2_level0"] == pytest.approx(scores.recall[2])
        assert found[split]["mean_average_precision_at_r_level0"] == pytest.approx(scores.map_at_r)
        assert {f"{name}_level0" for name in CLUSTERING} <= set(found[split])
    assert hooks.get_curr_primary_metric(logged, "val") == found["val"]["recall_at_2_level0"]
    keeper.save_records()
    history = hooks.get_accuracy_history(logged, "val", metrics=["recall_at_1"])
    assert history["recall_at_1_level0"] == [found["val"]["recall_at_1_level0"]] * 2


@pytest.mark.parametrize("kind", [GlobalEmbeddingSpaceTester, WithSameParentLabelTester])
def test_in_a_tester_with_levels(kind):
    given = {"val": Points(2, hierarchy=True)}, 1, torch.nn.Identity()
    found = make_tester(ours(), kind, label_hierarchy_level="all").test(*given)["val"]
    pmls = AccuracyCalculator(include=RANKING, device=CPU)
    theirs = make_tester(pmls, kind, label_hierarchy_level="all").test(*given)["val"]
    for name, value in theirs.items():
        assert found[name] == pytest.approx(value, nan_ok=True), name
    assert "recall_at_8_level0" in found
    assert kind is WithSameParentLabelTester or "AVERAGE_ACC" in found


def test_the_default_of_a_script_without_us():
    default = GlobalEmbeddingSpaceTester(accuracy_calculator=RetrievalCalculator(), dataloader_num_workers=0)
    found = default.test({"val": Points(3)}, 1, torch.nn.Identity())["val"]
    assert set(found) == {f"{name}_level0" for name in DEFAULT} | {"epoch"}
    assert all(0 <= found[f"{name}_level0"] <= 1 for name in DEFAULT)


# A process of its own: this one may have kept memory that earlier tests have freed, and would use it unseen
PEAKS = """
import re
from pathlib import Path

import torch
from pml_posets.evaluation import RetrievalCalculator

num = 8_000
generator = torch.Generator().manual_seed(0)
query = torch.randn(num, 16, generator=generator)
labels = torch.randint(0, num // 20, (num,), generator=generator)
calculator = RetrievalCalculator(exclude=("ACC", "AMI", "ARI", "NMI"))
calculator.get_accuracy(query[:100], labels[:100])  # all that is loaded is loaded


def resident(line):
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(rf"{line}:\\s+(\\d+) kB", status).group(1))


def calculate():
    assert len(calculator.get_accuracy(query, labels)) == 7


def peak(of):
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # sets VmHWM, the highest VmRSS, back
    before = resident("VmRSS")
    kept = of()
    return resident("VmHWM") - before


print(peak(calculate))
print(peak(lambda: torch.ones(num, num, dtype=torch.uint8)))
"""


def test_there_is_never_a_square_matrix():
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError as error:
        pytest.skip(f"the peak of memory cannot be set back here: {error}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", PEAKS], env=environment, capture_output=True, check=True)
    calculation, square = map(int, done.stdout.split())
    assert calculation < 8_000 * 8_000 <= square  # not even a byte a pair, which would have been seen


def test_it_is_loaded_when_asked_for():
    assert "RetrievalCalculator" in pml_posets.evaluation.__all__
    with pytest.raises(AttributeError, match="no attribute 'RetrivalCalculator'"):
        _ = pml_posets.evaluation.RetrivalCalculator


Q, C = data()


def measured(*given):
    return lambda: ours().get_accuracy(*given)


test_wrong_input = refuses(
    (lambda: ours(ks=(0,)), ValueError, "every k of ks must be at least 1"),
    (lambda: ours(k=0), ValueError, "k must be an integer greater than 0"),
    (lambda: ours(include=("recall_at_3",)), ValueError, "recall_at_2"),  # PML lists what there is
    (lambda: ours(avg_of_avgs=True, return_per_class=True), ValueError, "mutually exclusive"),
    (measured(Q, C + 0.5), TypeError, "query_labels must be whole numbers, and below 2^24"),
    (measured(Q, C.float() + 2.0**24), TypeError, "query_labels must be whole numbers, and below 2^24"),
    (measured(Q, C[:5]), ValueError, "must have shape (90,)"),
    (measured(Q * math.nan, C), ValueError, "must be finite"),
    (measured(Q, C, Q[:, :3], C), ValueError, "must have 3 columns like reference"),
    (measured(Q, C, Q.flip(0), C, True), ValueError, "must be equal to query"),
    (measured(Q, C, Q, C + 1, True), ValueError, "must be equal to query_labels"),
    (measured(Q, C, Q[:5], C[:5], True), (ValueError, RuntimeError), "must"),
)
