"""What does the model read: documents about the world, and sums.

A document is a pair (prompt, completion). The prompt ends with a cue that
names the kind of answer ('Answer:', 'Text:', 'Steps:'); the completion is
what a reader of the prompt can work out. A passage has an empty prompt.
Builders are deterministic in their arguments; `sample_document` draws the
training mixture.
"""

import dataclasses

import numpy as np

from jaxprune.pocket import world as world_lib

Document = tuple[str, str]

PLACES = (
  "market harbour forest school library bakery station field cellar attic "
  "meadow stable"
).split()
GOODS = (
  "apples coins shells marbles stamps pencils buttons cards plums nuts "
  "beads ribbons"
).split()
FILLERS = (
  "It was a quiet morning.",
  "The sky was grey.",
  "Rain fell all day.",
  "Everyone had time to talk.",
  "The road was long.",
  "A bird sang.",
  "The wind was cold.",
  "Nobody was in a hurry.",
  "It was late.",
  "The sun was warm.",
)
DESCRIBE = (
  "Describe {n}.",
  "Tell me about {n}.",
  "Give the facts about {n}.",
  "What do you know about {n}?",
  "Write a short text about {n}.",
)
ASK_CHAIN = ("What is {path}?", "Name {path}.", "Please find {path}.")
STARTS = (
  "{n} has {a} {g}.",
  "At first {n} owns {a} {g}.",
  "{n} keeps {a} {g} in a box.",
  "There are {a} {g} in the bag of {n}.",
)
GAINS = (
  "{n} buys {b} more.",
  "{n} finds {b} more.",
  "A friend gives {n} {b} more.",
  "Then {n} gets {b} more.",
)
LOSSES = (
  "{n} gives away {b}.",
  "{n} loses {b}.",
  "A friend takes {b}.",
  "Then {n} sells {b}.",
)
ASK_SUM = (
  "How many {g} does {n} have now?",
  "How many {g} are left in the end?",
  "Count the {g} of {n} now.",
)
PATHS = {
  "person": (
    ("friend", "home"),
    ("friend", "job"),
    ("friend", "pet"),
    ("friend", "food"),
    ("friend", "instrument"),
    ("home", "river"),
    ("home", "product"),
    ("home", "landmark"),
    ("friend", "home", "river"),
    ("friend", "home", "product"),
  ),
  "thing": (
    ("owner", "home"),
    ("owner", "job"),
    ("owner", "pet"),
    ("owner", "food"),
    ("owner", "instrument"),
  ),
}
MIXTURE = {
  "passage": 0.15,
  "question": 0.22,
  "card": 0.12,
  "chain": 0.15,
  "problem": 0.18,
  "story": 0.1,
  "equations": 0.08,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
  """The world arranged for building documents.

  Attributes:
    world: the facts.
    facts_of: entity -> its facts in order.
    chains: split -> (entity, path) pairs.
    describe: split -> (entity, template) pairs.
  """

  world: world_lib.World
  facts_of: dict[str, tuple[world_lib.Fact, ...]]
  chains: dict[str, tuple[tuple[str, tuple[str, ...]], ...]]
  describe: dict[str, tuple[tuple[str, str], ...]]


def make_index(world: world_lib.World) -> Index:
  """Group the facts and split what is combined from them."""
  facts_of: dict[str, list] = {}
  for fact in world.facts:
    facts_of.setdefault(fact.entity, []).append(fact)
  chains = {split: [] for split in world_lib.SPLITS}
  describe = {split: [] for split in world_lib.SPLITS}
  for entity, facts in facts_of.items():
    for path in PATHS.get(facts[0].kind, ()):
      chains[world_lib.split_of(world, entity, *path)].append((entity, path))
    order = sorted(
      DESCRIBE,
      key=lambda text, entity=entity: world_lib.digest(
        world.seed, "describe", entity, text
      ),
    )
    describe["validation"].append((entity, order[0]))
    describe["test"].append((entity, order[1]))
    describe["train"].extend((entity, text) for text in order[2:])

  def freeze(groups):
    return {k: tuple(v) for k, v in groups.items()}

  return Index(
    world=world,
    facts_of=freeze(facts_of),
    chains=freeze(chains),
    describe=freeze(describe),
  )


def fact_of(index: Index, entity: str, attribute: str) -> world_lib.Fact:
  """The fact of one entity that has this attribute.

  Args:
    index: the world.
    entity: its name.
    attribute: its name.

  Raises:
    ValueError: the entity has no such attribute.
  """
  for fact in index.facts_of[entity]:
    if fact.attribute == attribute:
      return fact
  raise ValueError(f"{entity!r} has no attribute {attribute!r}")


def question(text: str, value: str) -> Document:
  """A question and the one word that answers it.

  Args:
    text: the question.
    value: the word.
  """
  return f"Question: {text}\nAnswer:", f" {value}."


def passage(sentences: list[str]) -> Document:
  """Sentences alone."""
  return "", " ".join(sentences)


def card(index: Index, entity: str, template: str) -> Document:
  """All facts of an entity, in a fixed order and fixed words.

  Args:
    index: the world.
    entity: its name.
    template: of the task, with a place {n} for the name.
  """
  text = " ".join(
    world_lib.sentence(
      world_lib.PHRASES[fact.attribute][1][0], entity, fact.value
    )
    for fact in index.facts_of[entity]
  )
  return f"Task: {template.format(n=entity)}\nText:", f" {text}"


def chain(
  index: Index, entity: str, path: tuple[str, ...], template: str
) -> Document:
  """Follow relations from fact to fact, every step written out.

  Args:
    index: the world.
    entity: where the chain begins.
    path: attributes, each of what the one before led to.
    template: of the task, with a place {path} for the words.
  """
  words = entity
  for attribute in path:
    words = f"the {world_lib.PHRASES[attribute][0]} of {words}"
  steps, here = [f"We look for {words}."], entity
  for attribute in path:
    fact = fact_of(index, here, attribute)
    steps.append(chain_step(fact))
    here = fact.value
  steps.append(f"The answer is {here}.")
  return (f"Task: {template.format(path=words)}\nSteps:", " " + " ".join(steps))


def chain_step(fact: world_lib.Fact) -> str:
  """A fact in the words that chains use, which may be held out elsewhere."""
  noun = world_lib.PHRASES[fact.attribute][0]
  return f"The {noun} of {fact.entity} is {fact.value}."


def draw_problem(rng: np.random.Generator) -> tuple[int, ...]:
  """A start (10 to 90) and two or three signed changes (1 to 9)."""
  start = total = int(rng.integers(10, 91))
  changes = []
  for _ in range(int(rng.integers(2, 4))):
    change = int(rng.integers(1, 10)) * (1 if rng.random() < 0.5 else -1)
    if not 1 <= total + change <= 99:
      change = -change
    changes.append(change)
    total += change
  return start, *changes


def equation(left: int, change: int) -> str:
  """One line of arithmetic, such as 34 - 5 = 29.

  Args:
    left: the first number.
    change: what is added, or taken if it is negative.
  """
  sign = "+" if change > 0 else "-"
  return f"{left} {sign} {abs(change)} = {left + change}"


def problem(numbers: tuple[int, ...], rng: np.random.Generator) -> Document:
  """A word problem about `numbers`, solved step by step.

  Args:
    numbers: a start and its changes, see `draw_problem`.
    rng: draws the words.
  """

  def pick(options):
    return str(options[rng.integers(len(options))])

  name, goods = pick(world_lib.PEOPLE), pick(GOODS)
  total, *changes = numbers
  story = [pick(STARTS).format(n=name, a=total, g=goods)]
  steps = [f"Start with {total}."]
  for change in changes:
    story.append(
      pick(GAINS if change > 0 else LOSSES).format(n=name, b=abs(change))
    )
    verb = "Add" if change > 0 else "Take"
    steps.append(f"{verb} {abs(change)}: {equation(total, change)}.")
    total += change
  story.append(pick(ASK_SUM).format(n=name, g=goods))
  steps.append(f"The answer is {total}.")
  return f"Problem: {' '.join(story)}\nSteps:", " " + " ".join(steps)


def draw_story(rng: np.random.Generator) -> tuple[tuple[str, str, str], ...]:
  """Three events (person, thing, place), all different."""
  return tuple(
    zip(
      *(
        [str(word) for word in rng.choice(words, 3, replace=False)]
        for words in (world_lib.PEOPLE, world_lib.THINGS, PLACES)
      )
    )
  )


def story(
  events: tuple[tuple[str, str, str], ...], asked: int, slot: int
) -> Document:
  """Three events and a question about one of them.

  Args:
    events: (person, thing, place) three times.
    asked: which event is asked about.
    slot: what is asked: 0 the person, 1 the thing, 2 the place.
  """
  story = " ".join(
    f"{who} took the {what} to the {where}." for who, what, where in events
  )
  who, what, where = events[asked]
  ask = (
    f"Who took the {what}?",
    f"What did {who} take?",
    f"Where did {who} go?",
  )[slot]
  return (
    f"Story: {story}\nQuestion: {ask}\nAnswer:",
    f" {(who, what, where)[slot]}.",
  )


def sample_document(index: Index, rng: np.random.Generator) -> Document:
  """Draw a training document; nothing held out is ever drawn.

  Args:
    index: the world.
    rng: of the draw.
  """
  world = index.world

  def pick(options):
    return options[rng.integers(len(options))]

  kind = str(rng.choice(list(MIXTURE), p=list(MIXTURE.values())))
  if kind == "card":
    return card(index, *pick(index.describe["train"]))
  if kind == "chain":
    return chain(index, *pick(index.chains["train"]), pick(ASK_CHAIN))
  if kind == "equations":
    lines = []
    for _ in range(4):
      left, change, *_ = draw_problem(rng)
      lines.append(equation(left, change) + ".")
    return passage(lines)
  if kind == "problem":
    numbers = draw_problem(rng)
    while world_lib.split_of(world, "problem", *numbers) != "train":
      numbers = draw_problem(rng)
    return problem(numbers, rng)
  if kind == "story":
    events = draw_story(rng)
    while world_lib.split_of(world, "story", *events) != "train":
      events = draw_story(rng)
    return story(events, int(rng.integers(3)), int(rng.integers(3)))
  fact = pick(world.facts)
  if kind == "question":
    return question(
      pick(world_lib.phrasings(world, fact, "question", "train")), fact.value
    )
  return sample_passage(index, fact, rng)


def sample_passage(
  index: Index, fact: world_lib.Fact, rng: np.random.Generator
) -> Document:
  """A fact in training words, with a sentence of no importance.

  Args:
    index: the world.
    fact: what is told.
    rng: draws the words and their order.
  """
  texts = world_lib.phrasings(index.world, fact, "statement", "train")
  lines = [texts[rng.integers(len(texts))], FILLERS[rng.integers(len(FILLERS))]]
  return passage(lines[::-1] if rng.random() < 0.5 else lines)
