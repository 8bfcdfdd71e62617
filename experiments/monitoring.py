"""Which steps should the dense model take over, or which texts be given up?

  jaxprune monitoring --configurations=wanda:0.6,wanda:2:4 \\
    --out=OUT
  jaxprune monitoring --dense=FOLDER --pruned=PRUNED \\
    --prompts=FILE --out=OUT

Defer: the pruned model writes greedily, and where a signal of risk
(`probes.monitoring`) is above a threshold, the dense model decides the token.
Measured are

- the fraction of steps that the dense model decides, the saving that is lost;
- the tokens that it must read for that: with --cache=own it keeps a cache of
  its own and fills it late, with --cache=shared it reads the pruned model's;
- exact answers (--prompts=pocket) and agreement with the dense model's text.

Thresholds are quantiles of the risk in the pruned model's texts after other
prompts (the validation split, or every fourth prompt of a file), so that about
--fractions of the steps are deferred; the results are of the test prompts.
`random` is the control of equal size. `var_p`, `kl` and `flip` need the dense
logits at every step and save nothing: they show what a perfect signal could do.

Give up: a text is given up if its largest risk is above a threshold. Measured
is the accuracy among the others against the fraction answered, and the area.
"""

from absl import flags

from . import flag_groups, launch

_MODELS = flag_groups.pruned_models(["wanda:0.6", "wanda:2:4"])
_PROMPTS = flag_groups.prompts(
  limit=120,
  max_new_tokens=48,
  about_limit="Test prompts, evenly spaced.",
  about_max_new_tokens="Most tokens of a text.",
)
_SIGNALS = flags.DEFINE_list(
  "signals",
  ["margin", "entropy", "variance", "random", "var_p", "kl"],
  "Signals that defer a step.",
)
_FRACTIONS = flags.DEFINE_list(
  "fractions", ["0.02", "0.05", "0.15"], "Fractions of steps to defer, about."
)
_CACHE = flags.DEFINE_enum(
  "cache", "own", ["own", "shared"], "Which cache the dense model reads."
)
_ANALYSIS_TEMPERATURE = flag_groups.analysis_temperature(
  "T of the softmax in the signals."
)
_OUT = flag_groups.out()


def main() -> None:
  from jaxprune import devices
  from jaxprune.studies.monitoring import measure, page
  from jaxprune.studies.monitoring import summary as summary_lib

  sources = _MODELS.open()
  settings = _settings()
  measure.check(settings)
  texts = measure.read_prompts(
    sources["dense"],
    _PROMPTS.prompts.value,
    _PROMPTS.limit.value,
    _PROMPTS.max_new_tokens.value,
  )
  models, calibration = _MODELS.read(
    sources, _OUT.value, target="mlp", group_size=None, draws=False
  )
  with launch.study(
    _OUT.value,
    seeds={
      "calibration": _MODELS.seeds.value,
      "random risk": 0,
      "bootstrap": 0,
    },
    models=sources,
    calibration=calibration,
    prompts=texts.describe(),
    extra_fields=measure.FIELDS,
  ) as study:
    progress = study.progress("model", len(models))
    table = measure.measure(
      sources["dense"], models, texts, settings, study.run, progress
    )
    summary = summary_lib.summarise(table)
    page.write_page(study.run, summary, settings)
    summary["memory"] = devices.peak_bytes()
    study.finish(summary, page.headline(summary))


def _settings():
  """How texts are written, from the flags."""
  from jaxprune.studies.monitoring import measure

  return measure.Settings(
    signals=tuple(_SIGNALS.value),
    fractions=flag_groups.numbers(_FRACTIONS, float),
    cache=_CACHE.value,
    max_new_tokens=_PROMPTS.max_new_tokens.value,
    temperature=_ANALYSIS_TEMPERATURE.value,
  )


if __name__ == "__main__":
  launch.run(main)
