"""Where does the change come from, if that was measured before?

A comparison says how the two models differ, and not which weights cause it. Two
other runs do: `propagation` divides the change among the sublayers of the same
pair, `ablation` says what the dense model loses without each of them. What such
a run found is shown on the page of the comparison.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from jaxprune import files
from jaxprune.report import page, records
from jaxprune.studies.propagation import finding

_SHOWN = 8  # sublayers in the table
_NAMES = {"attention": "attention", "mlp": "MLP", "block": "whole layer"}


def read(folder: str, hashes: Mapping[str, str]) -> dict[str, Any]:
  """What a run folder says of the same models.

  Args:
    folder: of `propagation` with --pruned, or of `ablation`.
    hashes: of the checkpoints, by `dense` and `pruned`.

  Returns:
    script, sentence, and rows of (sublayer, KL in nats), the largest first.

  Raises:
    ValueError: the folder is no such run, or one of other models.
  """
  place = pathlib.Path(folder)
  if not records.is_run(place) or not (place / records.SUMMARY).is_file():
    raise ValueError(
      f"--attribution={folder}: no finished run of propagation or ablation"
    )
  said = files.read_json(place / records.RUN).get("checkpoint_hash")
  summary = files.read_json(place / records.SUMMARY)
  if "single" in summary:
    _check_same(folder, said, hashes["dense"], "the same dense model")
    return _of_ablation(summary)
  if "models" in summary and "completeness_error" in summary:
    _check_same(folder, said, dict(hashes), "the same two models (--pruned)")
    return _of_propagation(summary)
  raise ValueError(
    f"--attribution={folder}: a run of another script; give one of propagation"
    " or ablation"
  )


def section(found: Mapping[str, Any]) -> page.Section:
  """The part of the page.

  Args:
    found: from `read`.
  """
  captions = {
    "propagation": "Contribution to the KL at the output, in nats; all"
    " sublayers together give the whole KL.",
    "ablation": "KL in nats of the original without that sublayer alone.",
  }
  return page.Section(
    title="Which weights cause it",
    paragraphs=[found["sentence"]],
    tables=[
      page.Table(
        caption=captions[found["script"]],
        columns=("sublayer", "KL"),
        rows=[tuple(row) for row in found["rows"]],
      )
    ],
  )


def _check_same(folder, said, wanted, of) -> None:
  if said != wanted:
    raise ValueError(
      f"--attribution={folder}: was not measured on {of}; run it anew, or"
      " leave the flag out"
    )


def _of_propagation(summary) -> dict[str, Any]:
  entry = next(e for e in summary["models"] if e["source"] == "pruned")
  words = finding.finding(summary).partition(": ")[2]
  return {
    "script": "propagation",
    "sentence": f"By the run of propagation {words}.",
    "rows": [[name, float(value)] for name, value in entry["largest"]],
  }


def _of_ablation(summary) -> dict[str, Any]:
  parts = sorted(
    (each for each in summary["single"] if each["sublayer"] != "block"),
    key=lambda each: -each["kl"]["value"],
  )
  rows = [
    [f"{_NAMES[each['sublayer']]} {each['layer']}", each["kl"]["value"]]
    for each in parts
  ]
  (first, most), (last, least) = rows[0], rows[-1]
  return {
    "script": "ablation",
    "sentence": "By the run of ablation the original loses most without the"
    f" {first} ({page.format_number(most, 2)} nats) and least without the"
    f" {last} ({page.format_number(least, 2)} nats), each left out alone.",
    "rows": rows[:_SHOWN],
  }
