"""Hand single steps back to the dense model, or stop, when a signal says so.

  python -m experiments.monitoring --cells=wanda:0.6,wanda:2:4 --out=OUT
  python -m experiments.monitoring --dense=FOLDER --pruned=PRUNED \\
    --prompts=FILE --out=OUT

The pruned model writes greedily. Where the risk of a step (`probes.monitoring`)
is above a threshold the dense model decides the token. Measured: the fraction
of steps that the dense model decides (the saving that is lost), the tokens
that it must read for that (--cache: its `own` cache, which is filled late but
filled, or the pruned model's, `shared`), exact answers (--prompts=pocket) and
agreement with the dense model's text. Thresholds are quantiles of the risk on
other prompts (the validation split, or every fourth prompt of a file) in texts
of the pruned model, so that about --fractions of the steps are handed back;
what they do on the test prompts is measured. `random` is the control of equal
size; `var_p`, `kl` and `flip` need the dense logits at every step and save
nothing: they say what a perfect signal could do.

Stop: a text is given up if its largest risk is above a threshold; accuracy
among the others against the fraction that is answered, and the area.
"""

import sys
import time

from absl import flags

from . import launch

_DENSE = flags.DEFINE_string("dense", "pocket", "The original model.")
_PRUNED = flags.DEFINE_string(
  "pruned", None, "One pruned model, instead of --cells."
)
_CELLS = flags.DEFINE_list(
  "cells", ["wanda:0.6", "wanda:2:4"], "Ways to prune, METHOD:AMOUNT."
)
_SEEDS = flags.DEFINE_list(
  "seeds", ["0", "1", "2"], "Calibration seeds of the cells."
)
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples", 32, "Calibration sequences of the cells.", lower_bound=1
)
_SEQ_LEN = flags.DEFINE_integer(
  "seq_len", 128, "Tokens of each.", lower_bound=1
)
_PROMPTS = flags.DEFINE_string(
  "prompts", "pocket", "pocket, a txt or jsonl file, or an .npz of ids."
)
_LIMIT = flags.DEFINE_integer(
  "limit", 120, "Test prompts, evenly spaced.", lower_bound=2
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  "max_new_tokens", 48, "Most tokens of a text.", lower_bound=1
)
_SIGNALS = flags.DEFINE_list(
  "signals",
  ["margin", "entropy", "variance", "random", "var_p", "kl"],
  "Signals that hand back.",
)
_FRACTIONS = flags.DEFINE_list(
  "fractions",
  ["0.02", "0.05", "0.15"],
  "Fractions of steps to hand back, about.",
)
_CACHE = flags.DEFINE_enum(
  "cache", "own", ["own", "shared"], "Which cache the dense model reads."
)
_ANALYSIS_TEMPERATURE = flags.DEFINE_float(
  "analysis_temperature",
  1.0,
  "T of the softmax in the signals.",
  lower_bound=1e-3,
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)


def main() -> None:
  import jax

  from jaxprune import checkpoints, devices, report
  from jaxprune.studies import inputs
  from jaxprune.studies.monitoring import measure, page
  from jaxprune.studies.sweep import configurations

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  dense = inputs.open_model(_DENSE.value)
  settings = measure.Settings(
    signals=tuple(_SIGNALS.value),
    fractions=tuple(map(float, _FRACTIONS.value)),
    cache=_CACHE.value,
    max_new_tokens=_MAX_NEW_TOKENS.value,
    temperature=_ANALYSIS_TEMPERATURE.value,
  )
  measure.check(settings)
  prompts = measure.read_prompts(
    dense, _PROMPTS.value, _LIMIT.value, _MAX_NEW_TOKENS.value
  )
  hashes = {"dense": checkpoints.checkpoint_hash(dense)}
  if _PRUNED.value is not None:
    pruned = inputs.open_model(_PRUNED.value)
    hashes["pruned"] = checkpoints.checkpoint_hash(pruned)
    models = [measure.opened(pruned)]
  else:
    if not inputs.is_pocket(dense):
      raise ValueError(
        f"--dense={_DENSE.value}: --cells are pruned on the pocket model's"
        " text; give --pruned for another model"
      )
    cells = [
      configurations.read_cell(text, group_size=None, target="mlp")
      for text in _CELLS.value
    ]
    for cell in cells:
      configurations.check(dense.config, cell)
    models = [
      measure.cell_model(
        dense, cell, int(seed), _NUM_SAMPLES.value, _SEQ_LEN.value
      )
      for cell in cells
      for seed in _SEEDS.value
    ]
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"calibration": _SEEDS.value, "random risk": 0, "bootstrap": 0},
    checkpoint_hash=hashes,
  ) | {"prompts": prompts.describe()}
  with report.RunFolder(
    _OUT.value, description, extra_fields=measure.FIELDS
  ) as run:
    measure.measure(
      dense,
      models,
      prompts,
      settings,
      run,
      launch.Progress("model", len(models)),
    )
    table = report.columns(report.read_records(run.folder))
    summary = page.summarise(table)
    run.write_summary(
      {
        **summary,
        "seconds": time.monotonic() - began,
        "memory": devices.peak_bytes(),
      }
    )
    page.write_page(run, description, summary, settings)
  print("\n".join(page.lines(summary)))
  print(f"wrote {_OUT.value}/report.html")


if __name__ == "__main__":
  launch.run(main)
