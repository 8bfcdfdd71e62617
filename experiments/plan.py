"""What can be removed from a model, so that it still does its task?

  jaxprune plan MODEL --task=generate --keep=0.95
  jaxprune plan MODEL --calibration=TEXT --amount=kv_bytes --out=OUT

Finds the largest amount that can go while the model keeps --keep of its score
above chance, and writes the pruned folder OUT with the page report.html in it.
--amount is parameters of the layers, bytes of keys and values, or layers.
Without --calibration the methods look at texts that the model writes itself.

First, ways to prune are compared without labels, by what they do to the next
tokens of texts that the model writes (after built-in prompts, or --prompts).
Then built-in items, and those of --tasks, decide how far the best way can go:
`choose` asks questions with four options, `generate` items that are written
out. --recover trains the pruned model for so many steps, and may get further
with that. --controls also measures uniform Wanda and drops by similarity at the
same amount.

A run that was killed goes on with the same command. Drops alone (kv_bytes,
layers) took four minutes of CPU time for a model of 135 million parameters;
some ten prunings and their measurements take several times that. docs/plan.md
explains how it decides, and what that has shown.
"""

import pathlib

from absl import flags

from jaxprune.pruning import change as change_lib

from . import descriptions, flag_groups, launch

_MODEL = flag_groups.model(
  flag_groups.REQUIRED,
  about="Checkpoint to prune: a folder, a GGUF file, a hub id, or pocket.",
)
_TASK = flag_groups.several(
  "task",
  ["generate"],
  ["choose", "retrieve", "generate"],
  "What the model must still do.",
)
_KEEP = flags.DEFINE_float(
  "keep",
  0.95,
  "Part of the score above chance that must stay.",
  lower_bound=0.05,
  upper_bound=1.0,
)
_AMOUNT = flags.DEFINE_enum(
  "amount",
  "parameters",
  ["parameters", "kv_bytes", "layers"],
  "What is to be saved.",
)
_METHODS = flags.DEFINE_list(
  "methods", ["wanda", "sparsegpt"], "Methods that remove single weights."
)
_ALLOCATIONS = flag_groups.several(
  "allocations",
  ["uniform", "owl", "kl"],
  list(change_lib.ALLOCATIONS),
  "How a sparsity may be spread over layers.",
)
_PATTERNS = flags.DEFINE_list(
  "patterns",
  ["unstructured"],
  "unstructured, or n:4 for 3:4, 2:4 and 1:4, or n:8.",
)
_SPREAD = flags.DEFINE_float(
  "spread",
  0.08,
  "Half of the difference between the highest and lowest sparsity of a layer.",
  lower_bound=0.0,
  upper_bound=0.5,
)
_MEASUREMENTS = flags.DEFINE_integer(
  "measurements", 6, "Prunings that are asked items, at most.", lower_bound=1
)
_RECOVER = flags.DEFINE_integer(
  "recover",
  0,
  "Steps of training a pruned model by distillation; 0 for none.",
  lower_bound=0,
)
_CONTROLS = flags.DEFINE_bool(
  "controls", False, "Measure the usual prunings at the same amount, too."
)
_CALIBRATION = flag_groups.calibration(
  "self", num_samples=64, seq_len=256, about=flag_groups.TEXT_OR_SELF
)
_PROMPTS = flag_groups.prompts(
  None, about="Texts to continue, a txt or jsonl file; by default built-in."
)
_CHAT = flag_groups.chat("auto", about="Whether prompts are turns of a chat")
_TASKS = flag_groups.named_tasks("Tasks beside the built-in items, by name")
_BATCH = flag_groups.batch(16)
_SEED = flag_groups.seed("Seed of the calibration and of the intervals.")
_OUT = flag_groups.out(
  None, about="Folder to write; by default out/plan/MODEL."
)


