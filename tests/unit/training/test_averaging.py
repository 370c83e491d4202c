"""The moving average of weights, against a plain loop."""

import pytest
import torch

from pml_posets.training.averaging import moving_average


def test_against_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    average = moving_average(model, decay=0.8)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(1, 60):
        optimizer.zero_grad()
        model(torch.randn(5, 3, generator=generator)).square().sum().backward()
        optimizer.step()
        average.update_parameters(model)
        decay = min(0.8, step / (step + 9))
        for name, value in model.state_dict().items():
            follows = value.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * value if follows else value.clone()
            torch.testing.assert_close(average.module.state_dict()[name], expected[name])
    assert step / (step + 9) > 0.8  # both regimes were there
    assert average.module[1].num_batches_tracked == 59
    assert not average.module.training
    assert not any(p.requires_grad for p in average.parameters())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match=r"decay of the average must be in \[0, 1\)"):
        moving_average(torch.nn.Linear(1, 1), decay)
