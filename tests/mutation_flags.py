"""Changed values of flags: accepted and finite, or one line that names them.

A script is run up to where its long work would begin: it may open models and
texts, and must have refused by then what it cannot use.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
import os
import pathlib
import random
from unittest import mock

from mutation_judges import HangError, limited

ACCEPTED = 77  # the exit status where the work would begin
HUGE = 10**9
_SECONDS = 90  # the index of the harness takes some of them
# Of these any number is right: a seed, a limit that need not be reached, or
# what is not read, because no method or task of these commands needs it.
_ANY_SIZE = frozenset(
  (
    "answers_limit",
    "few_shot",
    "group_size",
    "items",
    "limit",
    "max_length",
    "save_every",
    "seed",
    "world_seed",
  )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlagsWorld:
  """The command line of a script.

  Attributes:
    script: its name.
    given: flags with which it works, by name.
    home: where values that are paths may lie.
  """

  script: str
  given: dict[str, str]
  home: pathlib.Path

  def try_one(self, draw: random.Random) -> str | None:
    """Change the value of a flag and start the script.

    Args:
      draw: what is changed.

    Returns:
      What is wrong; None where all is as it should be.
    """
    name, kind = draw.choice(self._flags())
    value = self._value(name, draw)
    words = [
      f"--{given}={text}" for given, text in self.given.items() if given != name
    ]
    words.append(f"--{name}={value}")
    if draw.random() < 0.05:
      words.append(words[draw.randrange(len(words))])
    try:
      with limited(_SECONDS):
        done = start(self.script, words, self.home)
      wrong = _judge(done, name, kind, value)
    except HangError as error:
      wrong = str(error)
    shown = f"--{name}={value}".encode("utf-8", "backslashreplace").decode()
    return wrong and f"{self.script} {shown:.80}: {wrong}"

  def _flags(self) -> list[tuple[str, str]]:
    """The flags of the script, with the kind of each."""
    import scripts

    from experiments import command_line, launch

    found: list[tuple[str, str]] = []

    def listed(main):
      for flag in command_line.own_flags():
        if not flag.help.startswith("Alias for"):
          found.append((flag.name, flag.flag_type()))

    with mock.patch.object(launch, "run", listed):
      scripts.call(self.script)
    return found

  def _value(self, name, draw) -> str:
    """A value that is odd, for a number, a name or a path."""
    given = self.given.get(name, "")
    return draw.choice(
      (
        *(
          "",
          " ",
          "0",
          "-1",
          "1",
          "2",
          "3",
          "7",
          "-0.0",
          "1.5",
          "0.999",
          "1e-320",
        ),
        *("nan", "inf", "-inf", "1e308", "9" * 40, "-" + "9" * 40, str(2**31)),
        *(
          "true",
          "None",
          "[]",
          ",",
          ",,",
          "a,a",
          "0,0",
          "1,nan",
          "a:b",
          "wanda:",
        ),
        *(
          "wanda:0.5,wanda:0.5",
          "wanda:nan",
          "magnitude:1",
          "2:4",
          "4:2",
          "0:0",
        ),
        *(
          "\udcff",
          "é漢\u202e",
          "x" * 5000,
          "-",
          "--",
          "=",
          "%s",
          "{}",
          "\x1b[31m",
        ),
        *(
          "~nosuchuser/x",
          "../x",
          f"{self.home}/none/x",
          f"{self.home}/loop/x",
        ),
        *(str(self.home), f"{self.home}/model", f"{self.home}/ids.npz"),
        *(f"{self.home}/text.txt", f"{self.home}/model/config.json"),
        *(f"{given},{given}", f"{given} ", given[:-1], given.upper()),
      )
    )


def start(script: str, words: list[str], home: pathlib.Path):
  """Run a script up to where its long work would begin.

  Args:
    script: its name.
    words: its flags.
    home: relative paths lie below it.
  """
  import scripts

  from experiments import launch
  from jaxprune.pocket import build

  def begin(*args, **kwargs):
    raise SystemExit(ACCEPTED)

  with contextlib.ExitStack() as stack:
    if importlib.util.find_spec("lm_eval"):
      stack.enter_context(
        mock.patch("lm_eval.tasks.TaskManager", _listed_tasks)
      )
    for place, name in (
      *((launch, "study"), (launch, "place")),
      *((build, "train"), (build, "read")),
    ):
      stack.enter_context(mock.patch.object(place, name, begin))
    stack.enter_context(contextlib.chdir(home / "here"))
    return scripts.call(script, *words)


@functools.cache
def _listed_tasks(**options):
  """The harness's index of its 14,000 files, which takes seconds to make."""
  from lm_eval.tasks import manager

  return manager.TaskManager(**options)


