"""The judge beside the rounds: what it records, keeps and says."""

import numpy as np
import pytest
import torch
from torch import nn

from pml_posets import JointTrainer, PosetLoss, PseudoLabelSampler
from pml_posets.samplers.pseudo_label import GivenLabels
from pml_posets.training.judging import LabelFreeJudge


def data():
    rng = torch.Generator().manual_seed(0)
    kinds = torch.rand(6, 1, 1, 8, 8, generator=rng)
    images = (kinds + 0.1 * torch.randn(6, 10, 1, 8, 8, generator=rng)).flatten(0, 1)
    return images, images + 0.1 * torch.randn(images.shape, generator=rng)


def joint(images, judge, lr, folder=None, rounds=2):
    torch.manual_seed(0)
    features = images.flatten(1).numpy()
    return JointTrainer(
        models={"trunk": nn.Sequential(nn.Flatten(), nn.Linear(64, 16))},
        optimizers={"trunk_optimizer": lambda parameters: torch.optim.SGD(parameters, lr=lr)},
        sampler=PseudoLabelSampler(
            features, batch_size=20, grouping=GivenLabels(np.arange(6).repeat(10).tolist())
        ),
        loss_funcs={"metric_loss": PosetLoss(sigma=0.5)},
        dataset=list(images),
        num_rounds=rounds,
        iterations_per_round=3,
        start_of_round_hook=judge,
        end_of_epoch_hook=judge,
        output_dir=folder,
        progress=False,
    )


def test_each_round_is_judged_once_and_training_is_unchanged():
    images, changed = data()
    judge = LabelFreeJudge(list(images), list(changed))
    judged = joint(images, judge, 0.1)
    judged.train()
    assert [row["round"] for row in judge.scores] == [0, 1, 2]
    alone = joint(images, None, 0.1)
    alone.train()
    for a, b in zip(judged.models["trunk"].parameters(), alone.models["trunk"].parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_start_is_given_back_where_training_destroys_it():
    images, changed = data()
    judge = LabelFreeJudge(list(images), list(changed))
    trained = joint(images, judge, 0.1)
    start = {key: value.clone() for key, value in trained.models["trunk"].state_dict().items()}
    judge(trained)
    with torch.no_grad():
        for parameter in trained.models["trunk"].parameters():
            parameter.zero_()
        trained.models["trunk"][1].bias.fill_(1)
    trained.round = 1
    judge(trained)
    assert [row["score"] > 0.1 for row in judge.scores] == [True, False]
    assert judge.verdict().startswith("Judged without labels, the start was better than every round")
    assert judge.restore_best(trained) == 0
    for key, value in trained.models["trunk"].state_dict().items():
        assert torch.equal(value, start[key])


def judged_joint(images, judge, lr, folder=None, rounds=2):
    made = joint(images, None, lr, folder, rounds)
    made.judge = judge
    return made


def test_the_trainer_asks_it_about_the_start_and_each_round(tmp_path):
    images, changed = data()
    hooked, given = (LabelFreeJudge(list(images), list(changed)) for _ in range(2))
    joint(images, hooked, 0.1).train()
    trained = judged_joint(images, given, 0.1, tmp_path)
    trained.train()
    assert given.scores == hooked.scores
    again = LabelFreeJudge(list(images), list(changed))
    resumed = judged_joint(images, again, 0.1, tmp_path)
    resumed.train(resume=True)  # nothing is left to do; the scores lie beside the checkpoint
    assert again.scores == given.scores
    (tmp_path / "checkpoint.pt").unlink()
    afresh = LabelFreeJudge(list(images), list(changed))
    judged_joint(images, afresh, 0.05, tmp_path).train()
    assert [row["round"] for row in afresh.scores] == [0, 1, 2]
    assert afresh.scores[1] != given.scores[1]


def test_the_trainer_says_so_and_gives_back_a_start_that_was_better():
    images, changed = data()
    for keep_best in (True, False):
        judge = LabelFreeJudge(list(images), list(changed), keep_best=keep_best)
        trained = judged_joint(images, judge, 1e6)  # destroys the network
        start = trained.models["trunk"][1].weight.clone()
        with pytest.warns(UserWarning, match="the start was better than every round of training"):
            trained.train()
        assert torch.equal(trained.models["trunk"][1].weight, start) is keep_best


def test_the_best_round_is_named():
    judge = LabelFreeJudge([], [])
    judge.scores = [{"round": n, "score": s} for n, s in enumerate([0.4, 0.6, 0.5])]
    assert judge.best_round == 1
    assert judge.verdict() == (
        "Judged without labels, round 1 was the best (score 0.400 in round 0, 0.500 at the end)."
    )


def test_scores_and_weights_outlive_the_process(tmp_path):
    images, changed = data()
    given = (list(images), list(changed), tmp_path / "judge.pt")
    judge = LabelFreeJudge(*given)
    joint(images, judge, 0.1, tmp_path, rounds=1).train()
    again = LabelFreeJudge(*given)
    assert again.scores == judge.scores
    longer = joint(images, again, 0.1, tmp_path, rounds=1)
    assert again.restore_best(longer) == again.best_round


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="changed must hold the same images, got 2 and 3"):
        LabelFreeJudge([0, 0], [0, 0, 0])
    with pytest.raises(ValueError, match="nothing was judged yet"):
        LabelFreeJudge([], []).verdict()
