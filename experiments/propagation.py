"""Which sublayer and which decoding step does the change come from?

  jaxprune propagation --model=pocket \\
    --configurations=wanda:0.5,drop_attention:4 --seeds=0,1,2 --out=OUT
  jaxprune propagation --dense=FOLDER --pruned=PRUNED \\
    --prompts=FILE --max_new_tokens=32 --out=OUT

Prunes the model once per configuration and calibration seed, or takes one
--pruned folder. The dense model continues every prompt greedily, both models
read that text, and the change of every output is divided exactly among
sublayers and steps: the weights are moved from dense to pruned, and the
derivative by each sublayer's coefficient is integrated on the way
(`probes.propagation`). The contributions add up to the true change;
`completeness_error` in summary.json is the error of that sum (the worst of all
models, read-outs and of the logits), and quadrature nodes are added until it is
below --tolerance. Beside the contributions stand

  first order    what the derivative at the dense model would have said, and how
                 far along the path (up to which t) it holds
  time           what the weights of a group of layers, changed at one step, do
                 to a later output: at the step itself, or through the cache
  interactions   what two sublayers do that neither does alone, exactly and to
                 second order
  rates          how fast p, z and h move along the path, and sqrt(Var_r(dz))
  chance         the same for random changes as large (`source`): `random`
                 removes as many weights or sublayers, `noise` has the same norm

Reference: He et al., arXiv 2603.24652, section 5; arXiv:1703.01365.
"""

from absl import flags

from . import flag_groups, launch

_MODELS = flag_groups.pruned_models(
  ["wanda:0.5"],
  about_seeds="Seeds of the calibration and of the random controls.",
)
_CONTROLS = flags.DEFINE_bool(
  "controls", True, "Also measure random changes as large."
)
_PROMPTS = flag_groups.prompts(
  limit=8,
  max_new_tokens=16,
  about_max_new_tokens="Steps to decode and attribute.",
)
_BATCH = flag_groups.batch(about="Prompts measured together.")
_ANALYSIS_TEMPERATURE = flag_groups.analysis_temperature()
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
_OUT = flag_groups.out()


def main() -> None:
  import time

  from jaxprune import devices
  from jaxprune.studies.propagation import finding, measure, page
  from jaxprune.studies.propagation import models as models_lib
  from jaxprune.studies.propagation import summary as summary_lib

  sources = _MODELS.open()
  prompts = _PROMPTS.read(sources["dense"])
  settings = _settings(len(prompts.tokens))
  needed = measure.check(sources["dense"].config, prompts, settings)
  launch.say(f"memory: {needed.describe()}")
  pruned, calibration = _MODELS.read(
    sources, _OUT.value, target="attention", group_size=64
  )
  with launch.study(
    _OUT.value,
    seeds={"calibration, chance": _MODELS.seeds.value, "bootstrap": 0},
    models=sources,
    calibration=calibration,
    prompts=prompts,
    extra_fields=measure.FIELDS,
  ) as study:
    count = models_lib.count_models(pruned, with_controls=_CONTROLS.value)
    progress = study.progress("model", count)
    by_model = measure.measure(
      sources["dense"], pruned, prompts, settings, study.run, progress
    )
    summary = summary_lib.summarise(by_model, settings)
    page.write_page(study.run, summary, settings)
    usage = {
      "estimated_bytes": needed.total,
      "memory": devices.peak_bytes(),
      "cpu_seconds": time.process_time(),
    }
    study.finish(summary | usage, finding.headline(summary))


def _settings(prompts):
  """How `prompts` prompts are divided, from the flags."""
  from jaxprune.studies.propagation import measure

  return measure.Settings(
    max_new_tokens=_PROMPTS.max_new_tokens.value,
    analysis_temperature=_ANALYSIS_TEMPERATURE.value,
    tolerance=_TOLERANCE.value,
    max_nodes=_MAX_NODES.value,
    batch=min(_BATCH.value, prompts),
    groups=_GROUPS.value,
    interactions=_INTERACTIONS.value,
    options=tuple(map(int, _OPTIONS.value)),
    controls=_CONTROLS.value,
  )


if __name__ == "__main__":
  launch.run(main)
