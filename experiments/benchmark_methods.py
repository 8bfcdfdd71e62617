"""How much of the output does each method lose, and how long does it take?

  python -m experiments.benchmark_methods --out=out/methods

Prunes one model (the pocket model by default) by every method that works on
single weights at one sparsity, and by the rounding methods, each twice; the
second run is timed, so that compilation is not. `layer_error` is the mean over
layers and kernels of |X(W-W')|^2 / |XW|^2 on calibration tokens, X from the
layer as it was; `reference` is that of Wanda. Lower is better for the layer,
which need not be better for the model (see experiments.discrepancy).
"""

import sys
import tempfile
import time

from absl import flags

from jaxprune.studies.sweep import configurations

from . import launch

_MODEL = flags.DEFINE_string(
  "model", "pocket", "A folder, a hub id, or pocket."
)
_SPARSITY = flags.DEFINE_float("sparsity", 0.5, "Fraction removed, in [0, 1).")
_CALIBRATION = flags.DEFINE_string(
  "calibration", "pocket", "As in experiments.prune."
)
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples", 32, "Calibration sequences.", lower_bound=1
)
_SEQ_LEN = flags.DEFINE_integer(
  "seq_len", 128, "Tokens of a calibration sequence.", lower_bound=1
)
_GROUP_SIZE = flags.DEFINE_integer(
  "group_size", 64, "Inputs that share a scale in rtn and awq; 0 for all."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the calibration.")
_OUT = flags.DEFINE_string("out", "out/methods", "Folder to write.")


def main() -> None:
  import jax
  import numpy as np

  from jaxprune import checkpoints, report
  from jaxprune.calibration import tokens
  from jaxprune.pruning.checkpoint import weights
  from jaxprune.studies import inputs

  jax.config.update("jax_default_matmul_precision", "highest")
  source = inputs.open_model(_MODEL.value)
  # Wanda first: it is the reference of the others.
  methods = ["wanda", *(m for m in configurations.ENTRIES if m != "wanda")]
  cells = [
    f"{method}:{_SPARSITY.value}"
    for method in methods + [*configurations.UNITS]
  ]
  cells += [f"{method}:4" for method in configurations.ROUNDING]
  cells = [
    configurations.read_cell(
      cell, group_size=_GROUP_SIZE.value or None, target="mlp"
    )
    for cell in cells
  ]
  for cell in cells:
    configurations.check(source.config, cell)
  calibration = inputs.read_calibration(
    source,
    _CALIBRATION.value,
    num_samples=_NUM_SAMPLES.value,
    seq_len=_SEQ_LEN.value,
    seed=_SEED.value,
  )
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"calibration": _SEED.value},
    checkpoint_hash=checkpoints.checkpoint_hash(source),
    calibration=tokens.describe(calibration),
  )
  summary = {}
  with report.RunFolder(_OUT.value, description) as run:
    for cell in cells:
      with tempfile.TemporaryDirectory() as scratch:
        for attempt in ("first", "second"):
          began = time.perf_counter()
          log = weights.prune_weights(
            source,
            f"{scratch}/{attempt}",
            method=cell.method,
            pattern=cell.pattern,
            tokens=calibration.tokens,
          )
          seconds = time.perf_counter() - began
      error = float(np.mean([row["layer_error"] for row in log]))
      sparsity = float(np.mean([row["sparsity"] for row in log]))
      summary[cell.name] = {
        "layer_error": error,
        "sparsity": sparsity,
        "seconds": seconds,
      }
      wanda = next(iter(summary.values()))
      for metric in ("layer_error", "seconds"):
        run.write_all(
          [
            {
              "method": cell.method,
              "sparsity": sparsity,
              "metric": metric,
              "value": summary[cell.name][metric],
              "reference": wanda[metric],
            }
          ]
        )
      print(
        f"{cell.name:20s} layer error {error:.5f}   zeros {sparsity:.3f}  "
        f" {seconds:.2f} s",
        flush=True,
      )
    run.write_summary(summary)


if __name__ == "__main__":
  launch.run(main)
