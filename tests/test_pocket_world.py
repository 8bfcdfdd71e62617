"""The pocket world: what is told, what is held out, how it is scored."""

import dataclasses
import re

import numpy as np
import pytest

from jaxprune.pocket import batches, documents, tasks, tokenizer
from jaxprune.pocket import world as world_lib


@pytest.fixture(scope="module")
def index():
  return documents.make_index(world_lib.make_world(0))


@pytest.fixture(scope="module")
def bpe(index):
  return tokenizer.train_tokenizer(index, vocab_size=1280, num_documents=4000)


@pytest.fixture(scope="module")
def sampled(index):
  rng = np.random.default_rng(7)
  return [documents.sample_document(index, rng) for _ in range(6000)]


def test_world_is_a_function_of_its_seed(index):
  assert world_lib.make_world(0) == index.world
  assert world_lib.make_world(1).facts != index.world.facts
  for fact in index.world.facts:
    assert fact.value in world_lib.values_of(fact.attribute)
    assert fact.value != fact.entity


def test_friends_form_one_ring(index):
  here, seen = world_lib.PEOPLE[0], set()
  while here not in seen:
    seen.add(here)
    here = documents.fact_of(index, here, "friend").value
  assert seen == set(world_lib.PEOPLE)


@pytest.mark.parametrize("form", ["statement", "question"])
def test_phrasings_are_split_without_overlap(index, form):
  for fact in index.world.facts:
    parts = [
      world_lib.phrasings(index.world, fact, form, split)
      for split in world_lib.SPLITS
    ]
    assert [len(part) for part in parts] == [3, 1, 1]
    assert len({text for part in parts for text in part}) == 5
  # Which phrasing is held out differs, so each is learnt for other facts.
  held = {
    world_lib.phrasings(index.world, fact, form, "test")[0]
    .replace(fact.entity, "")
    .replace(fact.value, "")
    for fact in index.world.facts
    if fact.attribute == "job"
  }
  assert len(held) >= 3


def test_unknown_names_are_refused(index):
  with pytest.raises(ValueError, match="'testing'"):
    world_lib.phrasings(
      index.world, index.world.facts[0], "question", "testing"
    )
  with pytest.raises(ValueError, match="'all'"):
    tasks.make_tasks(index, "all")
  with pytest.raises(ValueError, match="'river'"):
    documents.fact_of(index, "Ada", "river")


def test_training_never_draws_what_is_held_out(index, sampled):
  prompts = {prompt for prompt, _ in sampled}
  texts = [prompt + completion for prompt, completion in sampled]
  for split in ("validation", "test"):
    items = tasks.make_tasks(index, split)
    for item in items.choose + items.stories + items.generate:
      if item.kind == "story":
        assert not any(t.startswith(item.prompt.split("\n")[0]) for t in texts)
      else:
        assert item.prompt not in prompts
    for fact in index.world.facts:
      told = world_lib.phrasings(index.world, fact, "statement", split)[0]
      if told != documents.chain_step(fact):  # chains tell it in these words
        assert not any(told in text for text in texts)
      asked = world_lib.phrasings(index.world, fact, "question", split)[0]
      assert f"Question: {asked}\nAnswer:" not in prompts


def test_training_draws_every_kind(sampled):
  cues = {prompt.split(":")[0] for prompt, _ in sampled}
  assert cues == {"", "Question", "Task", "Problem", "Story"}


def test_pairs_never_show_what_is_held_out(index, bpe):
  held = set()
  for split in ("validation", "test"):
    retrieve = tasks.make_tasks(index, split).retrieve
    held |= set(retrieve.queries) | set(retrieve.passages)
  for step in range(20):
    batch = batches.make_batch(
      index,
      bpe,
      0,
      step,
      batches.Layout(
        rows=2, length=96, pairs=24, pair_length=32, prompt_weight=0.2
      ),
    )
    assert not held & set(bpe.decode_batch(batch.pair_tokens.tolist()))


def test_every_equation_is_right(sampled):
  pattern = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)\.")
  found = [
    match
    for prompt, completion in sampled
    for match in pattern.findall(completion)
  ]
  assert len(found) > 1000
  for left, sign, right, result in found:
    expected = int(left) + (1 if sign == "+" else -1) * int(right)
    assert expected == int(result)
    assert 1 <= expected <= 99


def test_problem_ends_with_its_sum():
  rng = np.random.default_rng(0)
  prompt, steps = documents.problem((34, -5, 8), rng)
  assert steps == (
    " Start with 34. Take 5: 34 - 5 = 29. Add 8: 29 + 8 = 37. The answer is 37."
  )
  assert "34" in prompt and prompt.endswith("Steps:")


def test_chain_follows_the_facts(index):
  _, steps = documents.chain(index, "Ada", ("friend", "home"), "Name {path}.")
  friend = documents.fact_of(index, "Ada", "friend").value
  home = documents.fact_of(index, friend, "home").value
  assert steps == (
    " We look for the home town of the best friend of Ada. The best friend"
    f" of Ada is {friend}. The home town of {friend} is {home}. The answer"
    f" is {home}."
  )


@pytest.mark.parametrize(
  "slot, ask, answer",
  [
    (0, "Who took the drum?", "Ben"),
    (1, "What did Ben take?", "drum"),
    (2, "Where did Ben go?", "attic"),
  ],
)
def test_story(slot, ask, answer):
  events = (
    ("Ada", "bell", "field"),
    ("Ben", "drum", "attic"),
    ("Cleo", "rope", "cellar"),
  )
  assert documents.story(events, 1, slot) == (
    "Story: Ada took the bell to the field. Ben took the drum to the attic."
    f" Cleo took the rope to the cellar.\nQuestion: {ask}\nAnswer:",
    f" {answer}.",
  )


