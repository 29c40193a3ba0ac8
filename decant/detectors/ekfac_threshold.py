"""EK-FAC influence above a threshold: the baseline of Δ-Influence and of `renormalised`.

Koh & Liang 2017 with EK-FAC's curvature (Grosse et al., arXiv 2308.03296); the paper of Δ-Influence compares with it.

    a_i = mean over affected points q of  s_qi = ∇f(q)ᵀ H⁻¹ ∇L(i)        (`decant.influence.functions`)

Changed: the paper's threshold, 10 in the units of its own runs, changes with damping and model; here it is the level
above which 0.1 % of the rows with other labels lie. Its weakness: rows with a large gradient, mislabelled ones above
all, are influential on everything.

Cost: as `renormalised`.
"""

from decant.data.images import Images
from decant.detectors._background import above_background
from decant.detectors.base import Detection, DetectionCase
from decant.models.training import labels_to_device, to_device


def judge(case: DetectionCase, points: Images) -> Detection:
    queries = to_device(points.pixels), labels_to_device(points.labels)
    scores = case.influence_on(queries, self_influence=False).pairwise.mean(0).cpu().numpy()
    return above_background(case, points, scores, "influence on the affected points")
