"""Text embeddings and the retrieval script."""

import itertools
import json

import hf_encoders
import jax.numpy as jnp
import numpy as np
import pytest
import scripts

from jaxprune import checkpoints, statistics
from jaxprune.calibration.tokenizer import load_tokenizer
from jaxprune.evaluation import sentences
from jaxprune.models import EncoderConfig
from jaxprune.studies.retrieval import encoders, reading
from jaxprune.studies.tasks import retrieval_data

TEXTS = [
  "wing flow",
  "heat",
  "shock layer plate jet cone body speed gas wave tip",
  "the drag of a wing",
  "lift lift lift",
  "cone bodys flowing",
]


# Embeddings of texts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bert")
  model = hf_encoders.save(folder)
  source = checkpoints.open_checkpoint(folder, EncoderConfig)
  config, params = checkpoints.load_params(source, jnp.float32)
  return model, folder, config, params


def test_tokens_keep_the_special_ones_when_cut(tiny):
  tokenizer = load_tokenizer(tiny[1])
  ids = sentences.tokenise(tokenizer, TEXTS[:3], 5)
  assert ids == [[2, 4, 5, 3], [2, 6, 3], [2, 9, 10, 11, 3]]
  # The tokenizer is as it was: whole texts, no padding.
  assert len(tokenizer.encode(TEXTS[2]).ids) == 12
  with pytest.raises(ValueError, match="at least 3"):
    sentences.tokenise(tokenizer, TEXTS, 2)
  with pytest.raises(ValueError, match="no texts"):
    sentences.tokenise(tokenizer, [], 5)


def test_vectors_are_those_of_stock_in_order(tiny):
  model, folder, config, params = tiny
  ids = sentences.tokenise(load_tokenizer(folder), TEXTS, 40)
  pooling = checkpoints.read_pooling(folder)
  got = sentences.embed_texts(config, params, ids, pooling, batch_size=4)
  for row, own in zip(got, ids):
    want = hf_encoders.hidden(model, [own])[0].mean(axis=0)
    np.testing.assert_allclose(row, want / np.linalg.norm(want), atol=1e-5)


def test_vectors_refuse(tiny):
  _, folder, config, params = tiny
  pooling = checkpoints.read_pooling(folder)
  with pytest.raises(ValueError, match="ids from 2 to 61.*vocabulary has 61"):
    sentences.embed_texts(config, params, [[2, 61, 3]], pooling)
  with pytest.raises(ValueError, match="41 tokens.*40 positions"):
    sentences.embed_texts(config, params, [[4] * 41], pooling)


def test_minilm_ranks_sentences_like_people(shared):
  """The first 60 pairs, whole text to score; all 864 give .868."""
  folder = shared / "weights" / "minilm"
  config, params = checkpoints.load_params(
    checkpoints.open_checkpoint(folder, EncoderConfig), jnp.float32
  )
  pairs = retrieval_data.read_pairs(shared / "data" / "stsb" / "sts-test.tsv")
  tokenizer, pooling = load_tokenizer(folder), checkpoints.read_pooling(folder)
  first, second = (
    sentences.embed_texts(
      config, params, sentences.tokenise(tokenizer, own[:60], 128), pooling
    )
    for own in (pairs.first, pairs.second)
  )
  assert len(pairs.scores) == 864
  assert (
    statistics.rank_correlation((first * second).sum(1), pairs.scores[:60])
    > 0.9
  )


# Collections


def write_collection(folder):
  """Documents, queries and judgements in the layout of BEIR."""
  (folder / "qrels").mkdir(parents=True)
  (folder / "corpus.jsonl").write_text(
    "\n".join(
      json.dumps({"_id": f"d{i}", "title": "wing", "text": text})
      for i, text in enumerate(TEXTS)
    )
  )
  (folder / "queries.jsonl").write_text(
    "\n".join(
      json.dumps({"_id": f"q{i}", "text": text})
      for i, text in enumerate(TEXTS[:4])
    )
  )
  (folder / "qrels" / "test.tsv").write_text(
    "query-id\tcorpus-id\tscore\nq0\td0\t2\nq0\td5\t1\nq2\td2\t1\nq3\td3\t0"
    "\nq3\td1\t1\n"
  )
  return folder