@pytest.mark.parametrize("split", world_lib.SPLITS)
def test_items(index, bpe, split):
  items = tasks.make_tasks(index, split)
  assert items == tasks.make_tasks(index, split)
  for item in items.choose + items.stories:
    assert len(set(item.options)) == 4
  # The position of the right option tells nothing.
  counts = np.bincount([item.label for item in items.choose], minlength=4)
  assert counts.min() > 0.15 * len(items.choose)
  for fact, item in zip(index.world.facts, items.choose):
    assert item.options[item.label] == f" {fact.value}."
  assert len(items.retrieve.queries) > 200
  for place, told in zip(items.retrieve.relevant, items.retrieve.queries):
    fact = index.world.facts[place]
    if split != "train":
      assert documents.chain_step(fact) not in items.retrieve.passages[place]
    assert fact.value in items.retrieve.passages[place]
    assert fact.entity.lower() in told.lower()
  lengths = [
    len(tokenizer.encode(bpe, item.answer)) + 1  # EOS is written too
    for item in items.generate
  ]
  assert 30 <= min(lengths) and max(lengths) <= 150


def test_splits_share_no_item(index):
  seen = [
    {(item.kind, item.prompt) for item in (*t.choose, *t.stories, *t.generate)}
    for t in (tasks.make_tasks(index, s) for s in world_lib.SPLITS)
  ]
  assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_hash_sees_every_item(index):
  whole = tasks.make_tasks(index, "test")
  fewer = tasks.make_tasks(index, "test", num_problems=119)
  assert tasks.tasks_hash(whole) != tasks.tasks_hash(fewer)
  assert tasks.tasks_hash(whole) == tasks.tasks_hash(
    tasks.make_tasks(index, "test")
  )


def test_tokenizer(index, bpe):
  again = tokenizer.train_tokenizer(index, vocab_size=1280, num_documents=4000)
  assert again.to_str() == bpe.to_str()
  for text in ("Ada has 47 plums.\n", "z\u00fc\u00df \u4e16 \t 100%"):
    ids = tokenizer.encode(bpe, text)
    assert bpe.decode(ids) == text
    assert bpe.encode(text).ids == [tokenizer.BOS, *ids]
  digits = bpe.encode("47 + 205", add_special_tokens=False).tokens
  assert digits == ["4", "7", "\u0120+", "\u01202", "0", "5"]
  assert [bpe.token_to_id(t) for t in tokenizer.SPECIAL] == [0, 1, 2]
  with pytest.raises(ValueError, match="vocab_size=258"):
    tokenizer.train_tokenizer(index, vocab_size=258)


def test_batch(index, bpe):
  layout = batches.Layout(
    rows=6, length=96, pairs=6, pair_length=24, prompt_weight=0.2
  )
  batch = batches.make_batch(index, bpe, 3, 11, layout)
  again = batches.make_batch(index, bpe, 3, 11, layout)
  for name in ("tokens", "weights", "pair_tokens", "pair_valid"):
    np.testing.assert_array_equal(getattr(batch, name), getattr(again, name))
  other = batches.make_batch(index, bpe, 3, 12, layout)
  assert (batch.tokens != other.tokens).any()
  assert set(np.unique(batch.weights)) == {0.0, np.float32(0.2), 1.0}
  free = (batch.tokens == tokenizer.PAD) | (batch.tokens == tokenizer.BOS)
  np.testing.assert_array_equal(batch.weights == 0, free)
  assert (batch.tokens != tokenizer.PAD).mean() > 0.8
  # Each document ends with EOS before the next begins with BOS.
  for row in batch.tokens:
    marks = row[(row == tokenizer.BOS) | (row == tokenizer.EOS)]
    assert marks.tolist() == [tokenizer.BOS, tokenizer.EOS] * (len(marks) // 2)
  # Question i and passage i name the same entity, three pairs per entity.
  texts = bpe.decode_batch(batch.pair_tokens.tolist())
  for asked, told in zip(texts[:6], texts[6:]):
    assert any(
      name.lower() in asked.lower() and name.lower() in told.lower()
      for name in index.facts_of
    )
  with pytest.raises(ValueError, match="raise the row length"):
    short = dataclasses.replace(layout, length=20)
    batches.make_batch(index, bpe, 3, 11, short)


def test_choose_counts_ties_as_wrong():
  scores = [
    [-1.0, -2.0, -3.0, -4.0],
    [-1.0, -1.0, -3.0, -4.0],
    [-2.0, -1.0, -3.0, -4.0],
  ]
  assert tasks.choose_correct(scores, [0, 0, 0]).tolist() == [
    True,
    False,
    False,
  ]


def test_ndcg_by_hand():
  scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 3.0, 1.0]])
  expected = [1.0, 1 / np.log2(3), 1 / np.log2(3)]
  np.testing.assert_allclose(tasks.ndcg(scores, [0, 1, 0]), expected)
  # A passage on rank 11 counts nothing, on rank 10 it does.
  row = np.arange(20.0)[None]
  np.testing.assert_allclose(tasks.ndcg(row, [9]), [0.0])
  np.testing.assert_allclose(tasks.ndcg(row, [10]), [1 / np.log2(11)])
