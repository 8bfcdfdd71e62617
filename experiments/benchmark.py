"""How fast is jaxprune, beside a reference on the same machine in the same run?

  jaxprune benchmark --suite=cpu --size=M --out=OUT [--page=docs/speed.md]
  jaxprune benchmark --suite=cpu --model=FOLDER --out=OUT
  jaxprune benchmark --suite=transitions --size=M --batch=8 --out=OUT
  jaxprune benchmark --suite=methods --model=pocket --out=OUT
  jaxprune benchmark --suite=evaluation --model=FOLDER --data=DATA \\
    --limit=80 --out=OUT
  jaxprune benchmark --suite=gpu --shapes=llama-7b --out=OUT
  jaxprune benchmark --suite=scaling --out=OUT
  jaxprune benchmark --suite=tpu --shapes=llama3-8b,llama3-405b \\
    --count=8,256 --chips=v5e,v5p --out=OUT [--page=docs/scale.md]

The model is a checkpoint, or random weights of one of two shapes: S (Qwen2,
width 256, 8 layers) or M (width 896, 24 layers, MLP 4864, vocabulary 32000,
tied). Each piece of work is timed in turns, A B A B: the reference, then
jaxprune. The first call of each compiles and is a number of its own. Medians,
their ratio and the floor that the machine sets are printed and written. Where
other programs use the machine, compare the ratios of processor seconds.

cpu          loading, forward passes, Wanda and SparseGPT with their stages,
             drop scores and decoding, beside transformers and the papers'
             methods in PyTorch; peak memory of each side. Needs the extra
             `reference`, like transitions.
transitions  each sublayer against its pruned counterpart at each step; with
             --batch, jaxprune decodes several prompts and is charged per prompt
methods      the error of a layer and the seconds of every method
evaluation   options of ARC-Easy and answers to GSM8K, beside the `hf` backend
             of lm-evaluation-harness (extras `eval` and `reference`)
gpu          a published shape on one accelerator, beside its own limits; like
             tpu with 128 x 2048 calibration tokens by default
scaling      how cost grows with layers, width, tokens, prompts, steps, words
tpu          compiles every program for slices of TPUs that are not there (extra
             `tpu`), one --count of chips per shape; a run that was stopped goes
             on with the same command

--page puts the table of the suite in its place in a page of the docs.
"""

import os

from absl import flags

from . import flag_groups, launch

_SUITE = flag_groups.several(
  "suite",
  ["cpu"],
  ["cpu", "transitions", "methods", "evaluation", "gpu", "scaling", "tpu"],
  "What to time.",
)
_SIZE = flags.DEFINE_enum("size", "S", ["S", "M"], "Shape of random models.")
_MODEL = flag_groups.model(
  None, about="Checkpoint in place of --size; needed by methods and evaluation."
)
_REPEATS = flags.DEFINE_integer(
  "repeats", 3, "Timed runs of each side.", 1, 1000
)
_THREADS = flags.DEFINE_integer(
  "threads", 2, "Threads of PyTorch; JAX takes the cores it is given."
)
_PIECES = flags.DEFINE_list(
  "work", None, "With cpu: what to time, by names of its table; all by default."
)
_MAX_NEW_TOKENS = flag_groups.new_tokens(64, about="Tokens to decode.", least=2)
_PROMPT = flags.DEFINE_integer(
  "prompt", 32, "Tokens of a prompt in transitions.", lower_bound=1
)
_BATCH = flag_groups.batch(1, about="Prompts at once on our side.")
_SPARSITY = flags.DEFINE_float(
  "sparsity", 0.5, "With methods: fraction removed, in [0, 1)."
)
_GROUP_SIZE = flags.DEFINE_integer(
  "group_size", 64, "Inputs that share a scale in rtn and awq; 0 for all."
)
_DATA = flags.DEFINE_string(
  "data", None, "With evaluation: folder with qa/ARC-Easy and gsm8k."
)
_TASKS = flag_groups.several(
  "tasks",
  ["choice", "generation"],
  ["choice", "generation"],
  "With evaluation: what to time.",
)
_LIMIT = flag_groups.limit(32, about="With evaluation: questions of each task.")
_REFERENCE_BATCH = flags.DEFINE_integer(
  "reference_batch",
  8,
  "With evaluation: requests that the reference takes at a time.",
  lower_bound=1,
)
_SHAPES = flags.DEFINE_list(
  "shapes", None, "With gpu, tpu: llama-7b, llama3-8b, llama3-405b, tiny, ..."
)
_CHIPS = flag_groups.several(
  "chips", ["v5e"], ["v5e", "v5p", "v6e"], "With tpu: the chips."
)
_COUNT = flags.DEFINE_list(
  "count", None, "With tpu: chips of the slice, one number per shape."
)
_PROGRAMS = flags.DEFINE_list(
  "programs", [], "With tpu: beginnings of names of programs; all by default."
)
_PAGE = flags.DEFINE_string(
  "page", None, "Page of the docs in which the table is put."
)
_CALIBRATION = flag_groups.calibration()
_SEED = flag_groups.seed("Seed of the calibration draw.")
_OUT = flag_groups.out("out/benchmark")


