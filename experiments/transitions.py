"""What does one sublayer do when it is pruned or dropped and all else is dense?

  jaxprune transitions --dense=FOLDER --pruned=PRUNED \\
    --prompts=FILE --max_new_tokens=64 --out=OUT
  jaxprune transitions --dense=FOLDER --drop \\
    --prompts=FILE --out=OUT

The dense model continues every prompt, greedily or by sampling at
--temperature. At every step the attention and the MLP of every layer are
computed again from the dense residual stream with the pruned weights (or left
out, with --drop), and the streams behind them are compared in h, z and p. With
--drop the cosine of h is LLM-Drop's similarity, on decoded tokens.

A row of the records is one prompt, step, layer and sublayer. Step 0 is the
prediction after the last prompt token; steps after the end of a text are left
out.

--history says whose keys and values of earlier tokens pruned attention reads:
`dense` (default), `pruned` (this sublayer was pruned from the first token on,
as in the official script at step 0) or `none` (as in the official script at
later steps, whose cache is lost).

Reference: He et al., arXiv 2603.24652, section 5, Figs 2, 4-6 and 13-21.
"""

from absl import flags

from . import flag_groups, launch

_COMPARISON = flag_groups.comparison(max_new_tokens=64, pruned=None)
_DROP = flags.DEFINE_bool(
  "drop", False, "Leave each sublayer out, instead of --pruned."
)
_HISTORY = flags.DEFINE_enum(
  "history",
  "dense",
  ["dense", "pruned", "none"],
  "Whose keys and values pruned attention reads of earlier tokens.",
)
_OUT = flag_groups.out()


def main() -> None:
  if bool(_COMPARISON.models.pruned.value) == _DROP.value:
    raise ValueError(
      "--pruned and --drop: give one of them, --pruned=FOLDER to replace"
      " sublayers or --drop to leave them out"
    )
  from jaxprune.studies.transitions import measure, page
  from jaxprune.studies.transitions import summary as summary_lib

  models, prompts = _COMPARISON.open()
  settings = _COMPARISON.settings(measure.Settings, history=_HISTORY.value)
  with launch.study(
    _OUT.value,
    seeds={"sampling": settings.seed, "bootstrap": settings.seed},
    models=models,
    prompts=prompts,
    extra_fields=measure.FIELDS,
  ) as study:
    measured = measure.measure(
      models["dense"],
      models.get("pruned"),
      prompts,
      settings,
      study.run,
      progress=study.progress("prompt", len(prompts.tokens)),
    )
    summary = summary_lib.summarise(measured)
    study.finish(summary, summary_lib.headline(summary))
    page.write_page(study.run, measured, summary)


if __name__ == "__main__":
  launch.run(main)
