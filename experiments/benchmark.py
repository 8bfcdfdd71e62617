"""How fast is it, beside a reference on the same machine in the same run?

  jaxprune benchmark --size=S --threads=2 --out=out/benchmark
  jaxprune benchmark --suite=transitions --size=M --batch=8 \\
    --out=OUT
  jaxprune benchmark --suite=methods --model=pocket --out=OUT

Random weights of two shapes: S (Qwen2, width 256, 8 layers) and M (width 896,
24 layers, MLP 4864, vocabulary 32000, tied). Every piece of work is timed as A
B A B: the PyTorch reference, then jaxprune, after one warm-up each; medians and
their ratio are printed and written. The time of a first call, with compilation,
is a number of its own. With --threads=1 processor seconds say more where others
use the machine: idle threads of PyTorch wait busily. `models` and `transitions`
need the `reference` extra.

Suite `models`, on random weights:

  forward      calibration batch through all layers
  decode_1, 8  greedy tokens per second at batch 1 and 8
  wanda        whole run at 50 %: statistics, masks, second forward
  wanda_2of4   the same at 2:4

Suite `transitions`, on random weights or --model: each attention and MLP
against its pruned counterpart at every decoding step, beside one metric at a
time in PyTorch; with --batch our side decodes several prompts at once and is
charged per prompt.

Suite `methods`, on --model (pocket where it is not given): the error of a layer
and the seconds of every method, beside Wanda's.

Suite `evaluation`, on --model and --data: scores of options (ARC-Easy) and
answers to word problems (GSM8K) beside lm-evaluation-harness' `hf` backend, in
processes of their own; seconds, peak memory, differences, and the floor that
the products of the tokens set. Needs the extras `eval` and `reference`.

  jaxprune benchmark --suite=evaluation --model=FOLDER \\
    --data=DATA --items=80 --repeats=3 --out=OUT
"""

from absl import flags

from . import flag_groups, launch

_WORK = ("forward", "decode_1", "decode_8", "wanda", "wanda_2of4")

_SUITE = flag_groups.several(
  "suite",
  ["models"],
  ["models", "transitions", "methods", "evaluation"],
  "What to time.",
)
_SIZE = flags.DEFINE_enum("size", "S", ["S", "M"], "Shape of random models.")
_MODEL = flag_groups.model(
  None, about="For transitions, in place of --size, and for methods."
)
_REPEATS = flags.DEFINE_integer(
  "repeats", 3, "Timed runs of each side.", lower_bound=1
)
_THREADS = flags.DEFINE_integer(
  "threads", 2, "Threads of PyTorch; JAX takes the cores it is given."
)
_PIECES = flag_groups.several(
  "work", list(_WORK), list(_WORK), "Of the suite models, what to time."
)
_NEW_TOKENS = flags.DEFINE_integer(
  "new_tokens", 64, "Tokens to decode.", lower_bound=2
)
flags.DEFINE_alias("steps", "new_tokens")
_PROMPT = flags.DEFINE_integer(
  "prompt", 32, "Tokens of a prompt in transitions.", lower_bound=1
)
_BATCH = flag_groups.batch(1, about="Prompts at once on our side.")
_SPARSITY = flags.DEFINE_float(
  "sparsity", 0.5, "Of methods: fraction removed, in [0, 1)."
)
_GROUP_SIZE = flags.DEFINE_integer(
  "group_size", 64, "Inputs that share a scale in rtn and awq; 0 for all."
)
_DATA = flags.DEFINE_string(
  "data", None, "Of evaluation: folder with qa/ARC-Easy and gsm8k."
)
_TASKS = flag_groups.several(
  "tasks",
  ["choice", "generation"],
  ["choice", "generation"],
  "Of evaluation, what to time.",
)
_ITEMS = flags.DEFINE_integer(
  "items", 32, "Of evaluation: questions of each task.", lower_bound=1
)
_REFERENCE_BATCH = flags.DEFINE_integer(
  "reference_batch",
  8,
  "Of evaluation: requests that the reference takes at a time.",
  lower_bound=1,
)
_CALIBRATION = flag_groups.calibration()
_SEED = flag_groups.seed("Of the calibration.")
_OUT = flag_groups.out("out/benchmark")


def main() -> None:
  from jaxprune.studies import inputs
  from jaxprune.studies.benchmark import methods

  source = calibration = None
  if "methods" in _SUITE.value:
    source = inputs.open_model(_MODEL.model.value or "pocket")
    wanted = methods.read_configurations(
      source.config, _SPARSITY.value, _GROUP_SIZE.value or None
    )
    calibration = _CALIBRATION.read(source, _SEED.value)
  with launch.study(
    _OUT.value,
    seeds={"weights": 0, "calibration": _SEED.value},
    models=source,
    calibration=calibration,
  ) as study:
    summary = {}
    if "models" in _SUITE.value:
      summary["models"] = _models(study.run)
    if "transitions" in _SUITE.value:
      summary["transitions"] = _transitions(study.run)
    if "methods" in _SUITE.value:
      summary["methods"] = methods.measure(
        source, wanted, calibration.tokens, study.run, _tell
      )
    if "evaluation" in _SUITE.value:
      summary["evaluation"] = _evaluation(study.run)
    study.finish(summary, wrote=("summary.json",))


def _models(run):
  from jaxprune.studies.benchmark import models

  settings = models.Settings(
    size=_SIZE.value,
    work=tuple(_PIECES.value),
    repeats=_REPEATS.value,
    threads=_THREADS.value,
    new_tokens=_NEW_TOKENS.value,
  )
  return models.measure(settings, run, _tell)


def _transitions(run):
  from jaxprune.studies.benchmark import transitions

  settings = transitions.Settings(
    size=_SIZE.value,
    model=_MODEL.model.value,
    steps=_NEW_TOKENS.value,
    prompt=_PROMPT.value,
    batch=_BATCH.value,
    repeats=_REPEATS.value,
    threads=_THREADS.value,
  )
  return transitions.measure(settings, run, _tell)


def _evaluation(run):
  from jaxprune.studies.benchmark import evaluation

  settings = evaluation.Settings(
    model=str(_MODEL.open().folder),
    data=_DATA.value or "",
    work=tuple(_TASKS.value),
    items=_ITEMS.value,
    new_tokens=_NEW_TOKENS.value,
    batch=_BATCH.value,
    reference_batch=_REFERENCE_BATCH.value,
    repeats=_REPEATS.value,
    threads=_THREADS.value,
  )
  return evaluation.measure(settings, run, _tell)


def _tell(line):
  print(line, flush=True)


if __name__ == "__main__":
  launch.run(main)
