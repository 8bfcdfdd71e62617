"""What is there to know: a small invented world, made from a seed.

People, towns and things carry attributes; some attributes name another
entity (a friend, a home town, an owner), so facts can be chained. Every fact
can be stated in five ways and asked in five ways. Of each five, one is held
out for the split 'validation' and one for the split 'test', chosen per fact
by a hash: a held-out question is answerable, because its fact is told in
other words and its words are used for other facts.

The names are ordinary English ones or invented; nothing here is true.
"""

import dataclasses
import hashlib

import numpy as np

SPLITS = ("train", "validation", "test")

PEOPLE = (
  "Ada Ben Cleo Dan Eva Finn Gus Hana Ivo Jade Kai Lea Max Nora Omar Pia "
  "Quin Rosa Sam Tess Uma Vera Will Xena Yara Zoe Amir Bela Cora Dora Emil "
  "Fay Gina Hugo Ines Jon Kira Luis Mila Nils Otto Paul Rita Sven Tara Udo "
  "Viola Wanda"
).split()
TOWNS = (
  "Velm Tarsk Orden Brill Quell Lunt Marrow Sedge Pello Grint Hask Dunmere"
).split()
THINGS = (
  "lantern basket drum kettle mirror ladder wagon barrel carpet hammer "
  "saddle trunk bell clock vase rope"
).split()

# Values are words that take the article "a", never "an".
VALUES = {
  "job": "baker doctor farmer painter sailor teacher tailor miner judge "
  "nurse porter weaver".split(),
  "pet": "cat dog rabbit parrot pony goat turtle hamster lizard goose "
  "ferret donkey".split(),
  "food": "soup rice bread cheese pasta salad fish stew cake beans "
  "porridge curry".split(),
  "instrument": "flute piano violin trumpet guitar harp cello banjo tuba "
  "fiddle whistle lute".split(),
  "river": "Sarn Ulla Wend Tove Krall Mino Besk Rhune Lisk Dorra Fenn "
  "Yss".split(),
  "product": "honey wool glass pepper paper silk salt butter ink pottery "
  "candles cider".split(),
  "landmark": "tower bridge temple castle fountain mill gate statue "
  "lighthouse garden palace windmill".split(),
  "material": "wood iron brass copper stone tin leather clay".split(),
  "colour": "red blue green yellow black white brown grey".split(),
}

