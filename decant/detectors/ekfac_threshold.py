"""Plain influence over a threshold: what Δ-Influence and `renormalised` are measured against.

Koh & Liang 2017 with EK-FAC's curvature (Grosse et al., arXiv 2308.03296); the paper of Δ-Influence compares with it.

    a_i = mean over affected points q of  q'H^-1 g_i

Changed: the paper's threshold, 10 in the units of its own runs, changes with damping and model; here it is the level
above which 0.1 % of the rows with other labels lie. What it lacks: rows with a large gradient, mislabelled ones above
all, are influential on everything.

Cost: as `renormalised`.
"""

from decant.data.images import Images
from decant.detectors._background import above_background
from decant.detectors.base import Case, Detection
from decant.models.training import labels_to_device, to_device


def judge(case: Case, points: Images) -> Detection:
    queries = to_device(points.pixels), labels_to_device(points.labels)
    scores = case.influence_on(queries, self_influence=False).pairwise.mean(0).cpu().numpy()
    return above_background(case, points, scores, "influence on the affected points")