def _judge(done, name, kind, value) -> str | None:
  """What is wrong with how a script took a flag."""
  if done.returncode == ACCEPTED:
    return _odd_number(name, kind, value)
  lines = done.stderr.splitlines() or [""]
  line, shown = lines[-1], f"{lines[-1]!r:.300}"
  if done.returncode != 1:
    return f"status {done.returncode}: {shown}"
  # Notes and estimates may stand before it.
  errors = [x for x in lines if x.startswith(("error: ", "Traceback"))]
  if errors != [line]:
    return f"not one line: {shown}"
  if "unexpected " in line or "a fault of jaxprune" in line:
    return f"unclear: {shown}"
  if len(line) > 2200:
    return "a line too long to be read"
  text = value.encode("utf-8", "backslashreplace").decode().strip()
  text = (text.partition(",")[0] or text)[:20]
  escaped = (c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
  ways = (
    *(text, repr(text)[1:-1], text.replace("\\u", "\\x")),
    "".join(escaped),
  )
  if name in line or text and any(way in line for way in ways):
    return None
  return f"names no flag: {shown}"


def _odd_number(name, kind, value) -> str | None:
  """Why a number should not have been accepted."""
  if "int" not in kind and "float" not in kind:
    return None
  for text in value.split(","):
    with contextlib.suppress(ValueError):
      number = float(text)
      if not math.isfinite(number):
        return "accepted"
      if "int" in kind and abs(number) >= HUGE and name not in _ANY_SIZE:
        return "accepted"
  return None


def make_worlds(home: pathlib.Path) -> list[FlagsWorld]:
  """Write the inputs of the scripts, and see that they work with them.

  Args:
    home: an empty folder.

  Raises:
    RuntimeError: a script refuses what it should take.
  """
  import fault_jobs
  import guidance_sweeps_made
  import hf_encoders
  import mutation_texts

  if importlib.util.find_spec("lm_eval"):
    _listed_tasks()
  fault_jobs.make_inputs(home)
  mutation_texts.write_beir(home / "beir")
  hf_encoders.save(home / "encoder")
  prompts = (home / "prompts.jsonl").read_text()
  (home / "more.jsonl").write_text(prompts * 3)
  (home / "here").mkdir()
  os.symlink("loop", home / "loop")
  for name in ("sweep", "other"):
    guidance_sweeps_made.write_sweep(home / name, dense=name)
    (home / name / "run.json").write_text(
      json.dumps({"checkpoint_hash": name, "calibration": {}, "command": []})
    )
  worlds = [
    FlagsWorld(script=script, given=given | {"out": "out"}, home=home)
    for script, given in _given(home).items()
  ]
  for world in worlds:
    words = [f"--{name}={value}" for name, value in world.given.items()]
    done = start(world.script, words, home)
    if done.returncode != ACCEPTED:
      raise RuntimeError(f"{world.script}: {done.stderr}")
  return worlds


def _given(home) -> dict[str, dict[str, str]]:
  """By script, flags with which it works."""
  model, pruned = {"model": f"{home}/model"}, {"pruned": f"{home}/model-pruned"}
  ids, text = (
    {"calibration": f"{home}/{name}"} for name in ("ids.npz", "text.txt")
  )
  sweep = f"{home}/sweep"
  pair = {"dense": f"{home}/model"} | pruned
  prompts = {"prompts": f"{home}/prompts.jsonl", "max_new_tokens": "2"}
  few = {"num_samples": "2", "seq_len": "8"}
  asked = {"choice": f"{home}/asked.jsonl"}
  given = {
    "prune": model | text | few | {"method": "wanda", "sparsity": "0.5"},
    "evaluate": model | asked | {"limit": "2", "seq_len": "8"},
    "discrepancy": model
    | asked
    | ids
    | few
    | {"configurations": "wanda:0.5", "seeds": "0"},
    "code_tasks": model
    | {"tasks": f"{home}/code.jsonl", "max_new_tokens": "2"},
    "harness": model | {"task": f"{home}/own.yaml", "limit": "2"},
    "recovery_study": few | {"steps": "1", "seeds": "0", "weights": "1"},
    "convert": model,
    "recover": pruned
    | text
    | few
    | {"steps": "2", "batch": "2", "objective": "language"},
    "plan": few | prompts | {"model": "pocket", "keep": "0.9"},
    "quickstart": few | prompts | {"model": "pocket", "sparsity": "0.5"},
    "ablation": model
    | text
    | few
    | {"draws": "2", "max_count": "1", "held_out": f"{home}/text.txt"},
    "guidance": {"sweeps": sweep, "keep": "0.9", "resamples": "100"},
    "compare_methods": {"run": sweep, "baseline": "wanda"},
    "compare_models": {"runs": f"{sweep},{home}/other"},
    "verify": model | {"seed": "0"},
    "benchmark": {"repeats": "1"},
    "train_pocket": {"steps": "1", "learning_rate": "0.001"},
    "subspace": pair | {"items": f"{home}/asked.jsonl", "limit": "2"},
    "retrieval": {
      "dense": f"{home}/encoder",
      "collection": f"{home}/beir",
      "num_samples": "2",
      "max_tokens": "16",
      "sparsity": "0.5",
    },
  }
  for script in ("compare", "trajectories", "transitions"):
    given[script] = pair | prompts
  for script in ("propagation", "interventions", "monitoring"):
    given[script] = pair | prompts | {"seeds": "0"}
  given["propagation"] |= {"groups": "2"}
  given["monitoring"] |= {"prompts": f"{home}/more.jsonl"}
  return given
