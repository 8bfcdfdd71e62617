"""From the arrays of `propagation` to rows and to means with intervals.

Intervals resample prompts, each with all its steps and seeds; what calibration
and draws do shows in the range over seeds.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.probes import propagation
from jaxprune.probes.decoder.propagation.path import SUBLAYERS
from jaxprune.studies.propagation import measure as run_lib
from jaxprune.studies.propagation.measure import (
  GRID,
  SPEED_GRID,
  SPEED_WEIGHTS,
  STEP_METRICS,
  Found,
  Settings,
)
from jaxprune.studies.propagation.models import Model

PROTOCOL = "teacher_forced"
BOUND = 0.1  # relative error up to which a prediction is said to hold
ARRIVALS = ("own_step", "earlier_steps", "text_before")
FIELDS = {
  "cell": report.Field("text", "", "METHOD:AMOUNT, or pruned"),
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
  "other_sublayer": report.Field("text", "", "likewise"),
  "t": report.Field("float", "", "place on the path, 0 dense and 1 pruned"),
}


def place(index: int) -> tuple[int, str]:
  """Layer and sublayer of a direction."""
  return index // 2, SUBLAYERS[index % 2]


def arrivals(steps_GCNR: np.ndarray) -> dict[str, np.ndarray]:
  """[G, R + 1, N, R] by cause to [G, N, R] by how it reached the output."""
  causes, outputs = steps_GCNR.shape[1], steps_GCNR.shape[3]
  cause_C1, step_R = np.arange(causes)[:, None] - 1, np.arange(outputs)
  picks = (
    cause_C1 == step_R,
    (cause_C1 >= 0) & (cause_C1 < step_R),
    cause_C1 < 0,
  )
  return {
    name: np.einsum(
      "GCNR,CR->GNR",
      steps_GCNR,
      np.broadcast_to(pick, (causes, outputs)).astype(steps_GCNR.dtype),
    )
    for name, pick in zip(ARRIVALS, picks)
  }


def rows(
  model: Model, found: Found, settings: Settings
) -> Iterator[dict[str, Any]]:
  """Rows of one model: by sublayer, by step, by pair, and along the path.

  Contributions of sublayers are a row per prompt and step; of a control, and
  by arrival, a row per prompt. Time influence is a row per cause and step,
  over all prompts.
  """
  base = {
    "protocol": PROTOCOL,
    "cell": model.cell,
    "source": model.source,
    "seed": model.seed,
    "analysis_temperature": settings.analysis_temperature,
  }
  for name, parts_PNR in found.sublayers.items():
    first_PNR = found.sublayers_first[name]
    for index in range(len(parts_PNR)):
      layer, sublayer = place(index)
      where = base | {"metric": name, "layer": layer, "sublayer": sublayer}
      if model.source == "pruned":
        for n, r in np.argwhere(found.alive):
          yield where | {
            "prompt": int(n),
            "step": int(r),
            "value": parts_PNR[index, n, r],
            "first_order": first_PNR[index, n, r],
          }
      else:
        yield from _by_prompt(
          where,
          found.alive,
          value=parts_PNR[index],
          first_order=first_PNR[index],
        )
  for name in STEP_METRICS:
    exact, first = (
      arrivals(tree[name]) for tree in (found.steps, found.steps_first)
    )
    for group in range(len(found.steps[name])):
      where = base | {"metric": name, "layer_group": group}
      for arrival in ARRIVALS:
        yield from _by_prompt(
          where | {"arrival": arrival},
          found.alive,
          value=exact[arrival][group],
          first_order=first[arrival][group],
        )
      yield from _time_rows(where, found, name, group)
  for number, pair in enumerate(found.pairs):
    (layer, sublayer), (other_layer, other_sublayer) = map(place, pair)
    for name, exact_XNR in found.pairs_exact.items():
      yield from _by_prompt(
        base
        | {
          "metric": name,
          "layer": layer,
          "sublayer": sublayer,
          "other_layer": other_layer,
          "other_sublayer": other_sublayer,
        },
        found.alive,
        value=exact_XNR[number],
        second_order=found.pairs_second[name][number],
      )
  for name, values_nNR in found.speeds.items():
    for t, values_NR in zip(SPEED_GRID, values_nNR):
      yield from _by_prompt(
        base | {"metric": f"path_{name}", "t": t}, found.alive, value=values_NR
      )


def _by_prompt(where, alive_NR, **columns):
  """A row per prompt: means over the steps that count."""
  for n in np.flatnonzero(alive_NR.any(1)):
    yield (
      where
      | {"prompt": int(n), "count": int(alive_NR[n].sum())}
      | {
        name: float(values_NR[n][alive_NR[n]].mean())
        for name, values_NR in columns.items()
      }
    )


def _time_rows(where, found, name, group):
  """A row per cause and step that it can reach: means over prompts."""
  count_R = found.alive.sum(0)
  for r in np.flatnonzero(count_R):
    for cause in range(r + 2):
      value, first = (
        float(tree[name][group, cause, :, r].sum() / count_R[r])
        for tree in (found.steps, found.steps_first)
      )
      yield where | {
        "cause_step": cause - 1,
        "step": int(r),
        "count": int(count_R[r]),
        "value": value,
        "first_order": first,
      }


def time_map(founds: Sequence[Found], name: str) -> np.ndarray:
  """Mean influence [G, R + 1, R] over prompts and seeds, NaN before a cause."""
  total = sum(found.steps[name].sum(2) for found in founds)
  count_R = sum(found.alive.sum(0) for found in founds)
  cause_C1, step_R = (
    np.arange(total.shape[1])[:, None] - 1,
    np.arange(total.shape[2]),
  )
  shown_CR = (cause_C1 <= step_R) & (count_R > 0)
  return np.where(shown_CR, total / np.maximum(count_R, 1), np.nan)


class _Outputs:
  """All outputs that count of several seeds, and intervals of their means."""

  def __init__(self, founds: Sequence[Found]):
    self.founds = founds
    self.prompts = np.concatenate(
      [np.argwhere(found.alive)[:, 0] for found in founds]
    )

  def pick(self, get) -> np.ndarray:
    """get(found) [..., N, R] of all seeds to [..., outputs]."""
    return np.concatenate(
      [
        np.asarray(get(found), np.float64)[..., found.alive]
        for found in self.founds
      ],
      axis=-1,
    )

  def mean(self, get) -> dict[str, float]:
    """Mean of get(found) [N, R], 95 % over prompts, and range over seeds."""
    return self.ratio(get, None)

  def ratio(self, top, bottom) -> dict[str, float]:
    """Sum over sum; a mean without `bottom`."""
    above = self.pick(top)
    below = np.ones_like(above) if bottom is None else self.pick(bottom)
    if not below.sum() > 0:
      return dict.fromkeys(
        ("mean", "low", "high", "seed_low", "seed_high"), 0.0
      )
    # Of each prompt, so that a single output may have nothing below.
    groups = np.unique(self.prompts, return_inverse=True)[1]
    above_X, below_X = np.bincount(groups, above), np.bincount(groups, below)
    kept = below_X > 0
    found = report.ratio_interval(above_X[kept], below_X[kept])
    ends = np.cumsum([0] + [each.alive.sum() for each in self.founds])
    seeds = [
      run_lib.ratio(above[a:b].sum(), below[a:b].sum())
      for a, b in zip(ends, ends[1:])
    ]
    return {
      "mean": found.estimate,
      "low": found.low,
      "high": found.high,
      "seed_low": min(seeds),
      "seed_high": max(seeds),
    }


def summarise(
  cell: str, source: str, seeds: Sequence[int], founds: Sequence[Found]
) -> dict[str, Any]:
  """The summary of one cell and source over its seeds."""
  outputs = _Outputs(founds)
  names = tuple(founds[0].change)
  sublayers = range(len(founds[0].curvature))
  mean = outputs.mean
  completeness = {
    cause: {
      name: max(found.completeness[cause][name] for found in founds)
      for name in values
    }
    for cause, values in founds[0].completeness.items()
  }
  return {
    "cell": cell,
    "source": source,
    "seeds": list(seeds),
    "prompts": len(np.unique(outputs.prompts)),
    "positions": int(founds[0].alive.sum()),
    "completeness_error": max(
      max(values.values()) for values in completeness.values()
    ),
    "completeness": completeness,
    "nodes": max(found.nodes for found in founds),
    "seconds": {
      name: sum(found.seconds[name] for found in founds)
      for name in founds[0].seconds
    },
    "change": {name: mean(lambda found: found.change[name]) for name in names},
    "by_sublayer": [
      dict(zip(("layer", "sublayer"), place(index)))
      | {
        name: mean(lambda found: found.sublayers[name][index]) for name in names
      }
      for index in sublayers
    ],
    "by_kind": {
      kind: {
        name: mean(lambda found: found.sublayers[name][number::2].sum(0))
        for name in names
      }
      for number, kind in enumerate(SUBLAYERS)
    },
    "by_group": {
      name: [
        {
          arrival: mean(
            lambda found: arrivals(found.steps[name])[arrival][group]
          )
          for arrival in ARRIVALS
        }
        | {
          f"{arrival}_first_order": mean(
            lambda found: arrivals(found.steps_first[name])[arrival][group]
          )
          for arrival in ARRIVALS
        }
        for group in range(len(founds[0].steps[name]))
      ]
      for name in STEP_METRICS
    },
    "by_arrival": {
      name: {
        arrival: mean(lambda found: arrivals(found.steps[name])[arrival].sum(0))
        for arrival in ARRIVALS
      }
      for name in STEP_METRICS
    },
    "first_order_error": {
      name: _relative(
        outputs.pick(lambda found: found.sublayers_first[name].sum(0)),
        outputs.pick(lambda found: found.change[name]),
      )
      for name in names
    },
    "amplification": _amplification(outputs),
    "interactions": _interactions(outputs),
  } | _path(outputs)


def _relative(found, truth):
  return float(propagation.relative_error(found, truth))


def _path(outputs):
  """Errors of predictions along the path, and how far they hold."""
  line: dict[str, Any] = {"t": list(GRID)}
  radius = {}
  size_nX = outputs.pick(lambda found: found.scan["size"])
  for name in ("kl", "one_minus_cos_p"):
    truth_nX = outputs.pick(lambda found: found.scan["truth"][name])
    line.setdefault("truth", {})[name] = truth_nX.mean(1).tolist()
  for order, label in ((1, "first_order"), (2, "second_order")):
    error_nX = outputs.pick(lambda found: found.scan[f"error_{order}"])
    line[label] = {
      "logits": [
        run_lib.ratio(*pair) for pair in zip(error_nX.sum(1), size_nX.sum(1))
      ]
    }
    line[f"{label}_mean"] = {}
    for name in ("kl", "one_minus_cos_p"):
      truth_nX, told_nX = (
        outputs.pick(lambda found: found.scan[each][name])
        for each in ("truth", f"order_{order}")
      )
      line[label][name] = [_relative(*pair) for pair in zip(told_nX, truth_nX)]
      line[f"{label}_mean"][name] = told_nX.mean(1).tolist()
    radius[label] = {
      name: propagation.radius(np.array(GRID), np.array(errors), BOUND)
      for name, errors in line[label].items()
    }
  return {"path": line, "radius": radius}


def _amplification(outputs):
  """Speeds of p, z and h, at each t and over the whole path."""
  weights_n = np.array(SPEED_WEIGHTS)
  over = lambda name: (
    lambda found: np.einsum("n,nNR->NR", weights_n, found.speeds[name])
  )
  at = {
    name: outputs.pick(lambda found: found.speeds[name])
    for name in outputs.founds[0].speeds
  }
  # Entropy of the dense model: half of the outputs are below the median.
  entropy_X = at["entropy"][0]
  median = float(np.median(entropy_X))
  sure = lambda low: lambda found: (found.speeds["entropy"][0] <= median) == low
  half = lambda get, low: (
    lambda found: np.where(sure(low)(found), get(found), 0)
  )
  p_X, z_X = (outputs.pick(over(name)) for name in ("p", "z_centred"))
  square_nX = at["p"] ** 2
  size_nX = np.maximum(square_nX, np.finfo(np.float32).tiny)
  rest_nX = np.abs(square_nX - at["turn"] ** 2 - at["stretch"] ** 2)
  theorem = lambda found: found.speeds["turn"][0] ** 2 / 2
  return {
    "t": list(SPEED_GRID),
    "mean": {name: values.mean(1).tolist() for name, values in at.items()},
    "median": {
      name: np.median(values, axis=1).tolist() for name, values in at.items()
    },
    # Far below the largest speeds float32 has no digits left to compare.
    "identity_error": float(
      np.max(np.where(at["p"] > 1e-6 * at["p"].max(), rest_nX / size_nX, 0))
    ),
    "speed_p": outputs.mean(over("p")),
    "turn": outputs.mean(over("turn")),
    "angle": outputs.mean(
      lambda found: np.arccos(
        np.clip(1 - found.change["one_minus_cos_p"], 0, 1)
      )
    ),
    "speed_z_centred": outputs.mean(over("z_centred")),
    "speed_h": outputs.mean(over("h")),
    "p_over_z_centred": outputs.ratio(over("p"), over("z_centred")),
    "p_over_h": outputs.ratio(over("p"), over("h")),
    "median_p_over_z_centred": float(
      np.median(np.divide(p_X, z_X, out=np.zeros_like(p_X), where=z_X > 0))
    ),
    "damped": outputs.mean(
      lambda found: over("p")(found) < over("z_centred")(found)
    ),
    "median_entropy": median,
    "p_over_z_centred_sure": outputs.ratio(
      half(over("p"), True), half(over("z_centred"), True)
    ),
    "p_over_z_centred_unsure": outputs.ratio(
      half(over("p"), False), half(over("z_centred"), False)
    ),
    "one_minus_cos_p": outputs.mean(
      lambda found: found.change["one_minus_cos_p"]
    ),
    "theorem_2_of_first_order": outputs.mean(theorem),
  }


def _interactions(outputs):
  """The KL of sublayers alone and together, and the strongest pairs."""
  founds = outputs.founds
  mean = outputs.mean
  diagonal = lambda found: np.einsum("PPNR->NR", found.curvature) / 2
  names = tuple(founds[0].change)
  return {
    "kl": mean(lambda found: found.change["kl"]),
    "kl_alone": mean(lambda found: found.alone["kl"].sum(0)),
    "kl_alone_over_together": outputs.ratio(
      lambda found: found.alone["kl"].sum(0), lambda found: found.change["kl"]
    ),
    "kl_second_order": mean(lambda found: found.curvature.sum((0, 1)) / 2),
    "kl_second_order_alone": mean(diagonal),
    "curvature": outputs.pick(lambda found: found.curvature).mean(-1).tolist(),
    "alone": [
      dict(zip(("layer", "sublayer"), place(index)))
      | {name: mean(lambda found: found.alone[name][index]) for name in names}
      for index in range(len(founds[0].curvature))
    ],
    "pairs": [
      {"first": list(place(pair[0])), "second": list(place(pair[1]))}
      | {
        name: mean(lambda found: found.pairs_exact[name][number])
        for name in names
      }
      | {
        f"{name}_second_order": mean(
          lambda found: found.pairs_second[name][number]
        )
        for name in names
      }
      for number, pair in enumerate(founds[0].pairs)
    ],
  }
