"""The measurement of options against oracles in float64, and its summary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import random_params

from jaxprune import report
from jaxprune.models import ModelConfig, RopeConfig, decoder
from jaxprune.probes.decoder import sequences
from jaxprune.studies.subspace import measure, page
from jaxprune.studies.subspace import summary as summary_lib
from jaxprune.studies.subspace.items import Item

CONFIG = ModelConfig(
  family="llama",
  num_layers=1,
  embed_dim=8,
  mlp_dim=8,
  num_heads=2,
  num_kv_heads=1,
  head_dim=4,
  vocab_size=30,
  norm_eps=1e-5,
  rope=RopeConfig(kind="default", theta=10000.0),
  max_positions=32,
  tie_embeddings=True,
  sliding_layers=(False,),
)
ITEMS = [
  Item(
    head=(1, 2, 3), answer=1, spellings=(((5,), (6, 7)), ((8, 9, 3),), ((10,),))
  ),
  Item(head=(4,), answer=0, spellings=(((11,),), ((12, 2),))),
  Item(head=(4, 9), answer=1, spellings=(((13, 1),), ((14, 2),))),
]
RUN = {"made_by": "jaxprune", "flags": {}}
SETTINGS = measure.Settings(
  analysis_temperature=0.7, num_subsets=3, batch=2, seed=0
)


class Quiet:
  def step(self, index):
    pass


@functools.cache
def params(seed):
  return random_params(CONFIG, np.random.default_rng(seed), 0.6)


def dense():
  return params(0)


@functools.cache
def pruned():
  return jax.tree.map(
    lambda a, b: jnp.asarray(np.asarray(a) + 0.3 * np.asarray(b)),
    params(0),
    params(1),
  )


def measured(model, folder):
  """The columns of ITEMS, whose rows are written to a folder."""
  with report.RunFolder(folder, RUN) as run:
    return measure.compare_items(
      sequences.Model(config=CONFIG, params=dense()),
      sequences.Model(config=CONFIG, params=model),
      ITEMS,
      SETTINGS,
      run,
      Quiet(),
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run") / "out"
  measured(pruned(), folder)
  return report.read_records(folder)


@pytest.fixture(scope="module")
def itself(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run") / "out"
  return folder, measured(dense(), folder)


@jax.jit
def logits(weights, tokens):
  x, _ = decoder.forward(CONFIG, weights, tokens[None])
  return decoder.unembed(CONFIG, weights, x[0])


def log_softmax(z):
  z = np.asarray(z, np.float64) / 0.7
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def read(weights, ids):
  """log p after each token; one length, so one program."""
  padded = jnp.asarray(np.pad(ids, (0, 8 - len(ids))))
  return log_softmax(logits(weights, padded))[: len(ids)]


def score(weights, item, option):
  total = 0.0
  for way in option:
    log_p = read(weights, (*item.head, *way[:-1]))
    at = len(item.head) - 1 + np.arange(len(way))
    total += np.exp(log_p[at, list(way)].sum())
  return np.log(total)


def only(rows, **fields):
  return [
    row
    for row in rows
    if all(row.get(name) == value for name, value in fields.items())
  ]


def test_scores_add_tokens_and_spellings(rows):
  for n, item in enumerate(ITEMS):
    scores, scores_pruned = (
      np.array([score(w, item, option) for option in item.spellings])
      for w in (dense(), pruned())
    )
    found = [
      row
      for row in only(rows, question=n, token_set="options")
      if "option" in row
    ]
    np.testing.assert_allclose(
      [row["score"] for row in found], scores, rtol=1e-4
    )
    np.testing.assert_allclose(
      [row["score_pruned"] for row in found], scores_pruned, rtol=1e-4
    )
    assert [row["rank"] for row in found] == np.argsort(
      np.argsort(-scores)
    ).tolist()
    (whole,) = [
      row
      for row in only(rows, question=n, token_set="options")
      if "option" not in row
    ]
    p, q = (np.exp(s) / np.exp(s).sum() for s in (scores, scores_pruned))
    assert whole["kl"] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-3)
    cos = p @ q / np.sqrt((p @ p) * (q @ q))
    assert whole["cos_p"] == pytest.approx(cos, rel=1e-4)
    assert whole["mass"] == pytest.approx(np.exp(scores).sum(), rel=1e-4)
    assert whole["choice"] == scores.argmax()
    assert whole["correct"] == (scores.argmax() == item.answer)
    assert whole["flip"] == (scores.argmax() != scores_pruned.argmax())
    change = scores_pruned - scores
    assert whole["score_change"] == pytest.approx(np.ptp(change), rel=1e-3)
    margin = np.diff(np.sort(scores))[-1]
    assert whole["score_margin"] == pytest.approx(margin, rel=1e-3)
    assert whole["certified"] == (margin > np.ptp(change))


def test_first_tokens_are_a_part_of_the_vocabulary(rows):
  """Their share and that of all others make the whole KL."""
  for n, item in enumerate(ITEMS):
    log_p, log_q = (read(w, item.head)[-1] for w in (dense(), pruned()))
    p, q = np.exp(log_p), np.exp(log_q)
    first = sorted({w[0] for option in item.spellings for w in option})
    (found,) = only(rows, question=n, token_set="option_tokens")
    (whole,) = only(rows, question=n, token_set="vocabulary")
    share = p * (log_p - log_q) - p + q
    assert found["kl_share"] == pytest.approx(share[first].sum(), rel=1e-3)
    assert whole["kl"] == pytest.approx(share.sum(), rel=1e-3)
    assert found["mass"] == pytest.approx(p[first].sum(), rel=1e-4)
    assert found["count"] == len(first)
    inside = p[first] / p[first].sum(), q[first] / q[first].sum()
    kl = (inside[0] * np.log(inside[0] / inside[1])).sum()
    assert found["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-6)
    parts = (
      found["kl_mass"]
      + found["mass"] * found["kl"]
      + (1 - found["mass"]) * found["kl_outside"]
    )
    assert parts == pytest.approx(whole["kl"], rel=1e-3)
    top = only(rows, question=n, token_set="top")
    order = np.argsort(-log_p, kind="stable")[: len(top)]
    assert [row["token"] for row in top] == order.tolist()
    np.testing.assert_allclose(
      [row["score_pruned"] for row in top], log_q[order], rtol=1e-4
    )
    place = np.argsort(np.argsort(-log_q, kind="stable"))
    assert [row["rank_pruned"] for row in top] == place[order].tolist()


def test_random_sets(rows):
  for n in range(len(ITEMS)):
    found = only(rows, question=n, token_set="random")
    assert [row["draw"] for row in found] == [0, 1, 2]
    (own,) = only(rows, question=n, token_set="option_tokens")
    assert all(row["count"] == own["count"] for row in found)
    assert all(row["mass"] + own["mass"] <= 1 + 1e-5 for row in found)
  masses = [row["mass"] for row in only(rows, token_set="random")]
  assert len(set(masses)) > 3


def test_dense_against_itself(itself):
  folder, tables = itself
  for row in report.read_records(folder):
    for name in ("kl", "kl_share", "kl_mass", "score_change", "discordant"):
      assert row.get(name, 0) == 0, row
    assert row.get("cos_p", 1) == 1 and row.get("flip", False) is False
    if "score" in row:
      assert row["score"] == row["score_pruned"]
  summary = summary_lib.summarise(tables, SETTINGS)
  assert summary["kept_among_options"]["value"] == 1
  assert summary["sets"]["options"]["kl"]["value"] == 0
  assert summary["accuracy"] == summary["accuracy_pruned"]
  assert "about equally" in page.verdict(summary)


def test_page(itself):
  folder, tables = itself
  summary = summary_lib.summarise(tables, SETTINGS)
  with report.RunFolder(folder, RUN, resume=True) as run:
    page.write_page(run, tables, summary, SETTINGS, str)
  assert "Answer options" in (folder / "report.html").read_text()
  assert len(list((folder / "figures").iterdir())) == 3


def rows_by_hand():
  """Two questions; random sets of the second have another mass."""
  for n, (options, whole, mass) in enumerate(
    ((0.1, 0.5, 0.2), (0.3, 0.4, 0.8))
  ):
    common = {"question": n}
    yield common | {
      "token_set": "vocabulary",
      "kl": whole,
      "cos_p": 0.9,
      "one_minus_cos_p": 0.1,
      "flip": n == 0,
    }
    sizes = {
      "kl": options,
      "kl_share": 0.0,
      "cos_p": 0.95,
      "mass": mass,
      "one_minus_cos_p": 0.05,
      "flip": False,
      "discordant": 3 * n,
      "certified": n == 1,
    }
    yield (
      common
      | sizes
      | {
        "token_set": "options",
        "count": 4,
        "correct": True,
        "correct_pruned": n == 0,
      }
    )
    for c in range(4):
      yield common | {
        "token_set": "options",
        "option": c,
        "score": -1.0,
        "score_pruned": -1.5,
      }
    yield common | sizes | {"token_set": "option_tokens", "count": 4}
    for draw, kl in enumerate((0.2, 0.4)):
      yield (
        common
        | sizes
        | {
          "token_set": "random",
          "draw": draw,
          "count": 4,
          "kl": kl,
          "mass": 0.2 * (1 + draw),
        }
      )
    yield common | {
      "token_set": "top",
      "rank": 0,
      "token": 3,
      "score": -0.1,
      "score_pruned": -0.2,
      "rank_pruned": 0,
    }


def test_summary_by_hand(tmp_path):
  with report.RunFolder(tmp_path / "out", RUN) as run:
    run.write_all(rows_by_hand())
    summary = summary_lib.summarise(measure.tables_of(run), SETTINGS)
  assert summary["kl_difference"]["value"] == pytest.approx(-0.25)
  assert summary["kept_among_options"]["value"] == 1
  assert summary["kept_in_vocabulary"]["value"] == 0.5
  assert summary["kept_difference"]["value"] == 0.5
  assert summary["discordant_pairs"]["value"] == pytest.approx(0.25)
  assert summary["order_kept"]["value"] == 0.5
  assert summary["abs_score_change"]["value"] == pytest.approx(0.5)
  assert summary["accuracy_pruned"]["value"] == 0.5
  # Question 0: both sets are within a factor 2. Question 1: .4 is half of .8.
  against = summary["against_random"]
  assert against["questions"] == 2
  assert against["kl"]["value"] == pytest.approx(
    ((0.1 - 0.3) + (0.3 - 0.4)) / 2
  )
  assert [one["questions"] for one in summary["by_mass"]] == [1, 1]
  assert summary["by_mass"][1]["options_kl"]["value"] == pytest.approx(0.3)
