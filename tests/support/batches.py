"""Random batches of classes, and what PML's reducers are given for each sample."""

import torch
from pytorch_metric_learning import reducers


def batch(seed=0, size=24, dims=6, num_classes=4, unassigned=0.4, dtype=torch.float64):
    """Random embeddings and labels; class ids with gaps, no class empty by design."""
    g = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(size, dims, generator=g, dtype=torch.float64).to(dtype)
    labels = 3 * torch.randint(num_classes, (size,), generator=g) + 2
    labels[torch.rand(size, generator=g) < unassigned] = -1
    return embeddings, labels


def elements(loss, *args, **kwargs):
    """Sample -> its loss, as the reducer gets them."""
    loss.set_reducer(reducers.DoNothingReducer())
    found = loss(*args, **kwargs)["loss"]
    if not torch.is_tensor(found["losses"]):
        return {}
    assert found["reduction_type"] == "element"
    return dict(zip(found["indices"].tolist(), found["losses"].tolist(), strict=True))
