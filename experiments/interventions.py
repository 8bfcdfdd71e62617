"""Which part of the change does the harm? Undo a part, and see what is left.

  jaxprune interventions --model=pocket --answers=pocket \\
    --configurations=wanda:0.5,drop_attention:4 --seeds=0,1,2 --out=OUT
  jaxprune interventions --dense=FOLDER --pruned=PRUNED \\
    --prompts=FILE --answers=none --out=OUT

Prunes the model once per configuration and calibration seed (or takes one
--pruned folder), and makes beside each a control that removes as much at
random. Every intervention is measured on the dense model's greedy text, where
h, z and p are compared with the dense ones:

  freeze_first, freeze_last   the first k layers dense and the others pruned, or
                              the first k pruned and the others dense
  patch_pruned, patch_dense   the dense h given to the pruned run after k
                              layers, or the pruned h to the dense run, only at
                              the position that is read
  keep_PART                   only this part of the change of the logits
  half, temperature_T, ...    restorations (`probes.interventions.RESTORATIONS`)
  ..._random                  controls of equal size in a random direction

Protocol `continued` decodes on with a part of the change. Protocol `answers`
reads right answers: whether greedy decoding writes them, and with which
probability sampling does. A row of the records is one configuration, seed,
source (pruned or the random control), intervention, depth k and prompt, with
means over its positions.

Reference: He et al., arXiv 2603.24652, sections 5-7, and its reviews.
"""

from absl import flags

from . import flag_groups, launch

_MODELS = flag_groups.pruned_models(
  ["wanda:0.5"], about_seeds="Seeds of calibration, controls and directions."
)
_PROMPTS = flag_groups.prompts(
  limit=24,
  about_max_new_tokens=(
    "Steps to decode and compare, and tokens of an answer from a file."
  ),
)
_ANSWERS = flags.DEFINE_string(
  "answers",
  "none",
  "Right answers: pocket, a jsonl file with prompt and reference, or none.",
)
_ANSWERS_LIMIT = flags.DEFINE_integer(
  "answers_limit", 120, "Number of answers, evenly from all.", lower_bound=1
)
_ANALYSIS_TEMPERATURE = flag_groups.analysis_temperature()
_TOP_TOKENS = flags.DEFINE_integer(
  "top_tokens", 10, "Tokens of the part `top`.", lower_bound=1
)
_OUT = flag_groups.out()


def main() -> None:
  from jaxprune import devices
  from jaxprune.studies.interventions import finding, measure, page
  from jaxprune.studies.interventions import summary as summary_lib

  sources = _MODELS.open()
  dense = sources["dense"]
  settings = measure.Settings(
    max_new_tokens=_PROMPTS.max_new_tokens.value,
    analysis_temperature=_ANALYSIS_TEMPERATURE.value,
    top_tokens=_TOP_TOKENS.value,
  )
  measure.check(dense.config, settings)
  prompts = _PROMPTS.read(dense)
  answers, about_answers = _read_answers(dense)
  models, calibration = _MODELS.read(
    sources, _OUT.value, target="attention", group_size=64
  )
  with launch.study(
    _OUT.value,
    seeds={"models and directions": _MODELS.seeds.value, "bootstrap": 0},
    models=sources,
    calibration=calibration,
    prompts=prompts,
    notes={"answers": about_answers},
    extra_fields=measure.FIELDS,
  ) as study:
    progress = study.progress("model", len(models))
    table = measure.measure(
      dense, models, prompts, answers, settings, study.run, progress
    )
    summary = summary_lib.summarise(table, settings)
    page.write_page(study.run, summary, settings)
    summary["memory"] = devices.peak_bytes()
    study.finish(summary, finding.headline(summary))


def _read_answers(dense):
  """Right answers, None without, and what run.json says of them."""
  from jaxprune.studies.interventions import answers as answers_lib

  answers = answers_lib.read_answers(
    dense,
    _ANSWERS.value,
    limit=_ANSWERS_LIMIT.value,
    most=_PROMPTS.max_new_tokens.value,
  )
  return answers, answers and {"source": _ANSWERS.value, "count": len(answers)}


if __name__ == "__main__":
  launch.run(main)
