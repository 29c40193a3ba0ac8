"""Contrastive pretraining: its loss against the definition, and that it learns classes without seeing a label."""

import torch
from samples import digits
from torch.nn.functional import normalize

from decant.labeltrust.pretrain import TEMPERATURE, contrast, pretrained, view
from decant.labeltrust.siamese import Siamese, as_input
from decant.models.training import to_device


def recognised(model: Siamese) -> float:
    """Share of 300 digits that are, by the cosine of features, most like another view of themselves."""
    x = as_input(to_device(digits()[0].pixels[700:1000]))
    with torch.no_grad():
        one, other = (normalize(model.embed(view(x, torch.Generator().manual_seed(seed)))) for seed in (8, 9))
    return float(((one @ other.T).argmax(1) == torch.arange(300)).float().mean())


def test_loss_equals_its_definition() -> None:
    a, b = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = [row / row.norm() for row in [*a, *b]]
    terms = []
    for i in range(10):
        others = torch.stack([torch.exp(z[i] @ z[k] / TEMPERATURE) for k in range(10) if k != i])
        terms.append(-torch.log(torch.exp(z[i] @ z[(i + 5) % 10] / TEMPERATURE) / others.sum()))
    torch.testing.assert_close(contrast(a, b), torch.stack(terms).mean())


def test_features_learnt_without_labels_recognise_rows_never_seen_in_another_view() -> None:
    x, shape = to_device(digits()[0].pixels[:600]), (16, 16, 1)
    torch.manual_seed(0)
    model = Siamese(shape, "plus").eval()
    before = recognised(model)
    weights, again = (pretrained(x, shape, steps=steps, seed=0) for steps in (25, 25))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    model.encoder.load_state_dict(weights)
    assert recognised(model) > 1.5 * before


def test_photographs_are_mirrored_and_recoloured_and_digits_are_not() -> None:
    half = torch.zeros(400, 3, 8, 8)
    half[..., :4] = 0.8
    lighter_right = [
        (seen[..., 4:].mean((1, 2, 3)) > seen[..., :4].mean((1, 2, 3))).float().mean().item()
        for seen in (view(half, torch.Generator().manual_seed(0)), view(half[:, :1], torch.Generator().manual_seed(0)))
    ]
    assert 0.3 < lighter_right[0] < 0.7
    assert lighter_right[1] < 0.05