def main() -> None:
  import jax

  from jaxprune.studies import self_calibration
  from jaxprune.studies.plan import candidates, measure, tries
  from jaxprune.studies.plan import summary as summary_lib

  jax.config.update("jax_default_matmul_precision", "highest")
  source, settings = _MODEL.open(), _settings()
  candidates.check_methods(
    settings.methods, settings.allocations, settings.patterns
  )
  prompts = _PROMPTS.read_or_builtin(source, _CHAT.value)
  more = _read_tasks(source)
  looked_at = _read(source, _SEED.value)
  training = _training(source)
  description = descriptions.describe(
    seeds={"calibration": _SEED.value, "bootstrap": _SEED.value},
    models=source,
    calibration=self_calibration.describe(looked_at),
    prompts=prompts.prompts,
  )
  name = pathlib.Path(_MODEL.model.value).name
  with launch.place(
    _OUT.value or f"out/plan/{name}",
    description,
    models=source,
    resume=True,
    model=True,
  ) as (stage, _):
    shop = _workshop(source, looked_at, training, stage)
    launch.say(measure.describe(shop, settings))
    question = _ask_dense(shop, prompts, more, settings)
    found = measure.plan(shop, question, settings, stage.new, launch.say)
    with launch.records(stage, description, extra_fields=tries.FIELDS) as study:
      study.run.write_all(measure.rows(found))
      summary = summary_lib.summarise(found, shop, question, settings)
      _finish(study, summary, settings)
  study.close()


def _settings():
  """What is looked for, from the flags."""
  from jaxprune.studies.plan import tries

  return tries.Settings(
    uses=tuple(tries.USES[task] for task in _TASK.value),
    keep=_KEEP.value,
    methods=tuple(_METHODS.value),
    allocations=tuple(_ALLOCATIONS.value),
    patterns=tuple(_PATTERNS.value),
    measurements=_MEASUREMENTS.value,
    recover_steps=_RECOVER.value,
    controls=_CONTROLS.value,
    seed=_SEED.value,
  )


def _read_tasks(source):
  """Tasks by name, from the flags."""
  from jaxprune.studies.comparison import more_items

  return more_items.read(_TASKS.read(chat=_CHAT.value), source)


def _read(source, seed, **options):
  """The text of --calibration, which may have to be written yet."""
  return _CALIBRATION.read_or_plan(
    source, seed, chat_mode=_CHAT.value, **options
  )


def _training(source):
  """Text to train on, each sequence once; None where nothing is trained."""
  from jaxprune.studies.plan import tries

  if not _RECOVER.value:
    return None
  return _read(
    source,
    _SEED.value + 1,  # other text than the model is pruned with
    num_samples=_RECOVER.value * tries.BATCH,
    activations=False,
  )


def _workshop(source, calibration, training, stage):
  """Where pruned models are made; the model writes what is not there."""
  from jaxprune.studies import kept, self_calibration
  from jaxprune.studies.comparison import measure
  from jaxprune.studies.plan import models

  store = kept.Kept(stage.scaffold / "plan.json")
  dense = measure.load_model(source)
  texts = [
    text
    and self_calibration.written(
      source,
      text,
      store,
      launch.tell_amount("texts that the model writes itself"),
      dense,
    )
    for text in (calibration, training)
  ]
  return models.Workshop(
    source=source,
    dense=dense,
    calibration=texts[0],
    amount=_AMOUNT.value,
    spread=_SPREAD.value,
    kept=store,
    work=stage.scaffold / "work",
    tell=launch.tell_amount,
    training=texts[1],
  )


def _ask_dense(shop, prompts, more, settings):
  """What the dense model writes and answers."""
  from jaxprune.studies import texts
  from jaxprune.studies.comparison import measure
  from jaxprune.studies.plan import tries

  writing = texts.Writing(
    max_new_tokens=_PROMPTS.max_new_tokens.value,
    batch=min(_BATCH.value, len(prompts.kinds)),
  )
  launch.say(f"the model writes after {len(prompts.kinds)} prompts")
  readings = measure.read_dense(shop.dense, prompts.prompts, writing)
  question = tries.Question(readings=readings, more=more)
  launch.say("the model has written; it answers the items")
  return tries.ask_dense(shop, question, settings)


def _finish(study, summary, settings):
  """Write page and summary into the folder."""
  from jaxprune.studies.plan import page
  from jaxprune.studies.plan import summary as summary_lib

  then = ()
  if summary["chosen"] is not None:
    then = ("compare", _MODEL.model.value, study.stage.shown)
  page.write_page(study.run, summary, settings, then)
  study.finish(summary, summary_lib.headline(summary), then=then)


if __name__ == "__main__":
  launch.run(main)
