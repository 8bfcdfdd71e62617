"""`compare`: two folders, built-in texts and items, and what it says."""

import dataclasses
import importlib.util
import json
import re
import shutil

import hf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts
import tokenizers

from jaxprune import checkpoints, report
from jaxprune.evaluation import builtin, generation
from jaxprune.probes import scan
from jaxprune.studies.comparison import (
  asked,
  items,
  measure,
  more_items,
  overview,
  rows,
)
from jaxprune.studies.tasks.asked import Tasks

ARC = {
  "question": "Which is soft?",
  "choices": {"text": ["gray", "fur", "rock"], "label": ["A", "B", "C"]},
  "answerKey": "B",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Two random models of two layers that read bytes."""
  root = tmp_path_factory.mktemp("models")
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  reader = tokenizers.Tokenizer(
    tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, [])
  )
  reader.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  reader.decoder = tokenizers.decoders.ByteLevel()
  for name, spread in (("dense", 0.2), ("pruned", 0.21)):
    hf_models.save_llama(
      root / name,
      vocab_size=len(alphabet),
      max_position_embeddings=512,
      initializer_range=spread,
      bos_token_id=None,
      eos_token_id=None,
    )
    reader.save(str(root / name / "tokenizer.json"))
    (root / name / "tokenizer_config.json").write_text("{}")
  return root


@pytest.mark.slow
def test_two_folders_and_a_task_by_name(folders, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "arc_easy.jsonl").write_text(json.dumps(ARC) + "\n")
  done = scripts.call(
    *("compare", f"{folders}/dense", f"{folders}/pruned"),
    *("--max_new_tokens=4", "--tasks=arc_easy:1", f"--data={tmp_path}"),
  )
  assert done.returncode == 0, done.stderr
  out = tmp_path / "out/compare/pruned"
  summary = json.loads((out / "summary.json").read_text())
  lines = done.stdout.splitlines()
  assert lines[-2] == "wrote out/compare/pruned/report.html"
  assert lines[-1].startswith("next: jaxprune transitions --dense=")
  for words in (
    *("next tokens changed", "tokens in common", "mean KL", "choice, accuracy"),
    *("exact, exact match", "perplexity", "for choosing", "for writing"),
  ):
    assert sum(line.startswith(words) for line in lines) == 1, words
  assert "about 1 min on two CPU cores" in done.stderr
  assert {len(text["tokens"]) for text in summary["texts"]} == {4}
  assert summary["kinds"] == [prompt.kind for prompt in builtin.prompts()]
  for text in summary["texts"]:
    prompt = builtin.prompts()[text["prompt"]].text
    assert text["prompt_text"].endswith(prompt[-40:])
  assert summary["tasks"]["choice"]["count"] == 48
  assert summary["tasks"]["exact"]["reference"] == 0
  assert summary["tasks"]["arc_easy"]["count"] == 1
  # Random models know nothing, so only the rule can say something.
  assert summary["tasks"]["exact"]["retention"]["state"] == "unknown"
  assert summary["verdict"]["generation"]["basis"] in (None, "rule")
  assert summary["perplexity"]["tokens"] > 3000
  rows = report.read_records(out)
  assert not any("layer" in row for row in rows)
  assert sum(row.get("task") == "exact" for row in rows) == 80
  assert summary["by_layer"] and np.shape(summary["kl_map"]) == (2, 4)


def test_the_questions_have_one_answer_each():
  questions = builtin.questions()
  assert len(questions) >= 40
  assert len({question.context for question in questions}) == len(questions)
  for question in questions:
    assert len(set(question.options)) == 4
    assert re.fullmatch(r"Question: .+\?\nAnswer:", question.context)
  # Whoever always says the same letter is at chance.
  places = np.bincount([question.answer for question in questions])
  assert (places / len(questions) == builtin.CHOICE_CHANCE).all()


def test_the_items_have_one_answer_each():
  found = builtin.items()
  assert len(found) >= 30 and len({item.prompt for item in found}) == len(found)
  for item in found:
    assert item.answer == item.answer.strip() and "\n" not in item.answer
    assert len(item.answer) <= 40  # a byte is the shortest token
    assert not item.prompt.endswith(" ")
    if item.kind == "arithmetic":
      sum_ = re.findall(r"What is (\d+ [-+*] \d+)\?\nAnswer:$", item.prompt)
      assert item.answer == str(eval(sum_[0]))
    elif item.kind == "copy":
      assert item.prompt.endswith(f"Words: {item.answer}\nCopy:")
    elif item.kind == "extraction":
      text = re.findall(r"Text: (.+)\nQuestion", item.prompt)[-1]
      assert item.answer in text
    # No other item of its kind is right by the same rule.
    assert generation.normalised(item.answer)
  assert {item.kind for item in found} == {
    *("arithmetic", "copy", "list", "extraction")
  }


def test_prompts_and_text_are_of_the_size_that_is_said():
  kinds = [prompt.kind for prompt in builtin.prompts()]
  assert len(kinds) == 16 and len(set(kinds)) == 5
  assert 550 < len(" ".join(builtin.text()).split()) < 650


def answered(dense, pruned):
  task = items.Task(
    name="exact",
    use="generation",
    metric="exact match",
    rule="",
    chance=0.0,
    scores={"dense": np.array(dense, float), "pruned": np.array(pruned, float)},
  )
  return items.Answers(tasks=[task], perplexity={})


@pytest.mark.parametrize(
  "pruned, ruled, state, basis",
  [
    ([1] * 40, None, "kept", "measured"),
    ([0] * 40, None, "lost", "measured"),
    # Answers that decide come before the rule, others leave it the word.
    ([0] * 40, "kept", "lost", "measured"),
    ([1] * 36 + [0] * 4, None, "unknown", None),
    ([1] * 36 + [0] * 4, "lost", "lost", "rule"),
    ([1] * 36 + [0] * 4, "unknown", "unknown", None),
  ],
)
def test_what_is_said_of_a_kind_of_task(pruned, ruled, state, basis):
  by_rule = {}
  if ruled:
    by_rule = {"generation": {"state": ruled, "error": 0.1, "reason": ""}}
  said = overview.judge(answered([1] * 40, pruned), by_rule, seed=0)
  assert said["verdict"]["generation"]["state"] == state
  assert said["verdict"]["generation"]["basis"] == basis


@pytest.mark.parametrize(
  "right, state", [((40, 40), "kept"), ((40, 0), "lost"), ((40, 36), "kept")]
)
def test_several_tasks_of_one_kind(right, state):
  """One that is lost decides, and one that cannot be told does not."""
  tasks = [
    dataclasses.replace(
      answered([1] * 40, [1] * count + [0] * (40 - count)).tasks[0],
      name=str(index),
    )
    for index, count in enumerate(right)
  ]
  said = overview.judge(items.Answers(tasks=tasks, perplexity={}), {}, seed=0)
  assert said["verdict"]["generation"]["state"] == state


def test_inner_layers_of_some_texts():
  """Fewer texts inside; the same numbers for those."""
  draw = np.random.default_rng(0)
  layers_LDD = jnp.asarray(draw.normal(size=(2, 3, 3)), jnp.float32)
  x_BTD = jnp.asarray(draw.normal(size=(4, 5, 3)), jnp.float32)
  rows_BR = jnp.asarray(draw.integers(0, 5, (4, 2)))
  stacks = [
    scan.Stack(
      block=lambda w_DD, x_BTD: (x_BTD + 1, jnp.tanh(x_BTD @ w_DD)),
      x=x_BTD,
      layers=scale * layers_LDD,
    )
    for scale in (1.0, 0.9)
  ]

  def inner(texts):
    return scan.compare_layers(
      *stacks,
      lambda h_D, g_D: (h_D[0], h_D @ g_D),
      rows_BT=rows_BR,
      texts=texts,
    )[2]

  for some, whole in zip(inner(jnp.array([0, 3])), inner(None)):
    assert some.shape == (2, 2, 2, 2)
    np.testing.assert_allclose(some, whole[:, :, [0, 3]], rtol=1e-5)


def test_fields_of_inner_layers():
  """Fewer fields inside; the same numbers for those."""
  draw = np.random.default_rng(0)
  vectors = [draw.normal(size=(4, size)).astype("f") for size in (3, 3, 7, 7)]

  @jax.jit
  @jax.vmap
  def measured(*position):
    return tuple(
      measure_one(*position, 1.0)
      for measure_one in (measure.measure_inside, measure.measure_all_inside)
    )

  some, whole = measured(*vectors)
  assert "js" in whole and set(some) == set(rows.BY_LAYER)
  for name, leaf in some.items():
    np.testing.assert_allclose(leaf, whole[name], rtol=1e-4, atol=1e-6)


def test_samples_of_the_harness():
  samples = [
    {"metrics": ["acc"], "acc": value, "arguments": [()] * options}
    for value, options in ((1.0, 4), (0.0, 2))
  ]
  read = more_items.of_samples("task", samples)
  assert read.kind.use == "choice" and read.values.tolist() == [1, 0]
  assert read.kind.chance.tolist() == [0.25, 0.5]
  with pytest.raises(ValueError, match="no score per item"):
    more_items.of_samples("task", [{"metrics": ["ppl"], "ppl": 3.0}])


@pytest.mark.parametrize(
  "name, said",
  [
    ("wikitext2", "a perplexity has no score per item"),
    ("no_such_task:5", "--tasks=no_such_task"),
    ("no_such_task:x", "no number of items"),
  ],
)
def test_tasks_that_cannot_be_asked(name, said, monkeypatch):
  monkeypatch.setattr(more_items.harness, "names", frozenset)
  with pytest.raises(ValueError, match=said):
    more_items.read(Tasks(named=(name,)))


@pytest.mark.parametrize("mode", ["auto", "no"])
def test_a_chat_template_that_cannot_be_rendered(
  folders, tmp_path, monkeypatch, caplog, mode
):
  """Without transformers, auto says so and reads the words as they are."""
  folder = tmp_path / "model"
  shutil.copytree(folders / "dense", folder)
  (folder / "chat_template.jinja").write_text("{{ messages }}")
  source = checkpoints.open_checkpoint(folder)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with caplog.at_level("INFO"):
    read = asked.read(source, None, limit=2, max_new_tokens=4, chat_mode=mode)
  assert not read.chat and read.kinds == ("instruction",) * 2
  assert ("transformers is not installed" in caplog.text) == (mode == "auto")
