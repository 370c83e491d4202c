"""The moving average of weights, against a plain loop."""

import pytest
import torch

from pml_posets.training.averaging import MovingAverage


def test_against_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    average = MovingAverage({"trunk": model, "embedder": torch.nn.Identity()}, decay=0.8)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(1, 60):
        optimizer.zero_grad()
        model(torch.randn(5, 3, generator=generator)).square().sum().backward()
        optimizer.step()
        average.update({"trunk": model, "embedder": torch.nn.Identity()})
        decay = min(0.8, step / (step + 9))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value.clone()
    assert step / (step + 9) > 0.8  # both regimes were there
    for name, value in average.models["trunk"].state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-5), name
    assert average.models["trunk"][1].num_batches_tracked == 59
    assert not average.models["trunk"].training
    assert not any(p.requires_grad for p in average.models["trunk"].parameters())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_state_comes_back():
    first = MovingAverage({"trunk": torch.nn.Linear(2, 2)}, 0.9)
    first.update({"trunk": torch.nn.Linear(2, 2)})
    second = MovingAverage({"trunk": torch.nn.Linear(2, 2)}, 0.9)
    second.load_state_dict(first.state_dict())
    assert second.num_updates == 1
    assert torch.equal(second.models["trunk"].weight, first.models["trunk"].weight)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        MovingAverage({}, decay)
