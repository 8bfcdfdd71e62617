"""May a pruned model still be used for a task? Learn the rule, or apply it.

  python -m experiments.guidance --grids=GRID1,GRID2 --out=OUT
  python -m experiments.guidance --rule=OUT/rule.json --dense=FOLDER \\
    --pruned=PRUNED --prompts=FILE --out=JUDGED
  python -m experiments.guidance --rule=OUT/rule.json --grids=OTHER \\
    --out=CHECKED

With --grids it reads the pruned models that `experiments.discrepancy` scored
and measured (with --prompts), and learns for each task from label-free
measurements whether the task survives. Half of the methods and seeds are learnt
from and the others are held out; rule.json has feature, threshold and held-out
error, report.html the table "prune this way for this task". With --rule it
measures one pruned model and answers for each task; with both it counts how
often the rule is wrong in a grid that it was not learnt from. It takes seconds;
only --pruned loads a model.

Reference: He et al., arXiv 2603.24652, section 8.
"""

import sys
import time

from absl import flags

from . import launch

_GRIDS = flags.DEFINE_list(
  "grids", [], "Folders of experiments.discrepancy, to learn from."
)
_RULE = flags.DEFINE_string("rule", None, "rule.json, to apply.")
_DENSE = flags.DEFINE_string(
  "dense", "pocket", "With --rule: the original model, a folder or hub id."
)
_PRUNED = flags.DEFINE_string(
  "pruned", None, "With --rule: the pruned model, of the same shape."
)
_PROMPTS = flags.DEFINE_string(
  "prompts", "pocket", "With --rule: txt or jsonl file, or an .npz of ids."
)
_NUM_PROMPTS = flags.DEFINE_integer(
  "num_prompts",
  None,
  "Measured on the first so many only; else on all of"
  " the grid, or as many as the rule was learnt with.",
  lower_bound=1,
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  "max_new_tokens",
  None,
  "With --rule: steps to measure; else as many as the rule was learnt with.",
  lower_bound=1,
)
_FEATURES = flags.DEFINE_list(
  "features",
  [],
  "Choose among these; else among all, see"
  " jaxprune/studies/guidance/rules.py. One alone is not chosen, only its"
  " threshold.",
)
_KEEP = flags.DEFINE_float(
  "keep",
  0.9,
  "Share of the dense score that is called survival.",
  lower_bound=1e-6,
  upper_bound=1.0,
)
_SKIP = flags.DEFINE_list(
  "skip",
  ["pocket stories"],
  "Tasks to leave out; the default is at chance"
  " in the dense model, so nothing can be lost.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Of resampling and shuffling.")
_RESAMPLES = flags.DEFINE_integer(
  "resamples", 2000, "Of methods, for the intervals of errors.", lower_bound=100
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)


def main() -> None:
  if not (_GRIDS.value or _RULE.value):
    raise ValueError(
      "give --grids=FOLDERS to learn rules, or --rule=rule.json to apply them"
    )
  if _GRIDS.value and _PRUNED.value:
    raise ValueError("--pruned and --grids: a rule judges one or the other")
  if not _RULE.value:
    _learn()
  elif _GRIDS.value:
    _check()
  else:
    _apply()


