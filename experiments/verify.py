"""Is a folder what it says: a sound checkpoint, pruned where its masks say?

  jaxprune verify --model=PRUNED --out=OUT
  jaxprune verify --model=PRUNED --pattern=2:4 --out=OUT
  jaxprune verify --model=PRUNED --against=OTHER --out=OUT
  jaxprune verify --model=A --also=B,C --round_trip --out=OUT

Each check is a line and a field of summary.json. Exit status 1 if one fails.

  shards      size and sha256 of every shard, as recorded when it was written
  masks       every weight that masks.safetensors removed is zero
  pattern     the pattern of config.json holds in every kernel
  n:m         with --pattern: at most n of every m inputs are not zero, also in
              a folder that was pruned elsewhere
  stock       jaxprune and stock transformers agree on random tokens (where
              transformers and torch are installed)
  round_trip  with --round_trip: read and written again, the bytes are the same

For `stock`, both programs in float32 are compared with stock in float64, and
jaxprune may round --tolerance times as much as stock does. The table printed
last, in Markdown, has a row for --model and each of --also: relative errors of
the logits, largest differences over the largest logit, positions with the same
likeliest token as stock, KL(stock || jaxprune) in nats, and greedy tokens in
common.

--against checks nothing, but compares the masks of two folders per kernel kind,
per layer and in all: the fraction of entries that both treat alike, their
Jaccard index (weights that both keep over those that either keeps), what only
one of them removes, and the largest difference of weights that both keep.

records.jsonl has a row per kernel and layer.
"""

import dataclasses
import json

from absl import flags

from . import flag_groups, launch

_MODEL = flag_groups.model(
  flag_groups.REQUIRED, about="Folder or hub id to look at."
)
_ALSO = flags.DEFINE_list(
  "also", [], "More models to compare with stock transformers, in one table."
)
_AGAINST = flags.DEFINE_string(
  "against", None, "Another model of the same shape."
)
_PATTERN = flags.DEFINE_string(
  "pattern", None, "n:m that every kernel must obey, n kept out of m inputs."
)
_ROUND_TRIP = flags.DEFINE_bool(
  "round_trip", False, "Write each model again below --out and compare bytes."
)
_OUT = flag_groups.out()
_SEED = flag_groups.seed("Seed of the random tokens.")
_TOLERANCE = flags.DEFINE_float(
  "tolerance",
  4.0,
  "How many times the rounding of stock transformers counts as rounding.",
)


def main() -> None:
  from jaxprune import report
  from jaxprune.pruning.checkpoint import verify
  from jaxprune.studies import inputs
  from jaxprune.studies.benchmark import parity

  source = _MODEL.open(logits=False)
  other = (
    inputs.open_model(_AGAINST.value, logits=False) if _AGAINST.value else None
  )
  pattern = inputs.read_nofm(_PATTERN.value) if _PATTERN.value else None
  more = {name: inputs.open_model(name, logits=False) for name in _ALSO.value}
  verified = verify.verify(source, other, pattern=pattern)
  with launch.study(
    _OUT.value,
    seeds={"tokens": _SEED.value},
    models=source,
    whole=False,  # that is what is asked
    extra_fields={
      name: report.Field(*field) for name, field in verify.FIELDS.items()
    },
  ) as study:
    checks, values = dict(verified.checks), dict(verified.values)
    values["stock"] = _against_stock({_MODEL.model.value: source, **more})
    for name in ("passed", "round_trip"):
      found = [row[name] for row in values["stock"].values()]
      if any(each is not None for each in found):
        checks["stock" if name == "passed" else name] = all(found)
    study.run.write_all(verified.rows)
    study.finish({"checks": checks, **values}, wrote=("summary.json",))
  for name, passed in checks.items():
    print(f"{name}: {'not there' if passed is None else passed}")
  if verified.values:
    print(json.dumps(verified.values))
  print(parity.table(values["stock"]))
  failed = [name for name, passed in checks.items() if passed is False]
  if failed:
    raise ValueError(f"{_MODEL.model.value}: failed {', '.join(failed)}")


def _against_stock(sources):
  """By model what `parity` finds; {} without transformers and torch."""
  import importlib.util

  import numpy as np

  from jaxprune.studies.benchmark import parity

  if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
    return {}
  rows = {}
  for name, source in sources.items():
    config = source.config
    tokens = np.random.default_rng(_SEED.value).integers(
      config.vocab_size, size=(2, min(64, config.max_positions // 2))
    )
    found = parity.compare(source, tokens, allowed=_TOLERANCE.value)
    print(f"{name}: {found.verdict}", flush=True)
    rows[name] = dataclasses.asdict(found) | {
      "round_trip": parity.round_trip(source, f"{_OUT.value}/round_trip")
      if _ROUND_TRIP.value
      else None
    }
  return rows


if __name__ == "__main__":
  launch.run(main)
