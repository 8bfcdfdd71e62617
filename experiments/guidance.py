"""May a pruned model still be used for a task? Ask the rule, or learn one.

  jaxprune guidance --dense=FOLDER --pruned=PRUNED --prompts=FILE --out=JUDGED
  jaxprune guidance --sweeps=SWEEP1,SWEEP2 --out=OUT
  jaxprune guidance --rule=OUT/rule.json --dense=FOLDER \\
    --pruned=PRUNED --prompts=FILE --out=JUDGED
  jaxprune guidance --rule=OUT/rule.json --sweeps=OTHER \\
    --out=CHECKED
  jaxprune guidance --sweeps=SWEEP1,SWEEP2 --ship=rule.json --out=LEARNT

Ask: both models read what the dense one writes after --prompts, and a rule says
for each kind of task (choice, retrieval, generation) whether it is kept. No
labels are needed. Without --rule it is the rule that comes with the package
(docs/rule.md), which is meant for any model.

Learn: --sweeps are folders that `discrepancy` wrote with --prompts. For each of
their tasks a threshold on a label-free measurement is learnt. Half of the
methods and seeds are learnt from and the others held out; rule.json has
feature, threshold and held-out error, report.html the table "prune this way for
this task". This rule is for the dense models of the sweeps. With --ship, one
rule for each kind of task is learnt that is meant for any model, and its errors
are counted on every model while that model is left out.

Check: --rule and --sweeps together count how often the rule is wrong in a sweep
that it was not learnt from.

It takes seconds; only --pruned loads a model.

Reference: He et al., arXiv 2603.24652, section 8.
"""

import dataclasses

from absl import flags

from . import flag_groups, launch

_SWEEPS = flags.DEFINE_list(
  "sweeps", [], "Folders that discrepancy wrote, to learn from."
)
flags.DEFINE_alias("grids", "sweeps")
_RULE = flags.DEFINE_string(
  "rule", None, "rule.json to apply; by default that of the package."
)
_MODELS = flag_groups.models(
  dense="pocket",
  pruned=None,
  about_dense="With --pruned: the original model, a folder or hub id.",
  about_pruned="Pruned model to judge, of the same shape as --dense.",
)
_PROMPTS = flag_groups.prompts(
  max_new_tokens=None,
  about="With --pruned: txt or jsonl file, or an .npz of ids.",
  about_limit="Measured on the first so many prompts only; else on all of the"
  " sweep, or as many as the rule was learnt with.",
  about_max_new_tokens="With --pruned: steps to measure; else as many as the"
  " rule was learnt with.",
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
  "Part of the dense score that is called survival.",
  lower_bound=1e-6,
  upper_bound=1.0,
)
_SKIP = flags.DEFINE_list(
  "skip",
  ["pocket stories"],
  "Tasks to leave out; the default is at chance"
  " in the dense model, so nothing can be lost.",
)
_SEED = flag_groups.seed("Seed of resampling and shuffling.")
_RESAMPLES = flags.DEFINE_integer(
  "resamples",
  2000,
  "Resamples of the methods, for the intervals of errors.",
  lower_bound=100,
)
_SHIP = flags.DEFINE_string(
  "ship",
  None,
  "With --sweeps: learn the rule for any model, and write it here as well."
  " That of the package is jaxprune/studies/guidance/rule.json.",
)
_DOCS = flags.DEFINE_string(
  "docs", None, "With --ship: page of the docs whose tables are made anew."
)
_OUT = flag_groups.out()


def main() -> None:
  if not (_SWEEPS.value or _RULE.value or _MODELS.pruned.value):
    raise ValueError(
      "give --sweeps=FOLDERS to learn rules, or --dense and --pruned to ask"
      " about a pruned model"
    )
  if _SWEEPS.value and _MODELS.pruned.value:
    raise ValueError("--pruned and --sweeps: a rule judges one or the other")
  if _SHIP.value and (_RULE.value or not _SWEEPS.value):
    raise ValueError("--ship: is learnt from --sweeps alone; give these only")
  if _DOCS.value and not _SHIP.value:
    raise ValueError("--docs: shows what --ship writes; give both")
  if _SHIP.value:
    _ship()
  elif _SWEEPS.value:
    _check() if _RULE.value else _learn()
  else:
    _apply() if _RULE.value else _ask()


