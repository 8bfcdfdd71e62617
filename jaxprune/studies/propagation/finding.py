"""What does `propagation` say in words: the headline, and what is printed."""

from typing import Any

from jaxprune.probes.decoder.propagation.path import SUBLAYERS
from jaxprune.statistics import Estimate

Entry = dict[str, Any]  # of one configuration and source, from `summarise`


def name_of(entry: Entry) -> str:
  """The configuration, and the kind of control if it is one."""
  if entry["source"] == "pruned":
    return entry["configuration"]
  return f"{entry['configuration']}, {entry['source']}"


def headline(summary: dict[str, Any]) -> str:
  """A few lines for each pruned model and its controls."""
  parts = []
  for entry in summary["models"]:
    kinds, rates = entry["by_kind"], entry["amplification"]
    missed = entry["path"]["first_order"]["logits"][-1]
    top = ", ".join(f"{name} {value:.3g}" for name, value in entry["largest"])
    parts.append(
      f"{name_of(entry)}: KL {_text(entry['change']['kl'])} nats, attention"
      f" {kinds['attention']['kl']['value']:.3g}, MLP"
      f" {kinds['mlp']['kl']['value']:.3g}, most in {top}; first order misses"
      f" {100 * missed:.0f} % of the logits and holds to t ="
      f" {entry['radius']['first_order']['logits']:.2f}; p moves"
      f" {_text(rates['p_over_z_centred'])} times as fast as centred z"
    )
  return "\n".join([*parts, completeness(summary)])


def completeness(summary: dict[str, Any]) -> str:
  """Whether the contributions add up, in one sentence."""
  error, bound = summary["completeness_error"], summary["tolerance"]
  if summary["complete"]:
    return (
      f"The contributions add up: completeness error {error:.2g}, below"
      f" --tolerance={bound:g}, with {summary['nodes']} nodes at most."
    )
  return (
    f"NOT COMPLETE: the completeness error is {error:.2g}, above"
    f" --tolerance={bound:g}, with {summary['nodes']} nodes; raise --max_nodes"
    " before you read small contributions."
  )


def finding(summary: dict[str, Any]) -> str:
  """Which sublayers the KL comes from, in one sentence.

  Args:
    summary: from `summary.summarise`.
  """
  entry = next(e for e in summary["models"] if e["source"] == "pruned")
  total = entry["change"]["kl"]["value"]
  if not total:
    return f"{entry['configuration']}: nothing changed"
  shares = {
    kind: 100 * entry["by_kind"][kind]["kl"]["value"] / total
    for kind in SUBLAYERS
  }
  name, largest = entry["largest"][0]
  return (
    f"{entry['configuration']}: the attentions cause"
    f" {shares['attention']:.0f} % of the KL and the MLPs"
    f" {shares['mlp']:.0f} %, most of it {name}"
    f" ({100 * largest / total:.0f} %)"
  )


def verdict(summary: dict[str, Any]) -> str:
  """What the numbers say, in plain words."""
  parts = headline(summary).split("\n")
  for entry in summary["models"]:
    if entry["source"] != "pruned":
      continue
    ways, pairs = entry["by_arrival"]["kl"], entry["interactions"]
    damped = entry["amplification"]["damped"]["value"]
    parts += [
      f"{entry['configuration']}: of the KL at an output"
      f" {ways['own_step']['value']:.3g} nats come from weights changed at its"
      f" own step, {ways['earlier_steps']['value']:.3g} through keys and"
      " values of earlier steps and"
      f" {ways['text_before']['value']:.3g} through those of the text before."
      " Sublayers changed alone give"
      f" {_text(pairs['kl_alone_over_together'])} of the KL of all"
      " together. Relative to its length p is slower than centred z at"
      f" {100 * damped:.0f} % of the outputs."
    ]
  parts.append(
    "Contributions belong to the straight path between the two sets of"
    " weights. They add up exactly, but a sublayer whose change is undone by"
    " another can still have a large one."
  )
  return "\n\n".join(parts)


def _text(entry) -> str:
  return Estimate.from_json(entry).format()