def _learn() -> None:
  from jaxprune import checkpoints, report
  from jaxprune.studies.guidance import (
    apply,
    fit,
    page,
    recommend,
    splits,
    sweeps,
  )
  from jaxprune.studies.guidance import rules as rules_lib

  began = time.monotonic()
  unknown = set(_FEATURES.value) - set(rules_lib.FEATURES)
  if unknown:
    raise ValueError(
      f"--features={','.join(sorted(unknown))}: unknown; take from"
      f" {', '.join(rules_lib.FEATURES)}"
    )
  settings = fit.Settings(
    features=tuple(_FEATURES.value) or rules_lib.FEATURES,
    keep=_KEEP.value,
    seed=_SEED.value,
    resamples=_RESAMPLES.value,
  )
  every = sweeps.read_grids(
    _GRIDS.value,
    keep=settings.keep,
    skip=_SKIP.value,
    num_prompts=_NUM_PROMPTS.value,
    seed=settings.seed,
  )
  grids = splits.without_twins(every)
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"bootstrap": settings.seed, "shuffle": settings.seed},
    checkpoint_hash={
      f"dense {index}": source["checkpoint_hash"]
      for index, source in enumerate(grids.sources)
    },
  )
  rules = fit.fit(grids, settings)
  with report.RunFolder(
    _OUT.value, description, extra_fields=page.FIELDS
  ) as run:
    run.write_all(page.rows(grids))
    run.write_all(fit.feature_rows(grids, settings))
    checkpoints.atomic_write_json(
      run.folder / "rule.json",
      {
        "made_by": apply.MADE_BY,
        "keep": settings.keep,
        "sources": grids.sources,
        "cells_hash": grids.hash,
        "seed": settings.seed,
        "fingerprints": grids.fingerprints,
        "tasks": rules,
      },
    )
    table = recommend.recommend(every, seed=settings.seed)
    summary = page.summarise(grids, rules, settings)
    summary["settings"] = table
    run.write_summary({**summary, "seconds": time.monotonic() - began})
    page.write_page(run, description, grids, rules, settings, table)
  print("\n".join(page.lines(rules)))
  print("\n".join(page.setting_lines(table)))
  print(f"wrote {_OUT.value}/rule.json and {_OUT.value}/report.html")


def _check() -> None:
  from jaxprune import report
  from jaxprune.studies.guidance import apply, check, splits, sweeps

  rule = apply.read_rule(_RULE.value)
  grids = sweeps.read_grids(
    _GRIDS.value,
    keep=rule["keep"],
    skip=_SKIP.value,
    seed=_SEED.value,
    num_prompts=_NUM_PROMPTS.value or rule["sources"][0]["num_prompts"],
  )
  grids = splits.without_twins(grids, rule["fingerprints"])
  summary = check.summarise(
    rule, grids, seed=_SEED.value, resamples=_RESAMPLES.value
  )
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"bootstrap": _SEED.value},
    checkpoint_hash={
      f"dense {index}": source["checkpoint_hash"]
      for index, source in enumerate(grids.sources)
    },
  )
  with report.RunFolder(
    _OUT.value, description, extra_fields=check.FIELDS
  ) as run:
    run.write_all(check.rows(rule, grids))
    run.write_summary(summary)
    run.write_page(
      check.render(summary, report.read_records(run.folder), description)
    )
  print("\n".join(check.lines(summary)))
  print(f"wrote {_OUT.value}/report.html")


def _apply() -> None:
  import jax

  from jaxprune import checkpoints, report
  from jaxprune.studies import inputs
  from jaxprune.studies.guidance import apply

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  if _PRUNED.value is None:
    raise ValueError("--pruned: name the pruned model that --rule shall judge")
  rule = apply.read_rule(_RULE.value)
  learnt = rule["sources"][0]
  dense, pruned = map(inputs.open_model, (_DENSE.value, _PRUNED.value))
  steps = _MAX_NEW_TOKENS.value or learnt["steps"]
  prompts = inputs.read_prompts(
    dense,
    _PROMPTS.value,
    limit=_NUM_PROMPTS.value or learnt["num_prompts"],
    max_new_tokens=steps,
  )
  hashes = {
    "dense": checkpoints.checkpoint_hash(dense),
    "pruned": checkpoints.checkpoint_hash(pruned),
  }
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={},
    checkpoint_hash=hashes,
  ) | {
    "prompts": {
      "source": prompts.source,
      "hash": prompts.hash,
      "count": len(prompts.tokens),
      "bos": prompts.bos,
    }
  }
  with report.RunFolder(_OUT.value, description) as run:
    found = apply.measure(dense, pruned, prompts, steps)
    judged = apply.judge(rule, hashes["dense"], prompts.hash, steps, found)
    names = [name for name in found if name in report.FIELDS]
    run.write_all(
      {"protocol": "teacher_forced"} | {name: found[name][i] for name in names}
      for i in range(len(found["kl"]))
    )
    run.write_summary({**judged, "seconds": time.monotonic() - began})
    run.write_page(apply.render(judged, description))
  print("\n".join(apply.lines(judged)))
  print(f"wrote {_OUT.value}/report.html")


if __name__ == "__main__":
  launch.run(main)