def _learn() -> None:
  from jaxprune.studies.guidance import (
    apply,
    fit,
    page,
    recommend,
    splits,
    summary,
  )

  settings = fit.settings(
    _FEATURES.value,
    keep=_KEEP.value,
    seed=_SEED.value,
    resamples=_RESAMPLES.value,
  )
  every = _read(settings.keep, _PROMPTS.limit.value)
  sweeps = splits.without_duplicates(every)
  rules = fit.fit(sweeps, settings)
  with launch.study(
    _OUT.value,
    seeds={"bootstrap": settings.seed, "shuffle": settings.seed},
    models=sweeps.dense_hashes,
    extra_fields=summary.FIELDS,
  ) as study:
    features = fit.feature_rows(sweeps, settings)
    study.run.write_all(summary.rows(sweeps))
    study.run.write_all(features)
    apply.write_rule(study.run.folder, sweeps, rules, settings)
    recommended = recommend.recommend(every, seed=settings.seed)
    numbers = summary.summarise(sweeps, rules, settings, recommended)
    page.write_learnt(study.run, sweeps, numbers, features, settings)
    study.finish(
      numbers, summary.headline(numbers), wrote=("rule.json", "report.html")
    )


def _check() -> None:
  from jaxprune.studies.guidance import apply, check, page, splits

  rule = apply.read_rule(_RULE.value)
  _, num_prompts = apply.learnt_with(rule)
  sweeps = splits.without_duplicates(
    _read(rule["keep"], _PROMPTS.limit.value or num_prompts),
    rule["fingerprints"],
  )
  numbers = check.summarise(
    rule, sweeps, seed=_SEED.value, resamples=_RESAMPLES.value
  )
  with launch.study(
    _OUT.value,
    seeds={"bootstrap": _SEED.value},
    models=sweeps.dense_hashes,
    extra_fields=check.FIELDS,
  ) as study:
    rows = list(check.rows(rule, sweeps))
    study.run.write_all(rows)
    study.run.write_page(page.render_checked(numbers, rows, study.description))
    study.finish(numbers, check.headline(numbers))


def _apply() -> None:
  from jaxprune.studies.guidance import apply, page

  if _MODELS.pruned.value is None:
    raise ValueError("--pruned: name the pruned model that --rule shall judge")
  rule = apply.read_rule(_RULE.value)
  steps, num_prompts = apply.learnt_with(rule)
  steps = _PROMPTS.max_new_tokens.value or steps
  models = _MODELS.open()
  dense, pruned = models["dense"], models["pruned"]
  prompts = _PROMPTS.read(dense, limit=num_prompts, max_new_tokens=steps)
  with launch.study(
    _OUT.value, seeds={}, models=models, prompts=prompts
  ) as study:
    columns = apply.measure(dense, pruned, prompts, steps, study.run)
    hashes = study.description["checkpoint_hash"]
    judged = apply.judge(rule, hashes["dense"], prompts.hash, steps, columns)
    study.run.write_page(page.render_judged(judged, study.description))
    study.finish(judged, apply.headline(judged))


def _ship() -> None:
  from jaxprune.studies.guidance import cases, shipped, shipped_page, transfer

  shipped.check_place(_SHIP.value)
  found = cases.read_cases(_SWEEPS.value, keep=_KEEP.value, skip=_SKIP.value)
  kinds = transfer.learn(found, seed=_SEED.value)
  rule = shipped.make_rule(found, kinds, _KEEP.value)
  with launch.study(
    _OUT.value,
    seeds={"bootstrap": _SEED.value},
    models={s["model"]: s["checkpoint_hash"] for s in found.sources},
    extra_fields=cases.FIELDS,
  ) as study:
    study.run.write_all(cases.rows(found.cases))
    shipped.write_rule(study.run.folder / "rule.json", rule)
    if _DOCS.value:
      shipped_page.write_markdown(_DOCS.value, rule)
    shipped.write_rule(_SHIP.value, rule)
    study.run.write_page(
      shipped_page.render(rule, found.left_out, study.description)
    )
    study.finish(
      rule, shipped_page.headline(rule), wrote=("rule.json", "report.html")
    )


def _ask() -> None:
  """What the rule of the package says of one pruned model."""
  from jaxprune.studies.guidance import apply, shipped, shipped_page
  from jaxprune.studies.sweep import measure

  rule = shipped.load_rule()
  steps = _PROMPTS.max_new_tokens.value or measure.NEW_TOKENS
  models = _MODELS.open()
  prompts = _PROMPTS.read(
    models["dense"], limit=measure.NUM_PROMPTS, max_new_tokens=steps
  )
  with launch.study(
    _OUT.value, seeds={}, models=models, prompts=prompts
  ) as study:
    columns = apply.measure(*models.values(), prompts, steps, study.run)
    judged = shipped.judge(columns, rule=rule)
    study.run.write_page(
      shipped_page.render_judged(judged, rule, study.description)
    )
    study.finish(
      {kind: dataclasses.asdict(each) for kind, each in judged.items()},
      shipped_page.judged_headline(judged, rule),
    )


def _read(keep, num_prompts):
  """The pruned models of --sweeps."""
  from jaxprune.studies.guidance import sweeps

  return sweeps.read_sweeps(
    _SWEEPS.value,
    keep=keep,
    skip=_SKIP.value,
    num_prompts=num_prompts,
    seed=_SEED.value,
  )


if __name__ == "__main__":
  launch.run(main)
