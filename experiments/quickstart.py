"""The whole way once: prune a checkpoint, compare it with the original, report.

  jaxprune quickstart
  jaxprune quickstart --model=FOLDER --calibration=TEXT \\
    --prompts=PROMPTS --out=OUT

Without flags it prunes the pocket model, which comes with the package, and
needs no network. Writes OUT/pruned (a checkpoint that transformers loads) and
in OUT report.html, summary.json, records.jsonl, run.json and figures/. A minute
or two on two CPU cores, most of it compilation.
"""

from absl import flags

from jaxprune.pruning import registry

from . import flag_groups, launch

_MODEL = flag_groups.model()
_CALIBRATION = flag_groups.calibration()
_PROMPTS = flag_groups.prompts(limit=32, max_new_tokens=32)
_METHOD = flags.DEFINE_enum(
  "method",
  "wanda",
  list(registry.names(registry.ENTRIES, rounds=False)),
  "How to choose what is removed.",
)
_SPARSITY = flags.DEFINE_float("sparsity", 0.6, "Fraction removed, in [0, 1).")
_PATTERN = flags.DEFINE_string(
  "pattern", "unstructured", "unstructured, or n:m with n kept out of m."
)
_LENS = flag_groups.lens()
_SEED = flag_groups.seed()
_LAYER_ROWS = flag_groups.layer_rows()
_OUT = flag_groups.out("out/quickstart")

_NEXT = ("prune", "FOLDER", "PRUNED", "--calibration=TEXT")


def main() -> None:
  from jaxprune.calibration import batching
  from jaxprune.studies.comparison import measure, page
  from jaxprune.studies.comparison import summary as summary_lib

  # Everything that can be wrong with the input is found before any work.
  source = _MODEL.open()
  pattern = _read_pattern(source)
  prompts = _PROMPTS.read(source)
  calibration = _CALIBRATION.read(source, _SEED.value)
  settings = _settings()
  with launch.study(
    _OUT.value,
    seeds={"calibration": _SEED.value, "bootstrap": _SEED.value},
    models=source,
    calibration=calibration,
    prompts=prompts,
  ) as study:
    pruned, about = _prune(source, pattern, calibration, study)
    models = measure.load_models(source, pruned)
    batches = batching.number_of_batches(len(prompts.tokens), settings.batch)
    progress = study.progress("batch", batches)
    tables = measure.compare(*models, prompts, settings, study.run, progress)
    tasks = measure.score_pocket(source, *models, seed=_SEED.value)
    study.run.write_all(measure.task_rows(tasks))
    summary = summary_lib.summarise_all(
      tables, (source, pruned), models, tasks=tasks, **about
    )
    said = summary_lib.headline(summary)
    wrote = ("report.html", "pruned")
    study.finish(summary, said, wrote=wrote, then=_NEXT)
    page.write_page(study.run, tables, summary)


def _settings():
  """How both models are compared, from the flags."""
  from jaxprune.studies.comparison import measure

  return measure.Settings(
    max_new_tokens=_PROMPTS.max_new_tokens.value,
    lens=_LENS.value,
    layer_rows=_LAYER_ROWS.value,
    seed=_SEED.value,
  )


def _read_pattern(source):
  """The pattern that the flags ask for, which the model can have."""
  from jaxprune.pruning.checkpoint import weights
  from jaxprune.studies import inputs

  group = registry.default_group(_METHOD.value)
  pattern = inputs.read_pattern(_PATTERN.value, _SPARSITY.value, group)
  weights.check_job(source.config, _METHOD.value, pattern, tokens=True)
  return pattern


def _prune(source, pattern, calibration, study):
  """Write the pruned checkpoint into the run folder, and say how."""
  from jaxprune import checkpoints
  from jaxprune.pruning.checkpoint import weights
  from jaxprune.studies import inputs
  from jaxprune.studies.comparison import summary

  progress = study.progress("layer", source.config.num_layers)
  folder = study.run.folder / "pruned"
  log = weights.prune_weights(
    source,
    folder,
    method=_METHOD.value,
    pattern=pattern,
    tokens=calibration.tokens,
    output=weights.Output(
      overwrite=True,
      provenance={
        "seed": _SEED.value,
        "checkpoint_hash": study.description["checkpoint_hash"],
        "calibration": study.description["calibration"],
      },
    ),
    on_layer=lambda row: progress.step(
      row["layer"], sparsity=row["sparsity"], layer_error=row["layer_error"]
    ),
  )
  about = {"method": _METHOD.value, **inputs.describe_pattern(pattern)}
  return (
    checkpoints.open_checkpoint(folder),
    about | summary.mean_of_layers(log),
  )


if __name__ == "__main__":
  launch.run(main)
