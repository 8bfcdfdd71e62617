"""Train a pruned model for a few hundred steps, its zeros kept.

  jaxprune recover --dense=FOLDER --pruned=PRUNED \\
    --objective=distill --calibration=TEXT --steps=200 --out=RECOVERED

RECOVERED is a Hugging Face checkpoint of the same layout, with the masks of
PRUNED: what was removed is still zero, what was dropped is still dropped, and
`verify` accepts it. A pruned folder without masks.safetensors keeps the zeros
that it has. Beside the model are run.json, records.jsonl (a row per step and
part of the loss) and summary.json.

  language          the next token of the text
  distill           KL(dense || pruned)
  distill_variance  the same, and --weight times the variance of the change of
                    the logits under the dense model, Var_p(dz)/(2T^2)

One seed gives one result on one machine. A run of minutes keeps its state, and
after a kill goes on with the same command. `recovery_study` compares the
objectives.
"""

from absl import flags

from . import descriptions, flag_groups, launch

_MODELS = flag_groups.models(
  dense=None, about_dense="The original model; not needed for language."
)
_OBJECTIVE = flags.DEFINE_enum(
  "objective",
  "distill",
  ["language", "distill", "distill_variance"],
  "What is minimised.",
)
_STEPS = flags.DEFINE_integer("steps", 200, "Steps.", lower_bound=1)
_BATCH = flag_groups.batch(about="Rows of a step.")
_LEARNING_RATE = flags.DEFINE_float(
  "learning_rate",
  2e-5,
  "Peak of the rate: 10 % warm-up, then a cosine to 0. A small model, like"
  " pocket, stands 5e-4; a real one that lost little gets worse with 1e-4.",
)
_WEIGHT = flags.DEFINE_float(
  "weight", 1.0, "Weight of the variance, for distill_variance."
)
_WEIGHT_DECAY = flags.DEFINE_float(
  "weight_decay", 0.0, "Weight decay of AdamW."
)
_CALIBRATION = flag_groups.calibration(
  flag_groups.REQUIRED,
  num_samples=1024,
  about="Text to train on: a text, jsonl, json.gz or parquet file, c4,"
  " wikitext2, pocket, or an .npz of ids. --num_samples rows are read in turn.",
  about_seq_len="Tokens of a row.",
)
_SEED = flag_groups.seed(
  "Seed of the text and of the order in which it is read."
)
_OUT = flag_groups.out()


def main() -> None:
  import jax

  from jaxprune import files, staging
  from jaxprune.pruning.checkpoint import weights
  from jaxprune.studies.recovery import train

  jax.config.update("jax_default_matmul_precision", "highest")
  models = _MODELS.open()
  pruned, dense = models["pruned"], models.get("dense")
  recovery = _recovery()
  calibration = _CALIBRATION.read(pruned, _SEED.value, activations=False)
  train.check(pruned, dense, recovery, calibration.tokens)
  about = {
    "seeds": {"calibration": _SEED.value, "order": _SEED.value},
    "models": models,
    "calibration": calibration,
  }
  description = descriptions.describe(**about)
  with launch.place(
    _OUT.value, description, models=models, resume=True, model=True
  ) as (stage, _):
    # What a run wrote that was killed after its training is written anew.
    staging.settle(staging.stage(stage.new))
    files.remove_tree(stage.new)
    losses = train.recover(
      stage.new,
      models,
      recovery,
      calibration,
      states=stage.scaffold / "training",
      report=launch.say,
    )
    with launch.records(stage, description, extra_fields=train.FIELDS) as study:
      study.run.write_all(train.loss_rows(losses, _SEED.value))
      sparsity = weights.folder_sparsity(stage.new)
      summary = train.summarise(recovery, losses, sparsity)
      study.finish(summary, train.headline(summary), wrote=("summary.json",))
  study.close()


def _recovery():
  """The run that the flags ask for."""
  from jaxprune.recovery import Recovery

  return Recovery(
    objective=_OBJECTIVE.value,
    steps=_STEPS.value,
    batch=_BATCH.value,
    learning_rate=_LEARNING_RATE.value,
    weight=_WEIGHT.value,
    weight_decay=_WEIGHT_DECAY.value,
    seed=_SEED.value,
  )


if __name__ == "__main__":
  launch.run(main)
