"""Divide what pruning did to the output among sublayers and decoding steps.

  python -m experiments.propagation --model=pocket \\
    --cells=wanda:0.5,drop_attention:4 --seeds=0,1,2 --out=OUT
  python -m experiments.propagation --dense=FOLDER --pruned=PRUNED \\
    --prompts=FILE --max_new_tokens=32 --out=OUT

Prunes the model once per cell and calibration seed, or takes one --pruned
folder. The dense model continues every prompt greedily, both models read that
text, and the change of every output is divided exactly: the weights are moved
from dense to pruned, and the derivative by each sublayer's share is integrated
on the way (`probes.propagation`). The contributions add up to the true change;
summary.json says how nearly, as `completeness_error` (the worst of all models,
read-outs and of the logits), and more quadrature nodes are taken until that is
below --tolerance. Beside them stand

  first order    what the derivative at the dense model would have said, and up
                 to which t it holds
  time           what the weights of a group of layers, changed at one step, do
                 to a later output: at the step itself, or through the cache
  interactions   what two sublayers do that neither does alone, exactly and to
                 second order
  speeds         how fast p, z and h move along the path, and sqrt(Var_r(dz))
  chance         the same of random changes as large (`source`): `random`, as
                 many weights or sublayers, and `noise`, of the same norm

Reference: He et al., arXiv 2603.24652, section 5; arXiv:1703.01365.
"""

import dataclasses
import pathlib
import sys
import time

from absl import flags

from jaxprune.studies.sweep import configurations

from . import launch

_MODEL = flags.DEFINE_string(
  "model", "pocket", "The dense model: a folder, a hub id, or pocket."
)
flags.DEFINE_alias("dense", "model")
_PRUNED = flags.DEFINE_string(
  "pruned", None, "One pruned folder, instead of --cells."
)
_CELLS = flags.DEFINE_list(
  "cells",
  ["wanda:0.5"],
  "METHOD:AMOUNT, as in jaxprune/studies/sweep/configurations.py.",
)
_SEEDS = flags.DEFINE_list(
  "seeds", ["0", "1", "2"], "Of the calibration and of chance."
)
_CONTROLS = flags.DEFINE_bool(
  "controls", True, "Also measure random changes as large."
)
_CALIBRATION = flags.DEFINE_string(
  "calibration", "pocket", "As in experiments.prune."
)
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples", 32, "Calibration sequences.", lower_bound=1
)
_SEQ_LEN = flags.DEFINE_integer(
  "seq_len", 128, "Tokens of a calibration sequence.", lower_bound=2
)
_PROMPTS = flags.DEFINE_string(
  "prompts", "pocket", "txt or jsonl file, or an .npz of ids."
)
_LIMIT = flags.DEFINE_integer(
  "limit", 8, "Only the first so many prompts.", lower_bound=1
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  "max_new_tokens", 16, "Steps to decode and attribute.", lower_bound=1
)
_BATCH = flags.DEFINE_integer(
  "batch", 8, "Prompts measured together.", lower_bound=1
)
_ANALYSIS_TEMPERATURE = flags.DEFINE_float(
  "analysis_temperature",
  1.0,
  "T of the softmax that is measured.",
  lower_bound=1e-3,
)
_TOLERANCE = flags.DEFINE_float(
  "tolerance", 1e-3, "Relative completeness error to reach.", lower_bound=1e-7
)
_MAX_NODES = flags.DEFINE_integer(
  "max_nodes", 64, "Quadrature nodes at most.", lower_bound=4
)
_GROUPS = flags.DEFINE_integer(
  "groups", 3, "Groups of layers in the time influence.", lower_bound=1
)
_INTERACTIONS = flags.DEFINE_integer(
  "interactions", 8, "Pairs of sublayers, the strongest.", lower_bound=0
)
_OPTIONS = flags.DEFINE_list(
  "options", [], "Token ids of options, for their margin."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)


