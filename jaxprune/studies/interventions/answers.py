"""Which right answers does a model read, to be scored on their tokens?"""

import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints
from jaxprune.calibration import batching, encode, load_tokenizer
from jaxprune.calibration import prompts as prompts_lib
from jaxprune.pocket import documents, shipped, tasks, tokenizer, world
from jaxprune.probes.decoder.interventions import Text
from jaxprune.studies import inputs
from jaxprune.studies.tasks import scores

# Ids of each prompt and of its right answer.
Answers = list[tuple[tuple[int, ...], tuple[int, ...]]]


def read_answers(
  source: checkpoints.Source, name: str, *, limit: int, most: int
) -> Answers | None:
  """Ids of prompts and right answers, evenly from all that there are.

  Args:
    source: the dense model.
    name: `pocket`, whose answers end with the end of the text; a file, whose
      answers are cut to `most` tokens; or `none`.
    limit: how many.
    most: tokens of an answer from a file.

  Raises:
    ValueError: another model's answers, no answers, or too long ones.
  """
  if name == "none":
    return None
  pairs = (
    _pocket_answers(source)
    if name == "pocket"
    else _file_answers(source, name, most)
  )
  pick = np.linspace(0, len(pairs) - 1, min(limit, len(pairs))).round()
  pairs = [pairs[int(index)] for index in pick]
  longest = max(len(head) + len(tail) for head, tail in pairs)
  if longest > source.config.max_positions:
    raise ValueError(
      f"--answers={name}: prompt and answer of {longest} tokens exceed the"
      f" context, {source.config.max_positions}: shorten them"
    )
  return pairs


def _pocket_answers(source) -> Answers:
  if not inputs.is_pocket(source):
    raise ValueError(
      f"--answers=pocket: {source.folder} does not speak the pocket model's"
      " language; give a file, or none"
    )
  reader = tokenizer.load_tokenizer(shipped.FOLDER)
  items = tasks.make_tasks(
    documents.make_index(world.make_world(shipped.WORLD_SEED)), "test"
  ).generate
  pairs = []
  for item in items:
    prompt, answer = (
      tokenizer.encode(reader, text) for text in (item.prompt, item.answer)
    )
    pairs.append(((tokenizer.BOS, *prompt), (*answer, tokenizer.EOS)))
  return pairs


def _file_answers(source, name, most) -> Answers:
  texts, answers = scores.read_pairs(name, None)
  if answers is None:
    raise ValueError(f"--answers={name}: holds no answers; use none")
  reader, bos = load_tokenizer(source.folder), source.config.bos_id
  pairs = []
  for text, answer in zip(texts, answers):
    head = encode(reader, text, bos_id=bos)
    tail = encode(reader, f"{text} {answer}", bos_id=bos)[len(head) :]
    pairs.append((tuple(head), tuple(tail[:most])))
  return pairs


def answer_texts(answers: Answers, pad: int, batch: int) -> list[Text]:
  """Prompts with their answers, the ends of the answers aligned.

  Args:
    answers: from `read_answers`.
    pad: id of the padding.
    batch: B, texts read together.

  Returns:
    Texts of B rows each; rows that fill the last one count for nothing.
  """
  widest = max(len(tail) for _, tail in answers)
  tokens_XT, valid_XT = prompts_lib.left_pad(
    tuple(head + tail for head, tail in answers), pad
  )
  lengths_X = np.array([len(tail) for _, tail in answers])
  alive_XR = np.arange(widest)[None] >= widest - lengths_X[:, None]
  size = min(batch, len(answers))
  return [
    # The last token is a prediction and is never read.
    Text(
      tokens=jnp.asarray(tokens_XT[pick, :-1]),
      valid=jnp.asarray(valid_XT[pick, :-1]),
      target=jnp.asarray(tokens_XT[pick, -widest:]),
      alive=jnp.asarray(alive_XR[pick] & (np.arange(size) < count)[:, None]),
    )
    for pick, count in batching.batches(len(answers), size)
  ]
