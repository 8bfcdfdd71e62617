"""From the arrays of `propagation` to rows of the records."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.probes.decoder.propagation.path import SUBLAYERS
from jaxprune.studies.propagation.arrays import (
  RATE_GRID,
  STEP_METRICS,
  Attributed,
  Settings,
)
from jaxprune.studies.propagation.models import Model

PROTOCOL = "teacher_forced"
ARRIVALS = ("own_step", "earlier_steps", "text_before")
FIELDS = {
  "configuration": report.Field("text", "", "METHOD:AMOUNT, or pruned"),
  "source": report.Field(
    "text",
    "",
    "pruned; random: as much taken at random; noise: a random"
    " change of the same norm",
  ),
  "layer_group": report.Field(
    "int", "", "layers in order, cut into --groups; 0 is the earliest"
  ),
  "arrival": report.Field(
    "text",
    "",
    "own_step, earlier_steps or text_before: where weights are changed",
  ),
  "cause_step": report.Field(
    "int", "", "step whose weights are changed, -1 for the text before"
  ),
  "first_order": report.Field(
    "float", "", "`value` as the derivative at the dense model predicts"
  ),
  "second_order": report.Field(
    "float", "", "`value` as second derivatives there predict"
  ),
  "other_layer": report.Field("int", "", "of the other sublayer of a pair"),
  "other_sublayer": report.Field(
    "text", "", "kind of the other sublayer of a pair"
  ),
  "t": report.Field("float", "", "place on the path, 0 dense and 1 pruned"),
}


def place(index: int) -> tuple[int, str]:
  """Layer and sublayer of a direction, from its index."""
  return index // 2, SUBLAYERS[index % 2]


def arrivals(steps_PYXR: np.ndarray) -> dict[str, np.ndarray]:
  """Sum contributions over causes, by how they reached the output.

  Args:
    steps_PYXR: [P, Y, X, R] with Y = R + 1; cause 0 is the text before the
      first step.

  Returns:
    [P, X, R] under each name of `ARRIVALS`.
  """
  causes, outputs = steps_PYXR.shape[1], steps_PYXR.shape[3]
  cause_Y1, step_R = np.arange(causes)[:, None] - 1, np.arange(outputs)
  picks = (
    cause_Y1 == step_R,
    (cause_Y1 >= 0) & (cause_Y1 < step_R),
    cause_Y1 < 0,
  )
  return {
    name: np.einsum(
      "PYXR,YR->PXR",
      steps_PYXR,
      np.broadcast_to(pick, (causes, outputs)).astype(steps_PYXR.dtype),
    )
    for name, pick in zip(ARRIVALS, picks)
  }


def rows(
  model: Model, attributed: Attributed, settings: Settings
) -> Iterator[dict[str, Any]]:
  """Rows of one model: by sublayer, by step, by pair, and along the path.

  Contributions of sublayers are a row per prompt and step; of a control, and
  by arrival, a row per prompt. Time influence is a row per cause and step,
  over all prompts.

  Args:
    model: what was measured.
    attributed: its arrays.
    settings: of the run.
  """
  base = {
    "protocol": PROTOCOL,
    "configuration": model.configuration,
    "source": model.source,
    "seed": model.seed,
    "analysis_temperature": settings.analysis_temperature,
  }
  for name, parts_PXR in attributed.sublayers.items():
    first_PXR = attributed.sublayers_first[name]
    for index in range(len(parts_PXR)):
      layer, sublayer = place(index)
      where = base | {"metric": name, "layer": layer, "sublayer": sublayer}
      if model.source == "pruned":
        for n, r in np.argwhere(attributed.alive):
          yield where | {
            "prompt": int(n),
            "step": int(r),
            "value": parts_PXR[index, n, r],
            "first_order": first_PXR[index, n, r],
          }
      else:
        yield from _by_prompt(
          where,
          attributed.alive,
          value=parts_PXR[index],
          first_order=first_PXR[index],
        )
  for name in STEP_METRICS:
    exact, first = (
      arrivals(tree[name])
      for tree in (attributed.steps, attributed.steps_first)
    )
    for group in range(len(attributed.steps[name])):
      where = base | {"metric": name, "layer_group": group}
      for arrival in ARRIVALS:
        yield from _by_prompt(
          where | {"arrival": arrival},
          attributed.alive,
          value=exact[arrival][group],
          first_order=first[arrival][group],
        )
      yield from _time_rows(where, attributed, name, group)
  for number, pair in enumerate(attributed.pairs):
    (layer, sublayer), (other_layer, other_sublayer) = map(place, pair)
    for name, exact_PXR in attributed.pairs_exact.items():
      yield from _by_prompt(
        base
        | {
          "metric": name,
          "layer": layer,
          "sublayer": sublayer,
          "other_layer": other_layer,
          "other_sublayer": other_sublayer,
        },
        attributed.alive,
        value=exact_PXR[number],
        second_order=attributed.pairs_second[name][number],
      )
  for name, values_ZXR in attributed.rates.items():
    for t, values_XR in zip(RATE_GRID, values_ZXR):
      yield from _by_prompt(
        base | {"metric": f"path_{name}", "t": t},
        attributed.alive,
        value=values_XR,
      )


def _by_prompt(where, alive_XR, **columns):
  """A row per prompt: means over the steps that count."""
  for n in np.flatnonzero(alive_XR.any(1)):
    yield (
      where
      | {"prompt": int(n), "count": int(alive_XR[n].sum())}
      | {
        name: float(values_XR[n][alive_XR[n]].mean())
        for name, values_XR in columns.items()
      }
    )


def _time_rows(where, attributed, name, group):
  """A row per cause and step that it can reach: means over prompts."""
  count_R = attributed.alive.sum(0)
  for r in np.flatnonzero(count_R):
    for cause in range(r + 2):
      value, first = (
        float(tree[name][group, cause, :, r].sum() / count_R[r])
        for tree in (attributed.steps, attributed.steps_first)
      )
      yield where | {
        "cause_step": cause - 1,
        "step": int(r),
        "count": int(count_R[r]),
        "value": value,
        "first_order": first,
      }