def main() -> None:
  import jax
  import jax.numpy as jnp

  from jaxprune import checkpoints, devices, report
  from jaxprune.probes import propagation
  from jaxprune.studies import inputs
  from jaxprune.studies.propagation import measure, page
  from jaxprune.studies.propagation import models as models_lib
  from jaxprune.studies.propagation import summary as summary_lib

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  source = inputs.open_model(_MODEL.value)
  seeds = [int(seed) for seed in _SEEDS.value]
  propagation.layer_groups(source.config.num_layers, _GROUPS.value)
  prompts = inputs.read_prompts(
    source,
    _PROMPTS.value,
    limit=_LIMIT.value,
    max_new_tokens=_MAX_NEW_TOKENS.value,
  )
  settings = measure.Settings(
    max_new_tokens=_MAX_NEW_TOKENS.value,
    analysis_temperature=_ANALYSIS_TEMPERATURE.value,
    tolerance=_TOLERANCE.value,
    max_nodes=_MAX_NODES.value,
    batch=min(_BATCH.value, len(prompts.tokens)),
    groups=_GROUPS.value,
    interactions=_INTERACTIONS.value,
    options=tuple(map(int, _OPTIONS.value)),
  )
  bytes_needed = measure.estimate_bytes(source.config, prompts, settings)
  launch.say(
    f"memory: {devices.gib(bytes_needed.total)} (weights"
    f" {devices.gib(bytes_needed.weights)}, tangents"
    f" {devices.gib(bytes_needed.tangents)}, nodes"
    f" {devices.gib(bytes_needed.nodes)})"
  )
  hashes = {"dense": checkpoints.checkpoint_hash(source)}
  cells, drawn, calibration = [], {}, None
  if _PRUNED.value is None:
    cells = [
      configurations.read_cell(text, group_size=64, target="attention")
      for text in _CELLS.value
    ]
    for cell in cells:
      configurations.check(source.config, cell)
    drawn, calibration = inputs.read_calibrations(
      source,
      _CALIBRATION.value,
      seeds,
      num_samples=_NUM_SAMPLES.value,
      seq_len=_SEQ_LEN.value,
    )
  else:
    pruned = inputs.open_model(_PRUNED.value)
    hashes["pruned"] = checkpoints.checkpoint_hash(pruned)
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"calibration, chance": seeds, "bootstrap": 0},
    checkpoint_hash=hashes,
    calibration=calibration,
  ) | {
    "prompts": {
      "source": prompts.source,
      "hash": prompts.hash,
      "count": len(prompts.tokens),
      "bos": prompts.bos,
    }
  }
  config, params = checkpoints.load_params(source, jnp.float32)
  with report.RunFolder(
    _OUT.value, description, extra_fields=summary_lib.FIELDS
  ) as run:
    if cells:
      models = models_lib.of_cells(
        source,
        params,
        cells,
        {seed: each.tokens for seed, each in drawn.items()},
        pathlib.Path(_OUT.value) / "work",
        with_controls=_CONTROLS.value,
      )
    else:
      models = models_lib.of_pair(
        source,
        params,
        pruned,
        seeds if _CONTROLS.value else seeds[:1],
        with_controls=_CONTROLS.value,
      )
    progress = launch.Progress(
      "model",
      models_lib.count(len(cells), len(seeds), with_controls=_CONTROLS.value),
    )
    texts = measure.write_texts(config, params, prompts, settings)
    founds, pairs = {}, {}
    for index, model in enumerate(models):
      # Chance is not divided among groups of layers: it has no depth.
      found = measure.measure(
        config,
        model.both,
        texts,
        settings
        if model.source == "pruned"
        else dataclasses.replace(settings, groups=1),
        pairs.get(model.cell),
      )
      pairs.setdefault(model.cell, found.pairs)
      founds.setdefault((model.cell, model.source), {})[model.seed] = found
      run.write_all(summary_lib.rows(model, found, settings))
      progress.step(
        index,
        completeness=max(
          max(errors.values()) for errors in found.completeness.values()
        ),
      )
    entries = [
      summary_lib.summarise(*key, list(by_seed), list(by_seed.values()))
      for key, by_seed in founds.items()
    ]
    summary = {
      "analysis_temperature": settings.analysis_temperature,
      "tolerance": settings.tolerance,
      "completeness_error": max(
        entry["completeness_error"] for entry in entries
      ),
      "estimated_bytes": bytes_needed.total,
      "models": entries,
    }
    drawn_figures = {
      entry["cell"]: page.draw(
        entry, list(founds[entry["cell"], "pruned"].values()), settings
      )
      for entry in entries
      if entry["source"] == "pruned"
    }
    for cell, each in drawn_figures.items():
      for name, (png, _, _) in each.items():
        run.write_figure(f"{cell.replace(':', '_')}_{name}", png)
    run.write_page(page.render(summary, drawn_figures, description, settings))
    run.write_summary(
      summary
      | {
        "complete": summary["completeness_error"] <= settings.tolerance,
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time(),
        "memory": devices.peak_bytes(),
      }
    )
  print(page.headline(summary))
  print(f"wrote {_OUT.value}/report.html")


if __name__ == "__main__":
  launch.run(main)
