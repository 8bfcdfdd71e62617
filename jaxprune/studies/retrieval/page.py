"""The page of the retrieval study: a table of scores, and a figure."""

from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.report import figures, page
from jaxprune.statistics import Estimate
from jaxprune.studies.retrieval.measure import METRICS
from jaxprune.studies.retrieval.summary import MAIN, STS, verdict


def write_page(
  run: report.RunFolder, summary: dict[str, Any], protocol: dict[str, Any]
) -> None:
  """Write report.html and its figure.

  Args:
    run: where they go.
    summary: from `summary.summarise`.
    protocol: further lines of the protocol.
  """
  page.write_report(
    run,
    title="Retrieval by a pruned encoder",
    finding=finding(summary),
    verdict=verdict(summary),
    sections=[_score_section(summary)],
    protocol={
      "Collection": summary["collection"],
      "Queries": summary["queries"],
      "Documents": summary["documents"],
      **protocol,
    },
  )


def finding(summary: dict[str, Any]) -> str:
  """How many pruned encoders retrieve as well as the dense one.

  Args:
    summary: from `summary.summarise`.
  """
  models = summary["models"].values()
  kept = sum(entry[MAIN]["difference"]["high"] >= 0 for entry in models)
  return (
    f"{kept} of {len(models)} pruned encoders retrieve not measurably worse"
    " than the dense one"
  )


def _score_section(summary) -> page.Section:
  return page.Section(
    title="Scores", tables=[_table(summary)], figures=[_figure(summary)]
  )


def _measures(summary) -> list[str]:
  return [*METRICS, *([STS] if STS in summary["dense"] else [])]


def _table(summary) -> page.Table:
  measures = _measures(summary)
  models = {"dense": summary["dense"], **summary["models"]}
  return page.Table(
    caption="Mean with a 95 % interval over queries (sentence pairs for"
    " Spearman); sparsity is the fraction of zeros in the kernels; cosine"
    " of h compares the embeddings of the same text by both models.",
    columns=(
      "model",
      "sparsity",
      *measures,
      "cosine of h, queries",
      "cosine of h, documents",
    ),
    rows=[
      (
        name,
        entry["sparsity"],
        *(Estimate.from_json(entry[measure]) for measure in measures),
        *(entry[f"cos_h_{kind}"]["value"] for kind in ("queries", "documents")),
      )
      for name, entry in models.items()
    ],
  )


def _figure(summary) -> page.Figure:
  """Part of the dense score that is kept, over the deviation of h."""
  models = list(summary["models"].values())
  moved = np.array(
    [entry["one_minus_cos_h_documents"]["value"] for entry in models]
  )
  order = np.argsort(moved)

  def line(measure):
    kept = [models[index][measure]["kept"] for index in order]
    return figures.estimated(moved[order], kept)

  chart = figures.lines(
    {
      measure: line(measure)
      for measure in _measures(summary)
      if measure in (MAIN, STS)
    },
    x="1 − cosine of h, documents",
    y="part of the dense score",
  )
  return page.Figure(
    name="kept",
    chart=chart,
    caption="What is left of the dense score against how far the embeddings"
    " moved, over all models; bands are 95 % intervals of the paired"
    " difference.",
    alt="Relative nDCG and Spearman over the deviation of h.",
  )
