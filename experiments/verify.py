"""Is a folder what it says: a sound checkpoint, pruned where its masks say?

  python -m experiments.verify --model=PRUNED --out=OUT
  python -m experiments.verify --model=PRUNED --pattern=2:4 --out=OUT
  python -m experiments.verify --model=PRUNED --against=OTHER --out=OUT

Checks, each a line and a field of summary.json:
  shards     size and sha256 of every shard, as recorded when it was written
  masks      every weight that `masks.safetensors` removed is zero
  pattern    the pattern of config.json holds in every kernel
  n:m        with --pattern: at most n of every m inputs are not zero, also in a
             folder that was pruned elsewhere
  logits     jaxprune and stock transformers agree (if transformers and torch
             are installed), on random tokens

--against compares, and checks nothing: the fraction of the entries that the
masks of two folders treat alike and their Jaccard index (weights that both keep
over those either keeps), per kernel kind, per layer and in all; what one of the
folders removes alone; and the largest difference of weights that both keep.

records.jsonl has a row per kernel and layer. Exit status 1 if a check fails.
"""

import json

from absl import flags

from . import flag_groups, launch

_MODEL = flag_groups.model(
  flag_groups.REQUIRED, about="Folder or hub id to look at."
)
_AGAINST = flags.DEFINE_string(
  "against", None, "Another model of the same shape."
)
_PATTERN = flags.DEFINE_string(
  "pattern", None, "n:m that every kernel must obey, n kept out of m inputs."
)
_OUT = flag_groups.out()
_SEED = flag_groups.seed("Of the random tokens.")
_TOLERANCE = flags.DEFINE_float(
  "tolerance", 1e-4, "Largest difference of logits from stock transformers."
)


def main() -> None:
  from jaxprune import report
  from jaxprune.pruning.checkpoint import verify
  from jaxprune.studies import inputs

  source = _MODEL.open(logits=False)
  other = (
    inputs.open_model(_AGAINST.value, logits=False) if _AGAINST.value else None
  )
  pattern = inputs.read_nofm(_PATTERN.value) if _PATTERN.value else None
  verified = verify.verify(source, other, pattern=pattern)
  with launch.study(
    _OUT.value,
    seeds={"tokens": _SEED.value},
    models=source,
    extra_fields={
      name: report.Field(*field) for name, field in verify.FIELDS.items()
    },
  ) as study:
    checks, values = dict(verified.checks), dict(verified.values)
    values["logits_difference"] = _stock_difference(source)
    if values["logits_difference"] is not None:
      checks["logits"] = values["logits_difference"] <= _TOLERANCE.value
    study.run.write_all(verified.rows)
    study.finish({"checks": checks, **values}, wrote=("summary.json",))
  for name, passed in checks.items():
    print(f"{name}: {'not there' if passed is None else passed}")
  print(json.dumps(values))
  failed = [name for name, passed in checks.items() if passed is False]
  if failed:
    raise ValueError(f"{_MODEL.model.value}: failed {', '.join(failed)}")


def _stock_difference(source):
  """Largest difference of logits, or of h without a head.

  None without transformers and torch.
  """
  try:
    import torch
    import transformers
  except ImportError:
    return None
  import jax.numpy as jnp
  import numpy as np

  from jaxprune import checkpoints
  from jaxprune.models import final_norm, forward, unembed

  config, params = checkpoints.load_params(source, jnp.float32)
  ids = np.random.default_rng(_SEED.value).integers(
    config.vocab_size, size=(2, min(64, config.max_positions))
  )
  loader, output, read = "AutoModelForCausalLM", "logits", unembed
  if not config.has_head:
    loader, output, read = "AutoModel", "last_hidden_state", final_norm
  ours = read(config, params, forward(config, params, jnp.asarray(ids))[0])
  stock = getattr(transformers, loader).from_pretrained(
    source.folder, dtype=torch.float32
  )
  with torch.no_grad():
    theirs = stock(torch.tensor(ids))[output].numpy()
  return float(abs(np.asarray(ours) - theirs).max())


if __name__ == "__main__":
  launch.run(main)
