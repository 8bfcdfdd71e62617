"""Changed results of runs: damage is seen, or nothing depends on it."""

import json
import pathlib
import shutil

from mutation_judges import World

from jaxprune import files
from jaxprune.evaluation import journal
from jaxprune.report import records, run_stage


def make_worlds(home: pathlib.Path) -> list[World]:
  """Write the inputs.

  Args:
    home: a folder; others are made in it.
  """
  return [
    _records_world(home / "rows"),
    _run_world(home / "run", home / "kept"),
    _checked_world(home / "checked"),
    _journal_world(home / "journal"),
    _sweep_world(home / "sweep", signed=True),
    _sweep_world(home / "unsigned", signed=False),
    _rule_world(home / "copied"),
  ]


def _records_world(folder) -> World:
  folder.mkdir()
  rows = [{"layer": i, "kl": 0.5 * i, "task": "x"} for i in range(9)]
  file = folder / "records.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))

  def judge(path):
    found = records.read_records(folder)
    whole = file.read_bytes().split(b"\n")[:-1]
    return (
      None if found == [json.loads(line) for line in whole] else "other rows"
    )

  return World(name="records", files=(file,), judge=judge)


DESCRIPTION = {
  "made_by": "jaxprune",
  "flags": {"sparsity": 0.5, "seeds": [0]},
  "seeds": {"calibration": [0]},
  "calibration": {"hash": "a"},
  "versions": {"jax": "1"},
  "device": {"platform": "cpu", "kind": "cpu"},
}


def _finished_run(folder) -> None:
  with run_stage.stage_run(folder, DESCRIPTION) as (stage, _):
    with records.RunFolder(stage.new, DESCRIPTION) as run:
      run.write_all([{"layer": i, "kl": 0.5 * i} for i in range(9)])
      run.write_summary({"kl": 1.0})


def _run_world(folder, kept) -> World:
  """The same run again: it is finished, or one line says what is changed."""
  _finished_run(folder)
  shutil.copytree(folder, kept)

  def judge(file):
    plain = files.read_json(folder / records.RUN)
    try:
      with run_stage.stage_run(folder, DESCRIPTION):
        return "is run again over what is there"
    except run_stage.FinishedError:
      if plain["flags"] != DESCRIPTION["flags"]:
        return "another run is taken for this one"
      return None if _is_as_written(kept, file) else "damage is not seen"

  names = ("run.json", "records.jsonl", "summary.json", "checksums.json")
  return World(
    name="run", files=tuple(folder / name for name in names), judge=judge
  )


def _is_as_written(kept, file) -> bool:
  """Whether a changed file says the same as before, as far as is known."""
  if file.name == files.CHECKSUMS:
    return (
      True  # a checksum that is gone, or has another name, is not asked for
    )
  return file.read_bytes() == (kept / file.name).read_bytes()


def _checked_world(folder) -> World:
  """Results that another script reads."""
  _finished_run(folder)
  names = ("records.jsonl", "summary.json")
  kept = {name: (folder / name).read_bytes() for name in names}

  def judge(file):
    content = files.read_checked(file)
    return None if content == kept[file.name] else "damage is not seen"

  return World(
    name="checked", files=tuple(folder / name for name in names), judge=judge
  )


def _journal_world(folder) -> World:
  folder.mkdir()
  file = folder / "answers-model.jsonl"
  answers = {f"key {i}": [i, 0.25 * i] for i in range(6)}
  with journal.Journal(file, {"model": "a"}) as kept:
    for key, value in answers.items():
      kept.add({key: value})

  def judge(path):
    with journal.Journal(file, {"model": "a"}) as again:
      for key, value in answers.items():
        if again.get(key) not in (None, value):
          return f"another answer: {again.get(key)!r}"
    return None

  return World(name="journal", files=(file,), judge=judge)


def _sweep_world(folder, signed) -> World:
  """The scores of a sweep, as guidance and the comparisons read them."""
  import guidance_sweeps_made as made

  from jaxprune.studies.guidance import cases, sweeps
  from jaxprune.studies.sweep import scores

  made.write_dense(folder)
  for index in range(3):
    made.write_configuration(
      folder, f"wanda_{index}-seed0", f"wanda:0.{index + 2}", 0, 0.1, 15
    )
  names = sorted((folder / scores.FOLDER).iterdir())
  for path in names if signed else ():
    files.write_signed_json(path, json.loads(path.read_text()))

  def read():
    given = [str(folder)]
    return (
      sweeps.read_sweeps(given, keep=0.9, resamples=20).models,
      [
        (case.task, case.retention.value)
        for case in cases.read_cases(given, keep=0.9).cases
      ],
      [list(map(_but_kind, scores.read_scores(folder).items()))],
      scores.read_job(folder)["checkpoint_hash"],
    )

  plain = read()

  def judge(file):
    found = read()
    return "other scores" if signed and found != plain else None

  name = "sweep" if signed else "unsigned sweep"
  return World(name=name, files=tuple(names), judge=judge)


def _but_kind(entry):
  """A configuration, and the tasks of its scores."""
  name, seeds = entry
  return name, [score["tasks"] for score in seeds]


def _rule_world(folder) -> World:
  """A learnt rule that was copied under another name."""
  from jaxprune.studies.guidance import apply

  folder.mkdir()
  rule = {
    "made_by": apply.MADE_BY,
    "keep": 0.9,
    "sources": [{"steps": 4, "num_prompts": 2, "checkpoint_hash": "a"}],
    "fingerprints": ["c"],
    "tasks": {"choose": {"feature": "kl", "threshold": 0.5, "gap": [0.1, 1]}},
  }
  files.write_signed_json(folder / apply.RULE, rule)
  file = (folder / apply.RULE).rename(folder / "mine.json")

  def judge(path):
    return None if apply.read_rule(file) == rule else "another rule"

  return World(name="rule", files=(file,), judge=judge)
