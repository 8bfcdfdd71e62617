"""The suite `evaluation`: tasks, beside lm-evaluation-harness' `hf` backend.

Both backends get the same requests of the harness: every option of
multiple-choice questions after its context, in the form of the task `arc_easy`,
and answers to word problems. Each lives in a process of its own, which says how
much memory it took, and works in its turn, A B A B.

The floor is what no schedule can avoid: the products of tokens that must be
read and of positions that must be given logits, at the rate at which either
side multiplies large float32 matrices here; and for every decoding step at
least one pass over the weights, at the rate of reading memory.

Reference: lm-evaluation-harness 0.4.13, HFLM in float32.
"""

import dataclasses
import json
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxprune import checkpoints, report
from jaxprune.calibration import load_tokenizer
from jaxprune.evaluation import encode_pair, loglikelihoods
from jaxprune.studies.benchmark import (
  floors,
  processes,
  rates,
  references,
  timing,
)

WORK = ("choice", "generation")
_STOP = ("Question:", "</s>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is timed.

  Attributes:
    model: folder of the checkpoint.
    data: folder with `qa/ARC-Easy/test.json` and `gsm8k/test.jsonl`.
    work: of `WORK`.
    limit: questions of each kind of work.
    max_new_tokens: most tokens of an answer.
    batch: texts that either backend writes at a time.
    reference_batch: requests that the reference scores at a time.
    repeats: timed runs of each side.
    threads: of PyTorch; JAX takes the cores that it is given.
  """

  model: str
  data: str
  work: tuple[str, ...]
  limit: int
  max_new_tokens: int
  batch: int
  reference_batch: int
  repeats: int
  threads: int


def read_requests(settings: Settings) -> dict[str, list[tuple[str, Any]]]:
  """Arguments of the harness's requests, by kind of work.

  Args:
    settings: which work, on which data.

  Raises:
    ValueError: a file is missing or has fewer questions.
  """
  readers = {"choice": _read_choice, "generation": _read_generation}
  requests = {}
  for work in settings.work:
    try:
      requests[work] = readers[work](settings)
    except (OSError, ValueError, KeyError, AttributeError) as error:
      raise ValueError(
        f"--data={settings.data}: no questions for {work} there ({error!r});"
        " give a folder with qa/ARC-Easy/test.json and gsm8k/test.jsonl"
      ) from error
  return requests


def measure(
  settings: Settings, run: report.RunFolder, say: Callable[[str], None]
) -> dict[str, Any]:
  """Time both backends on every kind of work.

  Args:
    settings: what is timed.
    run: takes a row per kind of work and timed run.
    say: takes a line per kind of work.

  Returns:
    By kind of work: medians in seconds and processor seconds, ratios, the
    floor, and how far the answers are apart; and the peak memory of each side
    in bytes.
  """
  requests = read_requests(settings)
  floors = {
    work: _floor(settings, work, arguments)
    for work, arguments in requests.items()
  }
  summary: dict[str, Any] = {}
  with (
    processes.Side("reference", _open_reference, settings) as theirs,
    processes.Side("jaxprune", _open_jaxprune, settings) as us,
  ):
    for work, arguments in requests.items():
      answers = {}

      def turn(side, work=work, arguments=arguments, answers=answers):
        seconds, answers[side.name] = side.ask((work, arguments))
        return np.array(seconds)

      seconds = timing.take_turns(
        {side.name: lambda side=side: turn(side) for side in (theirs, us)},
        settings.repeats,
      )
      run.write_all(_rows(work, seconds))
      summary[work] = _summarise(seconds, answers, floors[work])
      say(_line(work, summary[work]))
    summary["peak_bytes"] = us.peak_bytes()
    summary["reference_peak_bytes"] = theirs.peak_bytes()
  say(
    f"peak memory  reference {summary['reference_peak_bytes'] / 1e9:.2f} GB"
    f"   jaxprune {summary['peak_bytes'] / 1e9:.2f} GB"
  )
  return summary


def _open_reference(settings):
  """The harness's own backend, as a function of a question."""
  from lm_eval.models.huggingface import HFLM

  references.start(settings.threads)
  backend = HFLM(
    pretrained=settings.model,
    dtype="float32",
    device="cpu",
    batch_size=settings.reference_batch,
  )
  return lambda question: _timed(backend, *question)


def _open_jaxprune(settings):
  """The adapter of this project, as a function of a question."""
  from jaxprune.evaluation.lm_eval_adapter import JaxpruneLM

  backend = JaxpruneLM(settings.model, batch_size=settings.batch)
  return lambda question: _timed(backend, *question)


def _timed(backend, work, arguments):
  from lm_eval.api.instance import Instance

  kind = "loglikelihood" if work == "choice" else "generate_until"
  instances = [
    Instance(request_type=kind, doc={}, arguments=pair, idx=index)
    for index, pair in enumerate(arguments)
  ]
  began = time.perf_counter(), time.process_time()
  answers = getattr(backend, kind)(instances, disable_tqdm=True)
  ended = time.perf_counter(), time.process_time()
  return [end - begin for begin, end in zip(began, ended)], answers


def _read_choice(settings):
  """Options after their context, in the form of the harness's `arc_easy`."""
  path = pathlib.Path(settings.data) / "qa/ARC-Easy/test.json"
  pairs = []
  for entry in json.loads(path.read_text(encoding="utf-8"))[: settings.limit]:
    question, options = re.search(
      r"question: (.*?)\n\n(Answer1: .*?)\n\nAnswer format:",
      entry["instruction"],
      re.DOTALL,
    ).groups()
    pairs += [
      (f"Question: {question}\nAnswer:", f" {option}")
      for option in re.split(r"\s*Answer\d: ", options)[1:]
    ]
  return pairs


def _read_generation(settings):
  path = pathlib.Path(settings.data) / "gsm8k/test.jsonl"
  lines = path.read_text(encoding="utf-8").splitlines()[: settings.limit]
  options = {
    "until": list(_STOP),
    "max_gen_toks": settings.max_new_tokens,
    "do_sample": False,
  }
  return [
    (f"Question: {json.loads(line)['question']}\nAnswer:", options)
    for line in lines
  ]


def _floor(settings, work, arguments) -> dict[str, float]:
  """Seconds that reading takes at the least, and what they are made of.

  For generation, without the decoding steps: how many there are is not known.
  """
  config = checkpoints.open_checkpoint(settings.model).config
  tokenizer = load_tokenizer(settings.model)
  pairs = [
    encode_pair(tokenizer, context, tail if work == "choice" else " ")
    for context, tail in arguments
  ]
  tokens, places = loglikelihoods.tokens_read(config, pairs)
  head = config.vocab_size * config.embed_dim
  flops = floors.forward_flops(config, tokens) + 2.0 * places * head
  rate = rates.matmul_rate(config.embed_dim, config.mlp_dim)
  return {
    "tokens": tokens,
    "logits": places,
    "flops": flops,
    "flops_per_second": rate,
    "floor_seconds": flops / rate,
    "step_floor_seconds": floors.weight_bytes(config) / rates.memory_rate(),
  }


def _rows(work, seconds):
  """The records of the runs that count."""
  for index, (theirs, ours) in enumerate(
    zip(seconds["reference"][1:], seconds["jaxprune"][1:])
  ):
    for column, metric in enumerate(("seconds", "processor_seconds")):
      yield {
        "task": work,
        "seed": index,
        "metric": metric,
        "value": ours[column],
        "reference": theirs[column],
      }


def _summarise(seconds, answers, floor):
  slow, fast = (
    np.median(seconds[side][1:], axis=0) for side in ("reference", "jaxprune")
  )
  entry = {
    "seconds": fast[timing.WALL],
    "reference_seconds": slow[timing.WALL],
    "ratio": slow[timing.WALL] / fast[timing.WALL],
    "processor_seconds": fast[timing.PROCESSOR],
    "reference_processor_seconds": slow[timing.PROCESSOR],
    "processor_ratio": slow[timing.PROCESSOR] / fast[timing.PROCESSOR],
    "first_call_seconds": seconds["jaxprune"][0, timing.WALL],
    "reference_first_call_seconds": seconds["reference"][0, timing.WALL],
    **floor,
  }
  theirs, ours = answers["reference"], answers["jaxprune"]
  entry["items"] = len(ours)
  if isinstance(ours[0], str):
    return entry | {
      "same": sum(a == b for a, b in zip(ours, theirs)),
      "characters": sum(map(len, ours)),
    }
  gap = [abs(a - b) for (a, _), (b, _) in zip(ours, theirs)]
  return entry | {
    "same": sum(a == b for (_, a), (_, b) in zip(ours, theirs)),
    "largest_difference_nats": max(gap),
  }


def _line(work, entry):
  apart = entry.get("largest_difference_nats")
  return (
    f"{work:10s} reference {entry['reference_seconds']:8.2f} s   jaxprune"
    f" {entry['seconds']:8.2f} s   ratio {entry['ratio']:5.2f}   processor"
    f" ratio {entry['processor_ratio']:5.2f}   floor"
    f" {entry['floor_seconds']:.2f} s and {entry['step_floor_seconds']:.3f} s"
    f" a step   same {entry['same']}/{entry['items']}"
    + ("" if apart is None else f", at most {apart:.1e} nats apart")
  )
