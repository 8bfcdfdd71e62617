"""Where is the threshold, and which models lie on its wrong side?"""

from collections.abc import Mapping

import numpy as np

from jaxprune.report import figures

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def score_against_feature(
  feature: np.ndarray,
  kept: np.ndarray,
  learnt: np.ndarray,
  kinds: Mapping[str, np.ndarray],
  *,
  x: str,
  keep: float,
  threshold: float | None,
) -> bytes:
  """Share of the dense score over a feature, a point per pruned model.

  Args:
    feature: float [models], not negative; 0 is drawn left of the least value.
    kept: share of the dense score, float [models].
    learnt: whether the threshold was learnt from it, bool [models].
    kinds: label to bool [models]; each has a marker of its own.
    x: field name or label of the feature.
    keep: share that is called survival, a horizontal line.
    threshold: a vertical line, or None.

  Returns:
    A PNG. Learnt-from models are hollow, others are filled.
  """
  feature, kept = np.asarray(feature, float), np.asarray(kept, float)
  positive = feature[feature > 0]
  if threshold:
    positive = np.append(positive, threshold)
  floor = positive.min() / 2 if positive.size else 1e-3
  shown = np.maximum(feature, floor)
  with figures._style():
    figure, (axes,) = figures._figure(figures._WIDE)
    axes.set_xscale("log")
    for index, (name, chosen) in enumerate(kinds.items()):
      colour = figures._OTHERS[index % len(figures._OTHERS)][0]
      for hollow, at in ((True, chosen & learnt), (False, chosen & ~learnt)):
        axes.plot(
          shown[at],
          kept[at],
          _MARKERS[index % len(_MARKERS)],
          alpha=0.8,
          color=colour,
          markerfacecolor="none" if hollow else colour,
          label=None if hollow else name,
        )
    axes.axhline(keep, color="#666666", linewidth=1)
    if threshold is not None:
      axes.axvline(
        max(threshold, floor), color=figures._INK, linewidth=1, linestyle="--"
      )
    low, high = axes.get_xlim()
    figures._log_ticks(axes.xaxis, low, high)
    figures._finish(axes, x, "share of the dense score kept")
    zeros = int(np.sum(feature <= 0))
    if zeros:
      axes.set_title(
        f"{zeros} at 0, drawn at the left edge", fontsize=8, color="#666666"
      )
    figures._legend(figure, axes, len(kinds))
    return figures._png(figure)
