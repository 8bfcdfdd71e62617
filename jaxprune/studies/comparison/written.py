"""What do both models write? The texts of a comparison, token by token.

The dense text has, at each token, how far the pruned model is from the dense
one that has read the same words, and what each of them would choose. Beside it
stands what the pruned model writes on its own, and for how many tokens that is
the same.
"""

import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune import checkpoints, statistics
from jaxprune.calibration import tokenizer as tokenizer_lib
from jaxprune.studies.comparison import breakdown
from jaxprune.studies.comparison.measure import Tables

TextOf = Callable[[Sequence[int]], str]
_SHOWN = 12  # texts in the summary
_TOKENS = 96  # of each
_PROMPT = 320  # letters of the prompt, the last ones
_CONTEXT = 8  # tokens before a piece, so that it keeps its space


def text_of(source: checkpoints.Source) -> TextOf:
  """How token ids are read; without a tokenizer, as numbers.

  Args:
    source: the checkpoint whose tokenizer is taken.
  """
  if not (pathlib.Path(source.folder) / "tokenizer.json").is_file():
    return lambda ids: "".join(f" #{index}" for index in ids)
  reader = tokenizer_lib.load_tokenizer(source.folder)
  return lambda ids: reader.decode(list(ids), skip_special_tokens=False)


def summarise(tables: Tables, read: TextOf) -> dict[str, Any]:
  """What the page shows of the texts.

  Args:
    tables: from `measure.compare`.
    read: from `text_of`.

  Returns:
    `alone`: tokens in common when the pruned model writes on its own, an
    `Estimate` over prompts, with the number of texts, of those that are the
    same to their end, and the mean length; `texts`: some of the texts, the
    worst first.
  """
  texts = [_measure(*pair) for pair in _each_text(tables)]
  same = sum(text["same"] for text in texts)
  agree = statistics.mean(
    [text["agrees"] for text in texts],
    np.array([text["prompt"] for text in texts]),
    seed=tables.settings.seed,
  )
  prompts = without_frame([read(list(ids)) for ids in tables.prompts])
  order = sorted(texts, key=lambda t: (t["agrees"] / t["steps"], -t["mean_kl"]))
  return {
    "alone": agree.to_json()
    | {
      "texts": len(texts),
      "same": same,
      "steps": float(np.mean([text["steps"] for text in texts])),
    },
    "texts": [
      _write(text, tables, read) | {"prompt_text": prompts[text["prompt"]]}
      for text in _spread(order)
    ],
  }


def without_frame(prompts: Sequence[str]) -> list[str]:
  """What is a prompt's own: without the lines that all begin and end with.

  A chat template puts the same lines around every prompt.

  Args:
    prompts: texts of all prompts. Of a long one the end is kept.
  """
  start, end = "", ""
  if len(set(prompts)) > 1:
    start = os.path.commonprefix(prompts)
    start = start[: start.rfind("\n") + 1]
    start += _marks_of([prompt[len(start) :] for prompt in prompts])
    rests = [prompt[len(start) :] for prompt in prompts]
    end = os.path.commonprefix([rest[::-1] for rest in rests])[::-1]
    mark = re.search(r"[\n<]", end)
    end = end[mark.start() :] if mark else ""
  own = [prompt[len(start) : len(prompt) - len(end)] for prompt in prompts]
  return [
    ("… " if len(text) > _PROMPT else "") + text[-_PROMPT:] for text in own
  ]


def _marks_of(prompts) -> str:
  """What marks the turn of a user at the beginning of every prompt, or ''."""
  found = re.match(r"(<[^<>]*>|\[INST\])\s?", os.path.commonprefix(prompts))
  return found[0] if found else ""


def _each_text(tables):
  """Columns of each dense text, and of what the pruned model wrote."""
  output, alone = tables.output, tables.alone
  # One numbering for both: a text is a prompt and a seed.
  joined = {
    name: np.concatenate([output[name], alone[name]])
    for name in ("prompt", "seed")
  }
  ids = breakdown.text_ids(joined)
  dense, own = np.split(ids, [len(output["prompt"])])
  for index in range(int(ids.max()) + 1):
    yield (
      {name: values[dense == index] for name, values in output.items()},
      {name: values[own == index] for name, values in alone.items()},
    )


def _measure(dense, own) -> dict[str, Any]:
  """Numbers of one text, with its columns."""
  length = min(len(dense["token"]), len(own["token"]))
  equal = dense["token"][:length] == own["token"][:length]
  agrees = length if equal.all() else int(np.argmin(equal))
  return {
    "prompt": int(dense["prompt"][0]),
    "seed": int(dense["seed"][0]),
    "agrees": agrees,
    "steps": len(dense["token"]),
    "same": bool(agrees == len(dense["token"]) == len(own["token"])),
    "mean_kl": float(np.mean(dense["kl"])),
    "changed": int(dense["flip"].sum()),
    "dense": dense,
    "own": own,
  }


def _spread(texts) -> list[Any]:
  """All, or as many as are shown, evenly from the worst to the best."""
  if len(texts) <= _SHOWN:
    return texts
  places = np.linspace(0, len(texts) - 1, _SHOWN).round().astype(int)
  return [texts[place] for place in places]


def _write(text, tables, read) -> dict[str, Any]:
  """One text as the summary holds it."""
  prompt = list(map(int, tables.prompts[text["prompt"]]))
  dense = {name: values[:_TOKENS] for name, values in text["dense"].items()}
  tokens = dense["token"].tolist()
  chosen = {
    name: [
      _piece(prompt + tokens[:step], token, read)
      for step, token in enumerate(dense[f"token_{name}"].tolist())
    ]
    for name in ("dense", "pruned")
  }
  own = text["own"]["token"][:_TOKENS].tolist()
  return {name: text[name] for name in _KEPT} | {
    "tokens": _pieces(prompt, tokens, read),
    "own_tokens": _pieces(prompt, own, read),
    "kl": _short(dense["kl"]),
    "flip": dense["flip"].astype(bool).tolist(),
    "choice_dense": chosen["dense"],
    "choice_pruned": chosen["pruned"],
    **{
      name: _short(dense[name])
      for name in ("top_p", "top_q", "p_of_pruned", "q_of_dense")
    },
  }


_KEPT = ("prompt", "seed", "agrees", "steps", "same", "mean_kl", "changed")


def _pieces(prompt, tokens, read) -> list[str]:
  """The text of each token; together they are the text.

  A letter of several tokens stands at the last of them.
  """
  pieces, done = [], 0
  before = prompt[-_CONTEXT:]
  start = len(read(before))
  whole = read(before + tokens)[start:]
  for count in range(1, len(tokens) + 1):
    so_far = read(before + tokens[:count])[start:]
    if count < len(tokens) and so_far.endswith("\ufffd"):
      so_far = whole[:done]
    pieces.append(so_far[done:])
    done = max(done, len(so_far))
  return pieces


def _piece(before: Sequence[int], token: int, read: TextOf) -> str:
  """The text of one token behind others."""
  context = list(before[-_CONTEXT:])
  return read([*context, token])[len(read(context)) :]


def _short(values: Sequence[float]) -> list[float | None]:
  """Numbers of four digits; None where one is not finite."""
  return [
    float(f"{value:.4g}") if np.isfinite(value) else None
    for value in np.asarray(values, float).tolist()
  ]