# attribute -> (noun, five statements, five questions); the first statement
# is never held out, because the written-out facts of an entity use it.
PHRASES = {
  "home": (
    "home town",
    (
      "{n} lives in {v}.",
      "The home town of {n} is {v}.",
      "{n} has a house in {v}.",
      "In {v} you can visit {n}.",
      "Every evening {n} returns to {v}.",
    ),
    (
      "Where does {n} live?",
      "What is the home town of {n}?",
      "Where does {n} have a house?",
      "Where can you visit {n}?",
      "Which town is home to {n}?",
    ),
  ),
  "job": (
    "job",
    (
      "{n} works as a {v}.",
      "The job of {n} is {v}.",
      "{n} earns money as a {v}.",
      "People know {n} as a {v}.",
      "By trade {n} is a {v}.",
    ),
    (
      "What does {n} work as?",
      "What is the job of {n}?",
      "How does {n} earn money?",
      "As what do people know {n}?",
      "What is {n} by trade?",
    ),
  ),
  "pet": (
    "pet",
    (
      "{n} keeps a {v}.",
      "The pet of {n} is a {v}.",
      "{n} looks after a {v}.",
      "A {v} belongs to {n}.",
      "At home {n} feeds a {v}.",
    ),
    (
      "What does {n} keep?",
      "What is the pet of {n}?",
      "What does {n} look after?",
      "Which animal belongs to {n}?",
      "Which animal does {n} feed?",
    ),
  ),
  "food": (
    "favourite food",
    (
      "{n} likes to eat {v}.",
      "The favourite food of {n} is {v}.",
      "{n} cooks {v} every week.",
      "For lunch {n} wants {v}.",
      "On holidays {n} orders {v}.",
    ),
    (
      "What does {n} like to eat?",
      "What is the favourite food of {n}?",
      "What does {n} cook?",
      "What does {n} want for lunch?",
      "Which dish does {n} order?",
    ),
  ),
  "instrument": (
    "instrument",
    (
      "{n} plays the {v}.",
      "The instrument of {n} is the {v}.",
      "{n} makes music with the {v}.",
      "In the band {n} has the {v}.",
      "For years {n} has practised the {v}.",
    ),
    (
      "What does {n} play?",
      "What is the instrument of {n}?",
      "With what does {n} make music?",
      "What does {n} have in the band?",
      "What has {n} practised for years?",
    ),
  ),
  "friend": (
    "best friend",
    (
      "{n} is best friends with {v}.",
      "The best friend of {n} is {v}.",
      "{n} trusts {v} the most.",
      "On Sundays {n} walks with {v}.",
      "At school {n} always sat beside {v}.",
    ),
    (
      "Who is {n} best friends with?",
      "Who is the best friend of {n}?",
      "Who does {n} trust the most?",
      "Who walks with {n} on Sundays?",
      "Who did {n} sit beside at school?",
    ),
  ),
  "river": (
    "river",
    (
      "{n} lies on the {v}.",
      "The river of {n} is the {v}.",
      "{n} was built beside the {v}.",
      "Through {n} flows the {v}.",
      "Boats reach {n} on the {v}.",
    ),
    (
      "On which river does {n} lie?",
      "What is the river of {n}?",
      "Beside which river was {n} built?",
      "What flows through {n}?",
      "On which water do boats reach {n}?",
    ),
  ),
  "product": (
    "product",
    (
      "{n} is famous for {v}.",
      "The product of {n} is {v}.",
      "{n} sells {v} to everyone.",
      "From {n} comes the best {v}.",
      "Merchants travel to {n} for {v}.",
    ),
    (
      "What is {n} famous for?",
      "What is the product of {n}?",
      "What does {n} sell?",
      "What comes from {n}?",
      "Why do merchants travel to {n}?",
    ),
  ),
  "landmark": (
    "landmark",
    (
      "{n} is proud of its {v}.",
      "The landmark of {n} is the {v}.",
      "{n} shows every guest the {v}.",
      "In the middle of {n} is a {v}.",
      "Pictures of {n} show the {v}.",
    ),
    (
      "What is {n} proud of?",
      "What is the landmark of {n}?",
      "What does {n} show every guest?",
      "What is in the middle of {n}?",
      "What do pictures of {n} show?",
    ),
  ),
  "material": (
    "material",
    (
      "{n} is made of {v}.",
      "The material of {n} is {v}.",
      "{n} was cut out of {v}.",
      "Someone built {n} from {v}.",
      "You can tell that {n} is pure {v}.",
    ),
    (
      "What is {n} made of?",
      "What is the material of {n}?",
      "What was {n} cut out of?",
      "From what did someone build {n}?",
      "You can tell that {n} is pure what?",
    ),
  ),
  "colour": (
    "colour",
    (
      "{n} is painted {v}.",
      "The colour of {n} is {v}.",
      "{n} looks {v} in the sun.",
      "Someone dyed {n} {v}.",
      "From far away {n} seems {v}.",
    ),
    (
      "How is {n} painted?",
      "What is the colour of {n}?",
      "How does {n} look in the sun?",
      "Which colour did someone dye {n}?",
      "How does {n} seem from far away?",
    ),
  ),
  "owner": (
    "owner",
    (
      "{n} is owned by {v}.",
      "The owner of {n} is {v}.",
      "{n} was bought by {v}.",
      "Nobody may use {n} except {v}.",
      "Last year {n} went to {v}.",
    ),
    (
      "Who is {n} owned by?",
      "Who is the owner of {n}?",
      "Who was {n} bought by?",
      "Who may use {n}?",
      "To whom did {n} go last year?",
    ),
  ),
}

