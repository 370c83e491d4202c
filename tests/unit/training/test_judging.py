"""The judge beside the rounds: what it records, keeps and says."""

import numpy as np
import pytest
import torch
import trainings
from torch import nn
from trainings import assert_same_weights, sgd, weights

from pml_posets.samplers.pseudo_label import GivenLabels
from pml_posets.training.judging import LabelFreeJudge


def data():
    rng = torch.Generator().manual_seed(0)
    kinds = torch.rand(6, 1, 1, 8, 8, generator=rng)
    images = (kinds + 0.1 * torch.randn(6, 10, 1, 8, 8, generator=rng)).flatten(0, 1)
    return images, images + 0.1 * torch.randn(images.shape, generator=rng)


IMAGES, CHANGED = data()


def made_judge(**options):
    return LabelFreeJudge(list(IMAGES), list(CHANGED), **options)


def joint(lr=0.1, **changes):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
    optimizers = {"trunk_optimizer": sgd(lr, momentum=0.0)}
    grouping, sampling = GivenLabels(np.arange(6).repeat(10)), {"batch_size": 20}
    return trainings.make(
        list(IMAGES), trunk, grouping, sampler_options=sampling, optimizers=optimizers, **changes
    )


def test_each_round_is_judged_once_and_training_is_unchanged():
    hooked, given = made_judge(), made_judge()
    joint(start_of_round_hook=hooked, end_of_epoch_hook=hooked).train()
    judged, alone = joint(judge=given), joint()
    judged.train()
    alone.train()
    assert [row["round"] for row in given.scores] == [0, 1, 2]
    assert hooked.scores == given.scores
    assert_same_weights(weights(judged), weights(alone))


def test_the_start_is_given_back_where_training_destroys_it():
    judge, trained = made_judge(), joint()
    start = weights(trained)
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
    assert_same_weights(weights(trained), start)


def test_scores_lie_beside_the_checkpoint_and_a_run_that_begins_has_its_own(tmp_path):
    given, again, afresh = made_judge(), made_judge(), made_judge()
    joint(judge=given, output_dir=tmp_path).train()
    joint(judge=again, output_dir=tmp_path).train(resume=True)  # nothing is left to do
    assert again.scores == given.scores
    (tmp_path / "checkpoint.pt").unlink()
    joint(0.05, judge=afresh, output_dir=tmp_path).train()
    assert [row["round"] for row in afresh.scores] == [0, 1, 2]
    assert afresh.scores[1] != given.scores[1]


@pytest.mark.parametrize("keep_best", [True, False])
def test_the_trainer_says_so_and_gives_back_a_start_that_was_better(keep_best):
    trained = joint(1e6, judge=made_judge(keep_best=keep_best))  # destroys the network
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
    judge = made_judge(path=tmp_path / "judge.pt")
    trained = joint(judge=judge, num_rounds=1)
    trained.train()
    again = made_judge(path=tmp_path / "judge.pt")
    assert again.scores == judge.scores
    assert again.restore_best(trained) == again.best_round


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="changed must hold the same images, got 2 and 3"):
        LabelFreeJudge([0, 0], [0, 0, 0])
    with pytest.raises(ValueError, match="nothing was judged yet"):
        LabelFreeJudge([], []).verdict()