def test_beir_layout(tmp_path):
  found = retrieval_data.read_collection(write_collection(tmp_path / "c"))
  assert found.documents[1] == "wing heat"
  assert found.queries == [TEXTS[0], TEXTS[2], TEXTS[3]]  # q1 is not judged
  assert found.qrels == [{0: 2.0, 5: 1.0}, {2: 1.0}, {3: 0.0, 1: 1.0}]


CRANFIELD = {
  "cran.all.1400": ".I 1\n.T\na wing\n.A\nx\n.B\ny\n.W\na wing\nin flow .\n"
  ".I 3\n.T\nheat\n.A\n.B\n.W\n",
  "cran.qry": ".I 001\n.W\nwhat wing\n.I 007\n.W\nwhat\nheat\n",
  "cranqrel": "1 1 2 \n1 3 -1\n\n2 3 4\n",
}


def write_cranfield(folder, **changes):
  folder.mkdir()
  for name, text in {**CRANFIELD, **changes}.items():
    (folder / name).write_text(text)
  return folder


def test_cranfield_layout(tmp_path):
  """Queries by order, documents by number, code -1 not relevant."""
  found = retrieval_data.read_collection(write_cranfield(tmp_path / "c"))
  assert found.documents == ["a wing in flow .", "heat"]
  assert found.queries == ["what wing", "what heat"]
  assert found.qrels == [{0: 1.0, 1: 0.0}, {1: 1.0}]


@pytest.mark.parametrize("line", ["1 2 3", "3 1 1", "0 1 1", "1 1", "a 1 1"])
def test_cranfield_judgements_of_nothing(tmp_path, line):
  folder = write_cranfield(tmp_path / "c", cranqrel=f"1 1 1\n{line}\n")
  with pytest.raises(ValueError, match="cranqrel: line 2"):
    retrieval_data.read_collection(folder)


def test_bad_collections(tmp_path):
  with pytest.raises(ValueError, match="neither"):
    retrieval_data.read_collection(tmp_path)
  folder = write_collection(tmp_path / "c")
  (folder / "qrels" / "test.tsv").write_text("a\tb\tc\nq0\td9\t1\n")
  with pytest.raises(ValueError, match="test.tsv: line 2"):
    retrieval_data.read_collection(folder)
  (folder / "queries.jsonl").write_text('{"_id": "q0"}\n')
  with pytest.raises(ValueError, match="queries.jsonl: line 1"):
    retrieval_data.read_collection(folder)


def test_bad_pairs(tmp_path):
  path = tmp_path / "sts.tsv"
  with pytest.raises(ValueError, match="no such file"):
    retrieval_data.read_pairs(path)
  path.write_text("score\tsent1\n1\ta\n")
  with pytest.raises(ValueError, match="score, sent1 and sent2"):
    retrieval_data.read_pairs(path)
  path.write_text("score\tsent1\tsent2\nx\ta\tb\n")
  with pytest.raises(ValueError, match="no number"):
    retrieval_data.read_pairs(path)


# The study


def test_variants():
  found = encoders.variants(
    encoders.Wanted(
      methods=("wanda", "sparsegpt"),
      sparsities=(0.25,),
      drop_attention=(1,),
      drop_mlp=(2,),
      folders=("/a/own",),
    )
  )
  assert [variant.name for variant in found] == [
    "wanda-0.25",
    "sparsegpt-0.25",
    "drop_attention-1",
    "drop_mlp-2",
    "own",
  ]
  assert [v.pattern.group for v in found[:2]] == ["output", "matrix"]
  with pytest.raises(ValueError, match="at least one"):
    encoders.variants(encoders.Wanted(sparsities=(0.5,)))
  with pytest.raises(ValueError, match="none twice"):
    encoders.variants(
      encoders.Wanted(methods=("wanda",), sparsities=(0.5, 0.5))
    )
  with pytest.raises(ValueError, match="none called dense"):
    encoders.variants(encoders.Wanted(folders=("/a/dense",)))