ATTRIBUTES = {
  "person": ("home", "job", "pet", "food", "instrument", "friend"),
  "town": ("river", "product", "landmark"),
  "thing": ("material", "colour", "owner"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fact:
  """One entity has one value of one attribute.

  Attributes:
    entity: name as it stands inside a sentence ('Ada', 'the lantern').
    kind: 'person', 'town' or 'thing'.
    attribute: key of `PHRASES`.
    value: the word that answers a question about it.
  """

  entity: str
  kind: str
  attribute: str
  value: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
  """All facts; `facts` is ordered by kind, entity, attribute."""

  seed: int
  facts: tuple[Fact, ...]


def sentence(template: str, name: str, value: str = "") -> str:
  """Fill a phrase and give it a capital letter.

  Args:
    template: with places {n} for the name and {v} for the value.
    name: of an entity.
    value: of an attribute.
  """
  text = template.format(n=name, v=value)
  return text[0].upper() + text[1:]


def digest(*words: object) -> int:
  """A stable 64-bit number from words (sha256, the same everywhere)."""
  text = "\x1f".join(map(str, words)).encode()
  return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def make_world(seed: int) -> World:
  """Draw every attribute of every entity."""
  rng = np.random.default_rng([seed, 1])
  facts = []

  def draw(values, count):
    """`count` values, each used about equally often."""
    repeats = -(-count // len(values))
    pool = np.concatenate([rng.permutation(values) for _ in range(repeats)])
    return [str(value) for value in pool[:count]]

  def add(kind, names, columns):
    for index, name in enumerate(names):
      for attribute in ATTRIBUTES[kind]:
        facts.append(
          Fact(
            entity=name,
            kind=kind,
            attribute=attribute,
            value=columns[attribute][index],
          )
        )

  ring = rng.permutation(len(PEOPLE))  # a single cycle: nobody befriends self
  friend = [""] * len(PEOPLE)
  for here, there in zip(ring, np.roll(ring, 1), strict=True):
    friend[here] = PEOPLE[there]
  columns = {
    name: draw(VALUES[name], len(PEOPLE))
    for name in ("job", "pet", "food", "instrument")
  }
  add(
    "person",
    PEOPLE,
    {**columns, "home": draw(TOWNS, len(PEOPLE)), "friend": friend},
  )
  add(
    "town",
    TOWNS,
    {name: draw(VALUES[name], len(TOWNS)) for name in ATTRIBUTES["town"]},
  )
  add(
    "thing",
    [f"the {name}" for name in THINGS],
    {
      "material": draw(VALUES["material"], len(THINGS)),
      "colour": draw(VALUES["colour"], len(THINGS)),
      "owner": draw(PEOPLE, len(THINGS)),
    },
  )
  return World(seed=seed, facts=tuple(facts))


def values_of(attribute: str) -> list[str]:
  """Every value that an attribute can have."""
  if attribute == "home":
    return TOWNS
  if attribute in ("friend", "owner"):
    return PEOPLE
  return VALUES[attribute]


def phrasings(world: World, fact: Fact, form: str, split: str) -> list[str]:
  """The sentences about a fact that belong to one split.

  Args:
    world: the world of the fact; its seed decides what is held out.
    fact: what is stated or asked.
    form: 'statement' or 'question'.
    split: 'train' (three sentences), 'validation' or 'test' (one each).

  Returns:
    Whole sentences; the three splits are disjoint.
  """
  if form not in ("statement", "question") or split not in SPLITS:
    raise ValueError(
      f"no phrasings of form {form!r} and split {split!r}: use statement "
      f"or question, and one of {SPLITS}"
    )
  templates = PHRASES[fact.attribute][1 if form == "statement" else 2]
  first = 1 if form == "statement" else 0
  order = sorted(
    range(first, len(templates)),
    key=lambda index: digest(
      world.seed, fact.entity, fact.attribute, form, index
    ),
  )
  held = {"validation": order[:1], "test": order[1:2]}
  held["train"] = [i for i in range(len(templates)) if i not in order[:2]]
  return [sentence(templates[i], fact.entity, fact.value) for i in held[split]]


def split_of(world: World, *words: object) -> str:
  """The split of a combination: 80 % train, 5 % validation, 15 % test."""
  bucket = digest(world.seed, "split", *words) % 20
  return "test" if bucket < 3 else "validation" if bucket == 3 else "train"
