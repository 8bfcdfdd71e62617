"""What do one or two models score on tasks, with intervals over the items?

  python -m experiments.evaluate --model=pocket --pocket --out=OUT
  python -m experiments.evaluate --dense=FOLDER --pruned=PRUNED \\
    --choice=QUESTIONS.jsonl --generation=PROMPTS.jsonl --extract=normalised \\
    --perplexity=TEXT --retrieval=FOLDER --out=OUT

Every task flag may be given several times. Choice files hold context, options
and answer; generation files prompt (or question) and answer; a retrieval folder
is laid out as BEIR or Cranfield. Writes a row per item and metric, and the mean
of each with a 95 % interval that resamples the items; with two models also the
paired difference, pruned less dense. A minute or two on two CPU cores for a
small model and some hundred items, most of it compilation.
"""

import sys
import time

from absl import flags

from . import launch

_MODEL = flags.DEFINE_string(
  "model", None, "One model: a folder, a hub id, or pocket."
)
_DENSE = flags.DEFINE_string("dense", None, "The original of two models.")
_PRUNED = flags.DEFINE_string("pruned", None, "The pruned of two models.")
_PERPLEXITY = flags.DEFINE_multi_string(
  "perplexity", [], "Text that is read in windows: a file, wikitext2 or c4."
)
_CHOICE = flags.DEFINE_multi_string(
  "choice", [], "jsonl of multiple-choice questions."
)
_RETRIEVAL = flags.DEFINE_multi_string(
  "retrieval", [], "Folder of a retrieval collection."
)
_GENERATION = flags.DEFINE_multi_string(
  "generation", [], "jsonl of prompts that are continued greedily."
)
_POCKET = flags.DEFINE_bool(
  "pocket", False, "The tasks of the pocket model's world."
)
_EXTRACT = flags.DEFINE_enum(
  "extract",
  "none",
  ["none", "final_number", "normalised"],
  "What is compared with the answer of a generation item.",
)
_POOLING = flags.DEFINE_enum(
  "pooling",
  "mean",
  ["last", "mean", "weighted_mean"],
  "How tokens become the embedding of a text.",
)
_SEQ_LEN = flags.DEFINE_integer(
  "seq_len", 512, "Tokens of a window for perplexity.", lower_bound=2
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  "max_new_tokens", 64, "Most tokens to write.", lower_bound=1
)
_LIMIT = flags.DEFINE_integer(
  "limit", None, "Only the first so many items of each task.", lower_bound=1
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the intervals.")


def main() -> None:
  import jax

  from jaxprune import checkpoints, report
  from jaxprune.calibration import load_tokenizer
  from jaxprune.studies.tasks import page, scores

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  sources = _sources()
  # Both models read the same ids, those of the dense one.
  tokenizer = load_tokenizer(next(iter(sources.values())).folder)
  if not (
    _PERPLEXITY.value
    or _CHOICE.value
    or _RETRIEVAL.value
    or _GENERATION.value
    or _POCKET.value
  ):
    raise ValueError(
      "no task: give --perplexity, --choice, --retrieval, --generation or"
      " --pocket"
    )
  scores.check_files(
    _CHOICE.value, _RETRIEVAL.value, _GENERATION.value, _EXTRACT.value
  )
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"bootstrap": _SEED.value},
    checkpoint_hash={
      name: checkpoints.checkpoint_hash(source)
      for name, source in sources.items()
    },
  )
  found = {}
  with report.RunFolder(
    _OUT.value, description, extra_fields=page.FIELDS
  ) as run:
    progress = launch.Progress("model", len(sources))
    for index, (name, source) in enumerate(sources.items()):
      found[name] = _score(name, source, tokenizer, _texts(found.get("dense")))
      for scored in found[name].values():
        run.write_all(page.item_rows(scored, name))
      progress.step(index)
    summary = page.summarise(found, _SEED.value)
    run.write_summary({**summary, "seconds": time.monotonic() - began})
    run.write_page(page.render(summary, description))
  print("\n".join(page.lines(summary)))
  print(f"wrote {_OUT.value}/report.html")


def _sources():
  """The models by name, refused before any work when they cannot be scored."""
  from jaxprune.models import ModelConfig
  from jaxprune.studies import inputs

  pair = _DENSE.value, _PRUNED.value
  if (_MODEL.value is None) == (None in pair) or (
    _MODEL.value is not None and any(pair)
  ):
    raise ValueError("give either --model, or both --dense and --pruned")
  names = (
    {"model": _MODEL.value}
    if _MODEL.value is not None
    else dict(zip(("dense", "pruned"), pair))
  )
  sources = {name: inputs.open_model(where) for name, where in names.items()}
  for source in sources.values():
    if not isinstance(source.config, ModelConfig):
      raise ValueError(f"{source.folder}: is an encoder; give a decoder")
    if _POCKET.value and not inputs.is_pocket(source):
      raise ValueError(
        f"--pocket: {source.folder} does not speak the pocket model's"
        " language; leave the flag out"
      )
  if len({source.config.vocab_size for source in sources.values()}) > 1:
    raise ValueError(
      "--dense and --pruned have vocabularies of different sizes; give two"
      " models that read the same ids"
    )
  return sources


def _score(name, source, tokenizer, dense):
  """Every task of one model, by name of the task."""
  import jax.numpy as jnp

  from jaxprune import checkpoints
  from jaxprune.studies.tasks import scores

  config, params = checkpoints.load_params(source, jnp.float32)
  model = scores.Model(
    name=name, config=config, params=params, tokenizer=tokenizer
  )
  limit = _LIMIT.value
  scored = [
    *(
      scores.score_perplexity(model, path, limit, _SEQ_LEN.value)
      for path in _PERPLEXITY.value
    ),
    *(scores.score_choice(model, path, limit) for path in _CHOICE.value),
    *(
      scores.score_retrieval(model, path, limit, _POOLING.value)
      for path in _RETRIEVAL.value
    ),
    *(
      scores.score_generation(
        model, path, limit, _MAX_NEW_TOKENS.value, _EXTRACT.value, dense
      )
      for path in _GENERATION.value
    ),
    *(scores.score_pocket(model) if _POCKET.value else ()),
  ]
  by_task = {one.task: one for one in scored}
  if len(by_task) < len(scored):
    raise ValueError(
      "two files of one task have the same name: rename one of them"
    )
  return by_task


def _texts(dense):
  """What the dense model wrote, by task; None before it has."""
  return (
    None
    if dense is None
    else {task: scored.detail for task, scored in dense.items()}
  )


if __name__ == "__main__":
  launch.run(main)
