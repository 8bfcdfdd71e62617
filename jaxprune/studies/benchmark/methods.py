"""The suite `methods`: what a method loses per layer, and how long it takes.

One model is pruned by every method that works on weights or hidden units at one
sparsity, and by the rounding methods at 4 bits, each twice; the second run is
timed, so that compilation is not. `layer_error` is the mean over layers and
kernels of |X(W-W')|^2 / |XW|^2 on calibration tokens, X from the layer as it
was; `reference` is that of Wanda. Lower is better for the layer, which need not
be better for the model.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxprune import checkpoints, report
from jaxprune.models import ModelConfig
from jaxprune.pruning.checkpoint import weights
from jaxprune.studies.benchmark import timing
from jaxprune.studies.sweep import configurations

_BITS = 4


def read_configurations(
  config: ModelConfig, sparsity: float, group_size: int | None
) -> list[configurations.Configuration]:
  """List what is done to the model, Wanda first, as the others' reference.

  Args:
    config: of the model.
    sparsity: fraction removed, in [0, 1).
    group_size: inputs that share a scale in rounding; None for all.

  Raises:
    ValueError: the model cannot be pruned so.
  """
  methods = ["wanda", *(m for m in configurations.ENTRIES if m != "wanda")]
  names = [f"{name}:{sparsity}" for name in (*methods, *configurations.UNITS)]
  names += [f"{name}:{_BITS}" for name in configurations.ROUNDING]
  return configurations.read_all(
    names, config, group_size=group_size, target="mlp"
  )


def measure(
  source: checkpoints.Source,
  wanted: list[configurations.Configuration],
  tokens: np.ndarray,
  run: report.RunFolder,
  say: Callable[[str], None],
) -> dict[str, Any]:
  """Prune the model in every way.

  Args:
    source: the dense model.
    wanted: from `read_configurations`.
    tokens: calibration tokens, int [sequences, length].
    run: takes two rows per configuration.
    say: takes a line per configuration.

  Returns:
    By configuration its layer error, its fraction of zeros, and seconds.
  """
  summary: dict[str, Any] = {}
  for configuration in wanted:
    log, seconds = _prune_twice(source, configuration, tokens)
    entry = summary[configuration.name] = {
      "layer_error": float(np.mean([row["layer_error"] for row in log])),
      "sparsity": float(np.mean([row["sparsity"] for row in log])),
      "seconds": seconds,
    }
    wanda = next(iter(summary.values()))
    run.write_all(
      {
        "method": configuration.method,
        "sparsity": entry["sparsity"],
        "metric": metric,
        "value": entry[metric],
        "reference": wanda[metric],
      }
      for metric in ("layer_error", "seconds")
    )
    say(
      f"{configuration.name:20s} layer error {entry['layer_error']:.5f}   "
      f"zeros {entry['sparsity']:.3f}   {seconds:.2f} s"
    )
  return summary


def _prune_twice(source, configuration, tokens):
  """The log and the wall seconds of a second run."""
  logs = []

  def prune(folder):
    logs.append(
      weights.prune_weights(
        source,
        folder,
        method=configuration.method,
        pattern=configuration.change.pattern,
        tokens=tokens,
      )
    )

  with tempfile.TemporaryDirectory() as scratch:
    prune(f"{scratch}/first")
    seconds = timing.timed(lambda: prune(f"{scratch}/second"))
  return logs[-1], float(seconds[timing.WALL])
