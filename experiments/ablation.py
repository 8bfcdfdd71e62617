"""What does the output lose without each sublayer; which choice loses least?

  jaxprune ablation --model=FOLDER --calibration=TEXT --out=OUT

Two parts, both measured in KL(dense || pruned), nats, on calibration text:

single     every attention, MLP and layer is left out alone. Beside the exact KL
           stand three estimates (second order from the true change of the
           logits, the same from the derivative at the dense model, and
           LLM-Drop's similarity), and how well their rankings agree.
selection  sublayers are dropped one after the other, in the order of the
           similarities, of the single KL (kl), of the KL measured again after
           each drop (kl_iterative), and at random. Every set is measured on
           text that no choice has seen.

A row of the records is one sequence (`document`) and one sublayer (protocol
`single`) or set of sublayers (protocol `selection`). To see what such choices
do to tasks, give `discrepancy` configurations such as kl_attention:4.

Reference: He et al., LLM-Drop, arXiv:2406.15786.
"""

from absl import flags

from . import flag_groups, launch

_MODEL = flag_groups.model()
_CALIBRATION = flag_groups.calibration(about_seq_len="Tokens of a sequence.")
_HELD_OUT = flags.DEFINE_string(
  "held_out",
  None,
  "Text on which the sets are measured; by default another"
  " draw from --calibration.",
)
_TARGETS = flags.DEFINE_list(
  "targets", ["attention", "mlp", "joint"], "What is dropped; block too."
)
_MAX_COUNT = flags.DEFINE_integer(
  "max_count", 8, "Sublayers to drop at most.", lower_bound=1
)
_DRAWS = flags.DEFINE_integer(
  "draws", 3, "Random orders, the control.", 1, 1000
)
_ANALYSIS_TEMPERATURE = flag_groups.analysis_temperature("T of the softmax.")
_MICRO_BATCH = flag_groups.micro_batch("Sequences processed at once.")
_SEED = flag_groups.seed()
_OUT = flag_groups.out()


def main() -> None:
  from jaxprune import devices
  from jaxprune.calibration import tokens
  from jaxprune.pruning.checkpoint import sublayers
  from jaxprune.studies.ablation import measure, page
  from jaxprune.studies.ablation import summary as summary_lib

  source = _MODEL.open()
  settings = measure.Settings(
    targets=tuple(_TARGETS.value),
    max_count=_MAX_COUNT.value,
    draws=_DRAWS.value,
    analysis_temperature=_ANALYSIS_TEMPERATURE.value,
    micro_batch=_MICRO_BATCH.value,
    seed=_SEED.value,
  )
  measure.check(source.config, settings, sublayers.dropped_before(source))
  seen, held_out = _read_tokens(source)
  with launch.study(
    _OUT.value,
    seeds={"calibration, random drops": _SEED.value, "bootstrap": _SEED.value},
    models=source,
    calibration=seen,
    notes={"held_out": tokens.describe(held_out)},
    extra_fields=measure.FIELDS,
  ) as study:
    progress = study.progress("target", len(settings.targets))
    measured = measure.measure(
      source, seen.tokens, held_out.tokens, settings, study.run, progress
    )
    summary = summary_lib.summarise(measured, settings)
    page.write_page(study.run, summary)
    summary["memory"] = devices.peak_bytes()
    study.finish(summary, page.headline(summary))


def _read_tokens(source):
  """Tokens that choices look at, and tokens that sets are measured on."""
  seen = _CALIBRATION.read(source, _SEED.value, activations=False)
  # Far from every seed that a choice would be made with.
  held_out = _CALIBRATION.read(
    source, _SEED.value + 2**20, name=_HELD_OUT.value, activations=False
  )
  if seen.hash == held_out.hash:
    raise ValueError(
      f"{_CALIBRATION.calibration.value}: gives the same tokens for every"
      " seed, so choices would be measured on what they saw: give --held_out"
    )
  return seen, held_out


if __name__ == "__main__":
  launch.run(main)
