"""What does the output lose without each sublayer, and whose choice loses less?

  python -m experiments.ablation --model=FOLDER --calibration=TEXT --out=OUT

First part: the damage of every sublayer and layer when it alone is left out, in
nats of KL(dense || without it) at the output; beside it the second-order
estimate from the true change of the logits, the same from the derivative at the
dense model, and LLM-Drop's similarity; and how their rankings agree.

Second part: sublayers are dropped one after the other in the order of the
similarities, of the single damages (kl), of damages measured again after each
drop (kl_iterative), and at random; the damage of every such set is measured on
tokens that no choice has seen. What the choice does to tasks is
`experiments.discrepancy`, with the cells kl_attention:4, drop_attention:4, ...

A row of the records is one sequence (`document`), and a sublayer (protocol
`single`) or a set of dropped sublayers (protocol `selection`).

Reference: He et al., LLM-Drop, arXiv:2406.15786; see `probes.damage`.
"""

import sys
import time

from absl import flags

from . import launch

_MODEL = flags.DEFINE_string(
  "model", "pocket", "The model: a folder, a hub id, or pocket."
)
_CALIBRATION = flags.DEFINE_string(
  "calibration", "pocket", "As in experiments.prune."
)
_HELD_OUT = flags.DEFINE_string(
  "held_out",
  None,
  "Text on which the sets are measured; by default another"
  " draw from --calibration.",
)
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples", 32, "Sequences to choose on, and to measure on.", lower_bound=2
)
_SEQ_LEN = flags.DEFINE_integer(
  "seq_len", 128, "Tokens of a sequence.", lower_bound=1
)
_TARGETS = flags.DEFINE_list(
  "targets", ["attention", "mlp", "joint"], "What is dropped; block too."
)
_MAX_COUNT = flags.DEFINE_integer(
  "max_count", 8, "Sublayers to drop at most.", lower_bound=1
)
_DRAWS = flags.DEFINE_integer(
  "draws", 3, "Random orders, the control.", lower_bound=1
)
_ANALYSIS_TEMPERATURE = flags.DEFINE_float(
  "analysis_temperature", 1.0, "T of the softmax.", lower_bound=1e-3
)
_MICRO_BATCH = flags.DEFINE_integer(
  "micro_batch", 8, "Sequences in work at once.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of every draw.")
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)


def main() -> None:
  import jax

  from jaxprune import checkpoints, devices, report
  from jaxprune.calibration import tokens
  from jaxprune.studies import inputs
  from jaxprune.studies.ablation import measure, page
  from jaxprune.studies.ablation import summary as summary_lib

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  source = inputs.open_model(_MODEL.value)
  settings = measure.Settings(
    targets=tuple(_TARGETS.value),
    max_count=_MAX_COUNT.value,
    draws=_DRAWS.value,
    analysis_temperature=_ANALYSIS_TEMPERATURE.value,
    micro_batch=_MICRO_BATCH.value,
    seed=_SEED.value,
  )
  measure.check(source.config, settings)
  # Far from every seed that anybody would choose on.
  chosen_on, measured_on = (
    inputs.read_calibration(
      source,
      name,
      num_samples=_NUM_SAMPLES.value,
      seq_len=_SEQ_LEN.value,
      seed=seed,
    )
    for name, seed in (
      (_CALIBRATION.value, _SEED.value),
      (_HELD_OUT.value or _CALIBRATION.value, _SEED.value + 2**20),
    )
  )
  if chosen_on.hash == measured_on.hash:
    raise ValueError(
      f"{_CALIBRATION.value}: gives the same tokens for every seed, so"
      " choices would be measured on what they saw: give --held_out"
    )
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={
      "calibration": _SEED.value,
      "random drops": _SEED.value,
      "bootstrap": _SEED.value,
    },
    checkpoint_hash=checkpoints.checkpoint_hash(source),
    calibration=tokens.describe(chosen_on),
  ) | {"held_out": tokens.describe(measured_on)}
  with report.RunFolder(
    _OUT.value, description, extra_fields=measure.FIELDS
  ) as run:
    single = measure.measure_single(source, chosen_on.tokens, settings, run)
    orders, curves = measure.measure_selections(
      source,
      chosen_on.tokens,
      measured_on.tokens,
      single,
      settings,
      run,
      progress=launch.Progress("target", len(settings.targets)),
    )
    summary = summary_lib.summarise(single, orders, curves, settings)
    run.write_summary(
      {
        **summary,
        "seconds": time.monotonic() - began,
        "memory": devices.peak_bytes(),
      }
    )
    page.write_page(run, description, summary)
  print(page.headline(summary))
  print(f"wrote {_OUT.value}/report.html")


if __name__ == "__main__":
  launch.run(main)
