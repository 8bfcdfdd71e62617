"""What caused the change: means with intervals over everything measured.

Intervals resample prompts, each with all its steps and seeds; the range over
seeds shows what calibration and random draws do.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.probes import propagation
from jaxprune.probes.decoder.propagation.path import SUBLAYERS
from jaxprune.studies.propagation.arrays import (
  GRID,
  RATE_GRID,
  RATE_WEIGHTS,
  STEP_METRICS,
  Attributed,
  Settings,
  ratio,
)
from jaxprune.studies.propagation.rows import ARRIVALS, arrivals, place

BOUND = 0.1  # relative error up to which a prediction is said to hold
_Get = Callable[[Attributed], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Outputs:
  """All outputs that count, of one model over its seeds.

  Attributes:
    seeds: what was measured with each seed.
    prompts: prompt of each output, seed after seed, int [outputs].
  """

  seeds: Sequence[Attributed]
  prompts: np.ndarray


def _pick(outputs: _Outputs, get: _Get) -> np.ndarray:
  """get(attributed) [..., X, R] of all seeds, as [..., outputs]."""
  return np.concatenate(
    [
      np.asarray(get(seed), np.float64)[..., seed.alive]
      for seed in outputs.seeds
    ],
    axis=-1,
  )


def _mean(outputs: _Outputs, get: _Get) -> dict[str, float]:
  """Mean of get(attributed) [X, R], 95 % over prompts, and range over seeds."""
  return _ratio(outputs, get, None)


def _ratio(outputs, top: _Get, bottom: _Get | None) -> dict[str, float]:
  """Sum over sum; a mean without `bottom`."""
  above_R = _pick(outputs, top)
  below_R = np.ones_like(above_R) if bottom is None else _pick(outputs, bottom)
  if not below_R.sum() > 0:
    nothing = statistics.Estimate(0.0, 0.0, 0.0, 0).to_json()
    return nothing | {"seed_low": 0.0, "seed_high": 0.0}
  # Summed over each prompt, because the denominator of a single output may be
  # 0.
  prompts = np.unique(outputs.prompts, return_inverse=True)[1]
  above_X, below_X = (
    np.bincount(prompts, values) for values in (above_R, below_R)
  )
  some_X = below_X > 0
  ends = np.cumsum([0] + [seed.alive.sum() for seed in outputs.seeds])
  by_seed = [
    ratio(above_R[a:b].sum(), below_R[a:b].sum())
    for a, b in zip(ends, ends[1:])
  ]
  return statistics.ratio(above_X[some_X], below_X[some_X]).to_json() | {
    "seed_low": min(by_seed),
    "seed_high": max(by_seed),
  }


def summarise(
  by_model: Mapping[tuple[str, str], Mapping[int, Attributed]],
  settings: Settings,
) -> dict[str, Any]:
  """The summary of the run.

  Args:
    by_model: what was measured, by configuration and source, by seed.
    settings: of the run.
  """
  entries = [
    summarise_model(*key, by_seed, settings)
    for key, by_seed in by_model.items()
  ]
  worst = max(entry["completeness_error"] for entry in entries)
  return {
    "analysis_temperature": settings.analysis_temperature,
    "tolerance": settings.tolerance,
    "completeness_error": worst,
    "complete": worst <= settings.tolerance,
    "nodes": max(entry["nodes"] for entry in entries),
    "models": entries,
  }


def summarise_model(
  configuration: str,
  source: str,
  by_seed: Mapping[int, Attributed],
  settings: Settings,
) -> dict[str, Any]:
  """The summary of one configuration and source over its seeds.

  Args:
    configuration: METHOD:AMOUNT, or pruned.
    source: pruned, random or noise.
    by_seed: what was measured.
    settings: of the run.
  """
  seeds = list(by_seed.values())
  outputs = _Outputs(
    seeds=seeds,
    prompts=np.concatenate([np.argwhere(seed.alive)[:, 0] for seed in seeds]),
  )
  names = tuple(seeds[0].change)
  sublayers = range(len(seeds[0].curvature))
  mean = lambda get: _mean(outputs, get)
  completeness = {
    cause: {
      name: max(seed.completeness[cause][name] for seed in seeds)
      for name in values
    }
    for cause, values in seeds[0].completeness.items()
  }
  entry = {
    "configuration": configuration,
    "source": source,
    "seeds": list(by_seed),
    "prompts": len(np.unique(outputs.prompts)),
    "positions": int(seeds[0].alive.sum()),
    "completeness_error": max(
      max(values.values()) for values in completeness.values()
    ),
    "completeness": completeness,
    "nodes": max(seed.nodes for seed in seeds),
    "seconds": {
      name: sum(seed.seconds[name] for seed in seeds)
      for name in seeds[0].seconds
    },
    "change": {name: mean(lambda seed: seed.change[name]) for name in names},
    "by_sublayer": [
      dict(zip(("layer", "sublayer"), place(index)))
      | {name: mean(lambda seed: seed.sublayers[name][index]) for name in names}
      for index in sublayers
    ],
    "by_kind": {
      kind: {
        name: mean(lambda seed: seed.sublayers[name][number::2].sum(0))
        for name in names
      }
      for number, kind in enumerate(SUBLAYERS)
    },
    "by_group": {
      name: [
        {
          arrival: mean(lambda seed: arrivals(seed.steps[name])[arrival][group])
          for arrival in ARRIVALS
        }
        | {
          f"{arrival}_first_order": mean(
            lambda seed: arrivals(seed.steps_first[name])[arrival][group]
          )
          for arrival in ARRIVALS
        }
        for group in range(len(seeds[0].steps[name]))
      ]
      for name in STEP_METRICS
    },
    "by_arrival": {
      name: {
        arrival: mean(lambda seed: arrivals(seed.steps[name])[arrival].sum(0))
        for arrival in ARRIVALS
      }
      for name in STEP_METRICS
    },
    "through_cache": {
      name: mean(
        lambda seed: sum(
          arrivals(seed.steps[name])[arrival].sum(0) for arrival in ARRIVALS[1:]
        )
      )
      for name in STEP_METRICS
    },
    "first_order_error": {
      name: _relative(
        _pick(outputs, lambda seed: seed.sublayers_first[name].sum(0)),
        _pick(outputs, lambda seed: seed.change[name]),
      )
      for name in names
    },
    "amplification": _amplification(outputs),
    "interactions": _interactions(outputs),
  } | _path(outputs)
  entry["largest"] = _largest(entry["by_sublayer"], "kl")
  if source == "pruned":
    entry["by_step"] = _by_step(seeds, settings)
  return entry


def _largest(parts, metric, count=3) -> list[tuple[str, float]]:
  """Sublayers whose mean contribution is largest in size."""
  named = [
    (f"{part['sublayer']} {part['layer']}", part[metric]["value"])
    for part in parts
  ]
  return sorted(named, key=lambda pair: -abs(pair[1]))[:count]


def _by_step(seeds, settings) -> dict[str, Any]:
  """Means over prompts and seeds at each output step, for figures.

  `groups` are the first and last layer of each group; `change` [R] and, by
  kind of sublayer, `contributions` [P, R] are of the KL; `influence` is by
  metric [P, R + 1, R], by the step whose weights are changed (first the text
  before) and the output step, None before a cause.
  """
  groups = propagation.layer_groups(
    len(seeds[0].curvature) // 2, settings.groups
  )
  alive_R = np.maximum(sum(seed.alive.sum(0) for seed in seeds), 1)
  mean = lambda get: (
    sum(get(seed).sum(0) for seed in seeds) / alive_R
  ).tolist()
  return {
    "groups": [[group[0], group[-1]] for group in groups],
    "change": mean(lambda seed: seed.change["kl"]),
    "contributions": {
      kind: [
        mean(
          lambda seed: seed.sublayers["kl"][
            [2 * layer + number for layer in group]
          ].sum(0)
        )
        for group in groups
      ]
      for number, kind in enumerate(SUBLAYERS)
    },
    "influence": {name: time_map(seeds, name) for name in STEP_METRICS},
  }


def time_map(
  seeds: Sequence[Attributed], name: str
) -> list[list[list[float | None]]]:
  """Mean influence of each step on each output, over prompts and seeds.

  Args:
    seeds: what was measured with each seed.
    name: a metric of `STEP_METRICS`.

  Returns:
    [P, R + 1, R], None before a cause and where no output counts.
  """
  total_PYR = sum(seed.steps[name].sum(2) for seed in seeds)
  count_R = sum(seed.alive.sum(0) for seed in seeds)
  cause_Y1, step_R = (
    np.arange(total_PYR.shape[1])[:, None] - 1,
    np.arange(total_PYR.shape[2]),
  )
  shown_YR = (cause_Y1 <= step_R) & (count_R > 0)
  mean_PYR = total_PYR / np.maximum(count_R, 1)
  return np.where(shown_YR, mean_PYR.astype(object), None).tolist()


def _relative(predicted, truth) -> float:
  return float(propagation.relative_error(predicted, truth))


def _path(outputs):
  """Errors of predictions along the path, and how far they hold."""
  line: dict[str, Any] = {"t": list(GRID)}
  radius = {}
  size_ZR = _pick(outputs, lambda seed: seed.scan["size"])
  for name in ("kl", "one_minus_cos_p"):
    truth_ZR = _pick(outputs, lambda seed: seed.scan["truth"][name])
    line.setdefault("truth", {})[name] = truth_ZR.mean(1).tolist()
  for order, label in ((1, "first_order"), (2, "second_order")):
    error_ZR = _pick(outputs, lambda seed: seed.scan[f"error_{order}"])
    line[label] = {
      "logits": [ratio(*pair) for pair in zip(error_ZR.sum(1), size_ZR.sum(1))]
    }
    line[f"{label}_mean"] = {}
    for name in ("kl", "one_minus_cos_p"):
      truth_ZR, predicted_ZR = (
        _pick(outputs, lambda seed: seed.scan[each][name])
        for each in ("truth", f"order_{order}")
      )
      line[label][name] = [
        _relative(*pair) for pair in zip(predicted_ZR, truth_ZR)
      ]
      line[f"{label}_mean"][name] = predicted_ZR.mean(1).tolist()
    radius[label] = {
      name: propagation.radius(np.array(GRID), np.array(errors), BOUND)
      for name, errors in line[label].items()
    }
  return {"path": line, "radius": radius}


def _amplification(outputs):
  """Rates of p, z and h, at each t and over the whole path."""
  weights_Z = np.array(RATE_WEIGHTS)
  over = lambda name: (
    lambda seed: np.einsum("Z,ZXR->XR", weights_Z, seed.rates[name])
  )
  at_t = {
    name: _pick(outputs, lambda seed: seed.rates[name])
    for name in outputs.seeds[0].rates
  }
  # The entropy of the dense model: half of the outputs are below the median.
  entropy_R = at_t["entropy"][0]
  median = float(np.median(entropy_R))
  sure = lambda low: lambda seed: (seed.rates["entropy"][0] <= median) == low
  half = lambda get, low: lambda seed: np.where(sure(low)(seed), get(seed), 0)
  p_R, z_R = (_pick(outputs, over(name)) for name in ("p", "z_centred"))
  square_ZR = at_t["p"] ** 2
  size_ZR = np.maximum(square_ZR, np.finfo(np.float32).tiny)
  rest_ZR = np.abs(square_ZR - at_t["turn"] ** 2 - at_t["stretch"] ** 2)
  theorem = lambda seed: seed.rates["turn"][0] ** 2 / 2
  return {
    "t": list(RATE_GRID),
    "mean": {name: values.mean(1).tolist() for name, values in at_t.items()},
    "median": {
      name: np.median(values, axis=1).tolist() for name, values in at_t.items()
    },
    # Where p moves far less than at its largest rate, float32 has no digits
    # left to compare.
    "identity_error": float(
      np.max(np.where(at_t["p"] > 1e-6 * at_t["p"].max(), rest_ZR / size_ZR, 0))
    ),
    "rate_p": _mean(outputs, over("p")),
    "turn": _mean(outputs, over("turn")),
    "angle": _mean(
      outputs,
      lambda seed: np.arccos(np.clip(1 - seed.change["one_minus_cos_p"], 0, 1)),
    ),
    "rate_z_centred": _mean(outputs, over("z_centred")),
    "rate_h": _mean(outputs, over("h")),
    "p_over_z_centred": _ratio(outputs, over("p"), over("z_centred")),
    "p_over_h": _ratio(outputs, over("p"), over("h")),
    "median_p_over_z_centred": float(
      np.median(np.divide(p_R, z_R, out=np.zeros_like(p_R), where=z_R > 0))
    ),
    "damped": _mean(
      outputs, lambda seed: over("p")(seed) < over("z_centred")(seed)
    ),
    "median_entropy": median,
    "p_over_z_centred_sure": _ratio(
      outputs, half(over("p"), True), half(over("z_centred"), True)
    ),
    "p_over_z_centred_unsure": _ratio(
      outputs, half(over("p"), False), half(over("z_centred"), False)
    ),
    "one_minus_cos_p": _mean(
      outputs, lambda seed: seed.change["one_minus_cos_p"]
    ),
    "theorem_2_of_first_order": _mean(outputs, theorem),
  }


def _interactions(outputs):
  """The KL of sublayers alone and together, and the strongest pairs."""
  mean = lambda get: _mean(outputs, get)
  diagonal = lambda seed: np.einsum("PPXR->XR", seed.curvature) / 2
  first = outputs.seeds[0]
  names = tuple(first.change)
  return {
    "kl": mean(lambda seed: seed.change["kl"]),
    "kl_alone": mean(lambda seed: seed.alone["kl"].sum(0)),
    "kl_alone_over_together": _ratio(
      outputs,
      lambda seed: seed.alone["kl"].sum(0),
      lambda seed: seed.change["kl"],
    ),
    "kl_second_order": mean(lambda seed: seed.curvature.sum((0, 1)) / 2),
    "kl_second_order_alone": mean(diagonal),
    "curvature": _pick(outputs, lambda seed: seed.curvature).mean(-1).tolist(),
    "alone": [
      dict(zip(("layer", "sublayer"), place(index)))
      | {name: mean(lambda seed: seed.alone[name][index]) for name in names}
      for index in range(len(first.curvature))
    ],
    "pairs": [
      {"first": list(place(pair[0])), "second": list(place(pair[1]))}
      | {
        name: mean(lambda seed: seed.pairs_exact[name][number])
        for name in names
      }
      | {
        f"{name}_second_order": mean(
          lambda seed: seed.pairs_second[name][number]
        )
        for name in names
      }
      for number, pair in enumerate(first.pairs)
    ],
  }