def main() -> None:
  from jaxprune.studies import inputs
  from jaxprune.studies.benchmark import methods, tables

  if _PAGE.value is not None:
    tables.check_places(_PAGE.value, _places())
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
    answers=_SUITE.value == ["tpu"],
  ) as study:
    summary = {}
    for name in _SUITE.value:
      if name == "methods":
        summary[name] = methods.measure(
          source, wanted, calibration.tokens, study.run, _tell
        )
      else:
        summary[name] = _SUITES[name](study)
    study.finish(summary, wrote=("summary.json",))
  _write_tables(summary)


def _cpu(study):
  from jaxprune.studies.benchmark import cpu

  settings = cpu.Settings(
    size=_SIZE.value,
    model=_MODEL.model.value,
    work=cpu.read_work(_PIECES.value),
    **_beside_pytorch(),
  )
  return cpu.measure(settings, study.run, _tell)


def _transitions(study):
  from jaxprune.studies.benchmark import transitions

  settings = transitions.Settings(
    size=_SIZE.value,
    model=_MODEL.model.value,
    prompt=_PROMPT.value,
    batch=_BATCH.value,
    **_beside_pytorch(),
  )
  return transitions.measure(settings, study.run, _tell)


def _evaluation(study):
  from jaxprune.studies.benchmark import evaluation

  settings = evaluation.Settings(
    model=str(_MODEL.open().folder),
    data=_DATA.value or "",
    work=tuple(_TASKS.value),
    limit=_LIMIT.value,
    batch=_BATCH.value,
    reference_batch=_REFERENCE_BATCH.value,
    **_beside_pytorch(),
  )
  return evaluation.measure(settings, study.run, _tell)


def _gpu(study):
  from jaxprune.studies.benchmark import accelerator

  shape, *more = _SHAPES.value or ["llama-7b"]
  if more:
    raise ValueError(f"--shapes={_SHAPES.value}: gpu takes one shape")
  settings = accelerator.Settings(
    shape=shape,
    **_calibration_size(),
    max_new_tokens=_MAX_NEW_TOKENS.value,
    repeats=_REPEATS.value,
  )
  return accelerator.measure(settings, study.run, _tell)


def _scaling(study):
  from jaxprune.studies.benchmark import growth, growth_page

  summary = growth.measure(
    growth.Settings(repeats=_REPEATS.value), study.run, _tell
  )
  growth_page.write_page(study.run, summary)
  return summary


def _tpu(study):
  # No TPU is used, so that others may use this library beside.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  from jaxprune.studies.benchmark.pods import measure

  return measure.measure(_pods(), study.stage.new, _tell)


def _pods():
  """What the suite tpu compiles."""
  from jaxprune.studies.benchmark.pods import measure

  return measure.Settings(
    shapes=tuple(_SHAPES.value or ["llama3-8b"]),
    chips=tuple(_CHIPS.value),
    count=measure.read_counts(_COUNT.value or ["8"]),
    programs=tuple(_PROGRAMS.value),
    **_calibration_size(),
  )


def _beside_pytorch():
  """What the suites with a reference in PyTorch share."""
  return dict(
    max_new_tokens=_MAX_NEW_TOKENS.value,
    repeats=_REPEATS.value,
    threads=_THREADS.value,
  )


def _calibration_size():
  """Sequences and their length: the papers' where no flag says another."""
  return {
    name: flag.value if flags.FLAGS[flag.name].present else usual
    for name, flag, usual in (
      ("sequences", _CALIBRATION.num_samples, 128),
      ("length", _CALIBRATION.seq_len, 2048),
    )
  }


def _places():
  """Names of the places of the page that the suites will fill."""
  from jaxprune.studies.benchmark import cpu, tables
  from jaxprune.studies.benchmark.pods import measure

  for name in _SUITE.value:
    if name == "tpu":
      settings = _pods()
      measure.check(settings)
      for shape, _, topology in measure.slices(settings):
        yield tables.pod_place(shape, topology)
    elif name == "cpu":
      yield f"cpu {cpu.name_of(_SIZE.value, _MODEL.model.value)}"
    elif name in tables.OF:
      yield name


def _write_tables(summary):
  """Put what was measured into the places of the page."""
  from jaxprune.studies.benchmark import tables

  if _PAGE.value is None:
    return
  for name, entry in summary.items():
    if name == "tpu":
      texts = tables.of_pods(entry)
    elif name in tables.OF:
      place = f"cpu {entry['model']}" if name == "cpu" else name
      texts = {place: tables.OF[name](entry)}
    else:
      continue
    for place, text in texts.items():
      tables.replace(_PAGE.value, place, text)


def _tell(line):
  print(line, flush=True)


_SUITES = {
  "cpu": _cpu,
  "transitions": _transitions,
  "evaluation": _evaluation,
  "gpu": _gpu,
  "scaling": _scaling,
  "tpu": _tpu,
}

if __name__ == "__main__":
  launch.run(main)
