"""Which items test the model, and how is an answer scored.

The same world is asked three ways: choose (which of four options is most
likely), retrieve (which passage is nearest to a question), generate (is the
written-out answer exactly right). Items are a function of the world, the
split and nothing else; scores are functions of arrays or strings.
"""

import dataclasses
import hashlib
import json

import numpy as np
import numpy.typing as npt

from jaxprune.evaluation import retrieval
from jaxprune.pocket import documents
from jaxprune.pocket import world as world_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choose:
  """One question with four options; `label` is the index of the right one."""

  kind: str
  prompt: str
  options: tuple[str, ...]
  label: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieve:
  """Questions and passages; `relevant[i]` is the passage of question i."""

  queries: tuple[str, ...]
  passages: tuple[str, ...]
  relevant: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate:
  """A prompt and the only text that counts as right."""

  kind: str
  prompt: str
  answer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks:
  """All items of one split.

  Attributes:
    split: its name.
    choose: questions about facts of the world.
    stories: choose items whose answer is in the prompt. They are scored apart
      and not part of `choose`: the default run does not learn them.
    retrieve: questions and passages about facts.
    generate: sums, chains of facts and all facts of a person, written out.
  """

  split: str
  choose: tuple[Choose, ...]
  stories: tuple[Choose, ...]
  retrieve: Retrieve
  generate: tuple[Generate, ...]

  def first(self, limit: int | None) -> "Tasks":
    """The first so many items of each task, and all passages.

    Args:
      limit: how many; None is all.
    """
    retrieve = dataclasses.replace(
      self.retrieve,
      queries=self.retrieve.queries[:limit],
      relevant=self.retrieve.relevant[:limit],
    )
    return dataclasses.replace(
      self,
      choose=self.choose[:limit],
      stories=self.stories[:limit],
      retrieve=retrieve,
      generate=self.generate[:limit],
    )


def make_tasks(
  index: documents.Index,
  split: str,
  *,
  num_stories: int = 120,
  num_problems: int = 120,
) -> Tasks:
  """Build the items of a split.

  Args:
    index: the world.
    split: 'train', 'validation' or 'test'.
    num_stories: story items.
    num_problems: generate items about sums.

  Returns:
    Items whose order and content depend only on the arguments.
  """
  world = index.world
  if split not in world_lib.SPLITS:
    raise ValueError(f"unknown split {split!r}: use one of {world_lib.SPLITS}")
  rng = np.random.default_rng([world.seed, 2, world_lib.SPLITS.index(split)])
  choose, queries, passages, relevant = [], [], [], []
  for fact in world.facts:
    asked = world_lib.phrasings(world, fact, "question", split)[0]
    statement = world_lib.phrasings(world, fact, "statement", split)[0]
    prompt, answer = documents.question(asked, fact.value)
    wrong = [
      f" {value}."
      for value in world_lib.values_of(fact.attribute)
      if value not in (fact.value, fact.entity)
    ]
    choose.append(_options(fact.attribute, prompt, answer, wrong, rng))
    filler = documents.FILLERS[rng.integers(len(documents.FILLERS))]
    lines = [statement, filler] if rng.random() < 0.5 else [filler, statement]
    # otherwise the chains of facts may have told it
    if statement != documents.chain_step(fact):
      queries.append(f"Question: {asked}")
      relevant.append(len(passages))
    passages.append(documents.passage(lines)[1])
  stories = [_story(world, split, rng) for _ in range(num_stories)]
  return Tasks(
    split=split,
    choose=tuple(choose),
    stories=tuple(stories),
    retrieve=Retrieve(
      queries=tuple(queries), passages=tuple(passages), relevant=tuple(relevant)
    ),
    generate=_generate(index, split, num_problems, rng),
  )


def _story(world, split, rng) -> Choose:
  """A story, its other two words and one from outside of it."""
  events = _held(world, "story", split, documents.draw_story, rng)
  asked, slot = int(rng.integers(3)), int(rng.integers(3))
  prompt, answer = documents.story(events, asked, slot)
  inside = [events[i][slot] for i in range(3) if i != asked]
  pool = (world_lib.PEOPLE, world_lib.THINGS, documents.PLACES)[slot]
  outside = [w for w in pool if w not in {e[slot] for e in events}]
  wrong = [f" {w}." for w in (*inside, str(rng.choice(outside)))]
  return _options("story", prompt, answer, wrong, rng)


def _options(kind, prompt, answer, wrong, rng) -> Choose:
  """Mix the answer with three of the wrong options."""
  options = [answer, *(str(w) for w in rng.choice(wrong, 3, replace=False))]
  order = rng.permutation(4)
  return Choose(
    kind=kind,
    prompt=prompt,
    options=tuple(options[i] for i in order),
    label=int(np.argmin(order)),
  )


def _held(world, name, split, draw, rng):
  """Draw until the combination belongs to the split."""
  while True:
    drawn = draw(rng)
    if world_lib.split_of(world, name, *drawn) == split:
      return drawn


def _generate(index, split, num_problems, rng) -> tuple[Generate, ...]:
  """Sums, chains of facts, and all facts of a person."""
  items = []
  for _ in range(num_problems):
    numbers = _held(index.world, "problem", split, documents.draw_problem, rng)
    items.append(("problem", *documents.problem(numbers, rng)))
  for entity, path in index.chains[split]:
    template = documents.ASK_CHAIN[rng.integers(len(documents.ASK_CHAIN))]
    items.append(("chain", *documents.chain(index, entity, path, template)))
  for entity, template in index.describe[split]:
    if entity not in world_lib.PEOPLE:
      continue  # towns and things have too few facts to be worth writing out
    items.append(("card", *documents.card(index, entity, template)))
  return tuple(
    Generate(kind=kind, prompt=prompt, answer=answer)
    for kind, prompt, answer in items
  )


def tasks_hash(tasks: Tasks) -> str:
  """sha256 of all items as sorted JSON."""
  text = json.dumps(dataclasses.asdict(tasks), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def choose_correct(
  log_likelihoods: npt.ArrayLike, labels: npt.ArrayLike
) -> np.ndarray:
  """Which questions are answered right.

  Args:
    log_likelihoods: [n, options] nats, summed over the tokens of an option.
    labels: int [n].

  Returns:
    bool [n]; a tie counts as wrong unless the label is the single largest.
  """
  scores = np.asarray(log_likelihoods, np.float64)
  right = np.take_along_axis(scores, np.asarray(labels)[:, None], axis=1)
  return (scores >= right).sum(axis=1) == 1


def ndcg(
  similarities: npt.ArrayLike, relevant: npt.ArrayLike, *, cutoff: int = 10
) -> np.ndarray:
  """nDCG of each query when exactly one passage is relevant.

  Args:
    similarities: [queries, passages], larger is nearer.
    relevant: int [queries], the index of the relevant passage.
    cutoff: ranks beyond it count zero.

  Returns:
    float [queries] in [0, 1]; passages that tie with the relevant one are
    ranked before it.
  """
  scores_QA = np.asarray(similarities, np.float64)
  right_Q1 = np.take_along_axis(
    scores_QA, np.asarray(relevant)[:, None], axis=1
  )
  ranks_Q = (scores_QA >= right_Q1).sum(axis=1)
  order_A = np.arange(1, scores_QA.shape[1] + 1)
  return np.array(
    [retrieval.ndcg(order_A == rank, np.ones(1), cutoff) for rank in ranks_Q]
  )
