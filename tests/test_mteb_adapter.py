"""mteb runs a local retrieval task on our encoder, and agrees with us."""

import sys

import hf_encoders
import numpy as np
import pytest

from jaxprune.evaluation import mteb_adapter, retrieval

TEXTS = [
  "wing flow heat",
  "shock layer",
  "drag of the wing",
  "cone body speed",
  "gas wave",
  "lift lift span",
  "plate jet",
  "tip of a wing",
]
QUERIES = ["wing", "gas body", "shock plate layer"]
QRELS = [{0: 2, 2: 1}, {4: 1}, {1: 1, 6: 2}]


def test_without_mteb_it_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "mteb", None)
  hf_encoders.save(tmp_path / "m")
  with pytest.raises(ValueError, match=r"pip install 'jaxprune\[mteb\]'"):
    mteb_adapter.load_encoder(tmp_path / "m")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_local_task(tmp_path):
  mteb = pytest.importorskip("mteb")
  import datasets
  from mteb.abstasks import AbsTaskRetrieval
  from mteb.abstasks.task_metadata import TaskMetadata

  class Local(AbsTaskRetrieval):
    metadata = TaskMetadata(
      name="Local",
      description="a test",
      reference=None,
      type="Retrieval",
      category="t2t",
      modalities=["text"],
      eval_splits=["test"],
      eval_langs=["eng-Latn"],
      main_score="ndcg_at_10",
      dataset={"path": "local/local", "revision": "1"},
      date=None,
      domains=None,
      task_subtypes=None,
      license=None,
      annotations_creators=None,
      dialect=None,
      sample_creation=None,
      bibtex_citation=None,
    )

    def load_data(self, num_proc=None, **kwargs):
      self.dataset = {
        "default": {
          "test": {
            "corpus": datasets.Dataset.from_list(
              [
                {"id": f"d{i}", "title": "", "text": text}
                for i, text in enumerate(TEXTS)
              ]
            ),
            "queries": datasets.Dataset.from_list(
              [{"id": f"q{i}", "text": text} for i, text in enumerate(QUERIES)]
            ),
            "relevant_docs": {
              f"q{i}": {f"d{d}": r for d, r in own.items()}
              for i, own in enumerate(QRELS)
            },
            "top_ranked": None,
          }
        }
      }
      self.data_loaded = True

  hf_encoders.save(tmp_path / "m")
  model = mteb_adapter.load_encoder(tmp_path / "m")
  assert isinstance(model, mteb.EncoderProtocol)
  result = mteb.evaluate(model, Local(), cache=None)
  scores = result.task_results[0].scores["test"][0]
  vectors = {
    name: model.encode([{"text": texts}])
    for name, texts in (("q", QUERIES), ("d", TEXTS))
  }
  rows = retrieval.evaluate_ranking(
    np.asarray(model.similarity(vectors["q"], vectors["d"])), QRELS
  )
  for theirs, ours in (
    ("ndcg_at_10", "ndcg@10"),
    ("recall_at_1", "recall@1"),
    ("mrr_at_10", "mrr@10"),
  ):
    assert scores[theirs] == pytest.approx(
      np.mean([row[ours] for row in rows]), abs=1e-4
    ), theirs
