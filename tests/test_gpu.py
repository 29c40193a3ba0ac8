"""The GPU's paths against the CPU's: `pytest -m gpu`. Skipped where there is no GPU."""

import numpy as np
import pytest
import torch
from nets import rows, small_mixed_net, small_net
from samples import digits
from torch import nn

from decant.influence import ekfac
from decant.influence.functions import Influence, influence
from decant.labeltrust.siamese import Pool, Siamese, class_scores
from decant.models.settings import TrainSettings
from decant.models.training import predict, train_classifier
from decant.runtime import be_deterministic

GPU = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def scores(model: nn.Module, place: str, *, low_precision: bool = False, memory: int | None = None) -> Influence:
    (x, y), (xq, yq) = rows(40), rows(3, seed=9)
    model = model.to(place)
    losses = ekfac.sampled_cross_entropy(len(x), seed=0)
    factors = ekfac.fit(model, x.to(place), losses, low_precision=low_precision, memory=memory)
    train, queries = (x.to(place), y.to(place)), (xq.to(place), yq.to(place))
    return influence(model, train, queries, factors=factors, damping=0.1, low_precision=low_precision, memory=memory)


@pytest.mark.parametrize("network", [small_net, small_mixed_net])
@pytest.mark.parametrize("memory", [None, 2**20])
def test_influence_is_the_cpus(network: type[nn.Module], memory: int | None) -> None:
    """Patches and matrix products there, grouped convolutions here; float64, so nothing hides in rounding."""
    here, there = scores(network(), "cpu"), scores(network(), GPU, memory=memory)
    torch.testing.assert_close(there.pairwise.cpu(), here.pairwise, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(there.train_self.cpu(), here.train_self, rtol=1e-8, atol=1e-8)


def test_low_precision_ranks_rows_alike() -> None:
    exact, rough = (scores(small_net().float(), GPU, low_precision=low).pairwise.cpu() for low in (False, True))
    for one, other in zip(exact, rough, strict=True):
        assert torch.corrcoef(torch.stack([one, other.to(one.dtype)]))[0, 1] > 0.98


def test_pair_scores_are_the_cpus() -> None:
    train, _ = digits()
    x, columns = torch.from_numpy(train.pixels[:200]).permute(0, 3, 1, 2), torch.from_numpy(train.labels[:200])
    torch.manual_seed(0)
    network = Siamese(train.shape, "plus").eval()
    here = class_scores(network, x, Pool.of(x, columns, 10))
    there = class_scores(network.to(GPU), x.to(GPU), Pool.of(x.to(GPU), columns.to(GPU), 10))
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-3)


def test_training_twice_gives_the_same_network() -> None:
    be_deterministic()
    train, test = digits()
    logits = [predict(train_classifier(train, TrainSettings(epochs=2), seed=0), test.pixels) for _ in range(2)]
    assert np.array_equal(*logits)
