"""jaxprune: prune a language model, and see for which tasks it is still fit.

The console command `jaxprune NAME` runs the script `experiments.NAME`.
"""

import difflib
import importlib
import sys
from typing import TYPE_CHECKING

import jaxprune

from . import command_line

if TYPE_CHECKING:
  from collections.abc import Iterator

# By purpose, what each script does, in one line.
COMMANDS = {
  "Start here": {
    "quickstart": "prune the laboratory model, compare, score, report",
    "compare": "two folders: for which tasks is the pruned one still fit?",
    "plan": "find what can be removed so that a task keeps its score",
  },
  "Prune, check and convert": {
    "prune": "write the pruned folder of a checkpoint",
    "recover": "train a pruned folder shortly, its masks kept",
    "verify": "check a folder, or compare two",
    "convert": "GGUF to Hugging Face; Hugging Face to Orbax and back",
  },
  "Score tasks": {
    "evaluate": "perplexity, choice, retrieval and generation from files",
    "harness": "tasks of lm-evaluation-harness",
    "code_tasks": "HumanEval and MBPP",
    "retrieval": "a pruned BERT encoder on retrieval and similarity",
  },
  "See what pruning changed": {
    "trajectories": "both models decode, on the same text and on their own",
    "transitions": "one sublayer pruned or dropped at a time",
    "subspace": "the options of questions against the whole vocabulary",
    "propagation": "which sublayer and which step the change comes from",
    "interventions": "which part of the change does the harm",
    "ablation": "what the output loses without each sublayer",
    "monitoring": "single steps deferred to the dense model",
  },
  "Study many prunings": {
    "discrepancy": "tasks over methods, amounts and calibration seeds",
    "compare_methods": "two methods of such a sweep, item by item",
    "compare_models": "the same sweep on several dense models",
    "guidance": "learn for which tasks a pruned model is fit, and say it",
    "recovery_study": "what short training brings back",
  },
  "Develop": {
    "benchmark": "speed beside references",
    "train_pocket": "train the laboratory model",
  },
}


def main() -> None:
  """Run the script that the first word names; without one, list them."""
  words = sys.argv[1:]
  if not words or words[0] in ("--help", "-h", "-help", "help"):
    print("\n".join(_help()))
    return
  if words[0] == "--version":
    print(jaxprune.__version__)
    return
  name = words[0]
  names = [name for group in COMMANDS.values() for name in group]
  if name not in names:
    near = difflib.get_close_matches(name, names, 1, 0)
    command_line.fail(
      f"jaxprune has no command {name!r}; did you mean {near[0]}? jaxprune"
      " --help lists all"
    )
  sys.argv = [f"{command_line.PROGRAM} {name}", *words[1:]]
  script = importlib.import_module(f"{__package__}.{name}")
  from . import launch

  launch.run(script.main)


def _help() -> "Iterator[str]":
  yield (__doc__ or "").partition("\n")[0]
  yield ""
  yield "usage: jaxprune COMMAND [WORD ...] [--FLAG=VALUE ...]"
  for purpose, commands in COMMANDS.items():
    yield f"\n{purpose}:"
    for name, about in commands.items():
      yield f"  {name:16s} {about}"
  yield "\njaxprune COMMAND --help lists the flags of a command."


if __name__ == "__main__":
  main()