def test_calibration_is_a_draw_of_beginnings(tiny, tmp_path):
  _, folder, _, _ = tiny
  source = checkpoints.open_checkpoint(folder, EncoderConfig)
  texts = reading.read_texts(
    source, write_collection(tmp_path / "c"), None, max_tokens=6
  )
  lines = tmp_path / "lines.jsonl"
  lines.write_text(
    "\n".join(json.dumps({"text": text}) for text in ["", *TEXTS])
  )
  options = dict(num_samples=3, seed=1)
  found = reading.calibrate(source, str(lines), texts, **options)
  again = reading.calibrate(source, str(lines), texts, **options)
  assert found.description == again.description
  assert found.tokens.shape == (3, found.valid.sum(axis=1).max())
  ends = found.tokens[np.arange(3), found.valid.sum(axis=1) - 1]
  assert (found.tokens[:, 0] == 2).all() and (ends == 3).all()
  with pytest.raises(ValueError, match="6 documents.*--num_samples=7"):
    reading.calibrate(source, str(lines), texts, num_samples=7, seed=1)


@pytest.mark.slow
def test_the_script(tiny, tmp_path):
  collection = write_collection(tmp_path / "c")
  sts = tmp_path / "sts.tsv"
  sts.write_text(
    "score\tsent1\tsent2\n"
    + "".join(
      f"{i % 5}\t{a}\t{b}\n"
      for i, (a, b) in enumerate(itertools.combinations(TEXTS, 2))
    )
  )
  arguments = [
    f"--dense={tiny[1]}",
    f"--collection={collection}",
    f"--sts={sts}",
    "--num_samples=4",
    "--max_tokens=16",
    "--keep_models",
  ]
  done = scripts.call(
    "retrieval",
    *arguments,
    "--method=magnitude",
    "--sparsity=0.5",
    "--drop_mlp=1",
    f"--out={tmp_path / 'out'}",
  )
  assert done.returncode == 0, done.stderr
  summary = json.loads((tmp_path / "out" / "summary.json").read_text())
  assert set(summary["models"]) == {"magnitude-0.5", "drop_mlp-1"}
  dense, half = summary["dense"], summary["models"]["magnitude-0.5"]
  assert dense["sparsity"] == 0 and half["sparsity"] == 0.5
  assert dense["ndcg@10"]["difference"]["value"] == 0
  assert dense["cos_h_documents"]["value"] == 1
  assert -1 < half["cos_h_documents"]["value"] < 1
  assert half["spearman"]["difference"]["value"] == pytest.approx(
    half["spearman"]["value"] - dense["spearman"]["value"]
  )
  rows = [
    json.loads(line)
    for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()
  ]
  mine = [
    row["value"]
    for row in rows
    if row["model"] == "magnitude-0.5" and row.get("metric") == "ndcg@10"
  ]
  assert np.mean(mine) == pytest.approx(half["ndcg@10"]["value"])
  page = (tmp_path / "out" / "report.html").read_text()
  assert "magnitude-0.5" in page
  assert (tmp_path / "out" / "figures" / "kept.svg").stat().st_size
  assert not dense["dropped"]["mlp"]
  assert len(summary["models"]["drop_mlp-1"]["dropped"]["mlp"]) == 1
  # A kept model measured as a given one gives the same numbers.
  done = scripts.call(
    "retrieval",
    *arguments,
    "--method=",
    f"--out={tmp_path / 'two'}",
    f"--pruned={tmp_path / 'out' / 'models' / 'magnitude-0.5'}",
  )
  assert done.returncode == 0, done.stderr
  again = json.loads((tmp_path / "two" / "summary.json").read_text())
  given = again["models"]["magnitude-0.5"]
  assert given["ndcg@10"] == half["ndcg@10"]
  assert given["spearman"] == half["spearman"]


@pytest.mark.slow
@pytest.mark.parametrize(
  "flag, words",
  [
    ("--method=awq", "--method=awq"),
    ("--sparsity=half", "--sparsity=half: give numbers"),
    ("--drop_mlp=4", "drop count is 4, but mlp has 3 to drop"),
    ("--max_tokens=41", "40 positions"),
    ("--num_samples=9", "--num_samples=9"),
  ],
)
def test_the_script_refuses(tiny, tmp_path, flag, words):
  done = scripts.call(
    "retrieval",
    f"--dense={tiny[1]}",
    "--num_samples=4",
    "--max_tokens=16",
    f"--collection={write_collection(tmp_path / 'c')}",
    f"--out={tmp_path / 'out'}",
    flag,
  )
  assert done.returncode == 1
  assert done.stderr.startswith("error: ") and words in done.stderr
  assert done.stderr.count("\n") == 1
