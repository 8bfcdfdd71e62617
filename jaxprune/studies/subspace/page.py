"""The page of `subspace`: tables and figures of what the summary holds."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.report import figures, maps, page
from jaxprune.studies.subspace.measure import SETS, Settings, Tables

NAMES = {
  "vocabulary": "whole vocabulary",
  "options": "options, renormalised",
  "option_tokens": "their first tokens, renormalised",
  "random": "random tokens, renormalised",
}


def write_page(
  run: report.RunFolder,
  tables: Tables,
  summary: Mapping[str, Any],
  settings: Settings,
  text_of: Callable[[int], str],
) -> None:
  """Write report.html and figures/.

  Args:
    run: the open run folder.
    tables: from `measure.compare_items`, for the points of the scatter plot and
      the bars of one question.
    summary: from `summary.summarise`.
    settings: how it was measured.
    text_of: the text of a token id.
  """
  page.write_report(
    run,
    title="Answer options against the vocabulary",
    verdict=verdict(summary),
    sections=[
      page.Section(
        title="Options, vocabulary and random tokens",
        paragraphs=(
          "An option of several tokens collects the change at each of"
          " them, while the vocabulary and the token sets are compared"
          " at one position, the first where the options part.",
        ),
        tables=[_set_table(summary)],
        figures=[_kl_figure(tables), _mass_figure(summary)],
      ),
      page.Section(
        title="Against random tokens of the same probability",
        tables=[_random_table(summary)],
      ),
      page.Section(
        title="One question",
        figures=[_question_figure(tables, summary, text_of)],
      ),
    ],
    protocol={
      "Questions": summary["questions"],
      "Answered as": settings.answer_as,
      "Cue": settings.cue if settings.answer_as == "letter" else None,
      "Analysis temperature T": settings.analysis_temperature,
      "Random sets of each question": settings.num_subsets,
    },
  )


def verdict(summary: Mapping[str, Any]) -> str:
  """What the numbers say: options move less, more, or as much."""
  kl, share = summary["kl_difference"], summary["sets"]["options"]
  if not np.isfinite([kl["value"], kl["low"]]).all():
    first = "There are too few questions to compare KL."
  elif kl["high"] < 0:
    first = "Pruning changes the renormalised options less than the vocabulary."
  elif kl["low"] > 0:
    first = "Pruning changes the renormalised options more than the vocabulary."
  else:
    first = (
      "Pruning changes the renormalised options and the vocabulary about"
      " equally: the interval of the difference of KL includes 0."
    )
  random = summary["against_random"]
  if "kl" not in random:
    second = (
      "No random token set has the probability of the option tokens, so"
      " whether they are stable for being options cannot be told."
    )
  elif random["kl"]["low"] <= 0 <= random["kl"]["high"]:
    second = (
      "Random tokens of the same probability move about as much, so the"
      " options are not special."
    )
  else:
    less = "less" if random["kl"]["value"] < 0 else "more"
    second = (
      f"The option tokens move {less} than random tokens of the same"
      " probability."
    )
  return (
    f"{first} {second}\n\nThe best option stays the best in"
    f" {100 * summary['kept_among_options']['value']:.1f} % of"
    f" {summary['questions']} questions, the most likely token of the"
    f" vocabulary in {100 * summary['kept_in_vocabulary']['value']:.1f} %. The"
    " margin guarantees the best option in"
    f" {100 * share['certified']['value']:.1f} %.\n\nAccuracy is"
    f" {100 * summary['accuracy']['value']:.1f} % dense and"
    f" {100 * summary['accuracy_pruned']['value']:.1f} % pruned. The order of"
    " the options is unchanged in"
    f" {100 * summary['order_kept']['value']:.1f} %; a score moves by"
    f" {summary['abs_score_change']['value']:.3g} nats on average."
  )


def _set_table(summary) -> page.Table:
  return page.estimate_table(
    "Means over questions with 95 % intervals. Share of KL is what a set adds"
    " to KL(p‖q) of the vocabulary, not renormalised. Certified: the margin"
    " exceeds the largest change of a difference, so that the best one is"
    " safe.",
    "token set",
    {
      "mass": "probability",
      "kl": "KL (nats)",
      "kl_share": "share of KL (nats)",
      "one_minus_cos_p": "1 − cosine of p",
      "flip": "best one changed",
      "certified": "certified",
    },
    {NAMES[name]: summary["sets"][name] for name in SETS},
  )


def _random_table(summary) -> page.Table:
  differences = summary["against_random"]
  return page.measure_table(
    "First tokens of the options less the mean of random sets,"
    f" paired, over the {differences['questions']} questions that have a"
    " random set of the same probability within a factor of"
    f" {differences['mass_factor']:g}. Below 0: options move less.",
    ("measure", "options − random"),
    {
      "kl": "KL renormalised (nats)",
      "kl_share": "share of KL (nats)",
      "one_minus_cos_p": "1 − cosine of p",
      "flip": "best one changed",
    },
    differences,
  )


def _kl_figure(tables) -> page.Figure:
  return page.Figure(
    name="kl",
    chart=maps.scatter_against_truth(
      tables["vocabulary"]["kl"],
      tables["options"]["kl"],
      x="KL of the vocabulary (nats)",
      y="KL of the options (nats)",
    ),
    caption="Each point is a question; below the line the renormalised"
    " options changed less than the vocabulary. The chain rule gives"
    " p(C)·KL of options C of one token ≤ KL of the vocabulary: where the"
    " options hold most of the probability, no point can lie far above"
    " the line, and only options of little probability test the claim.",
    alt="Scatter of KL of the options against KL of the vocabulary.",
  )


def _mass_figure(summary) -> page.Figure:
  entries = summary["by_mass"]
  log_mass = np.log10([entry["centre"] for entry in entries])
  return page.Figure(
    name="mass",
    chart=figures.lines(
      {
        NAMES[name]: figures.estimated(
          log_mass, [entry[f"{name}_kl"] for entry in entries]
        )
        for name in ("vocabulary", "options")
      },
      x="log₁₀ of the probability of all options under p",
      y="KL (nats)",
    ),
    caption="Mean KL by the probability that the dense model gives the"
    " options; band: 95 % interval over questions. At the left the"
    " options are in the tail.",
    alt="Lines of KL of vocabulary and options by option probability.",
  )


def _question_figure(tables, summary, text_of) -> page.Figure:
  question = summary["typical_question"]
  top, option = (
    {
      name: values[table["question"] == question]
      for name, values in table.items()
    }
    for table in (tables["top"], tables["option"])
  )
  return page.Figure(
    name="question",
    chart=figures.paired_bars(
      (
        "Most likely tokens",
        [repr(text_of(int(t)))[1:-1] for t in top["token"]],
        np.exp(top["score"]),
        np.exp(top["score_pruned"]),
        "probability",
      ),
      (
        "Options",
        [chr(65 + int(c)) if c < 26 else str(int(c)) for c in option["option"]],
        option["score"],
        option["score_pruned"],
        "log-probability (nats)",
      ),
    ),
    caption=f"Question {question}, whose KL is the median one: its most"
    " likely tokens, and the scores of its options (A is the first), dense"
    " and pruned.",
    alt="Two panels of bars, dense beside pruned: probabilities of the most"
    " likely tokens, log-probabilities of the options.",
  )
