"""What the options of many questions say: scalars, figures and the page."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.report import figures, page
from jaxprune.studies.subspace.measure import Settings

SETS = ("vocabulary", "options", "option_tokens", "random")
NAMES = {
  "vocabulary": "whole vocabulary",
  "options": "options, renormalised",
  "option_tokens": "their first tokens, renormalised",
  "random": "random tokens, renormalised",
}
MEASURES = (
  "cos_p",
  "kl",
  "kl_share",
  "tv",
  "flip",
  "certified",
  "mass",
  "mass_pruned",
  "score_margin",
  "score_change",
)
# A random set counts as one of the same mass up to this factor.
MASS_FACTOR = 2.0
_BINS = 5


def tables(folder) -> dict[str, dict[str, np.ndarray]]:
  """Columns of the rows of each token set, and of single options."""
  rows = report.read_records(folder)
  kinds = {name: [] for name in (*SETS, "top", "option")}
  for row in rows:
    kinds["option" if "option" in row else row["token_set"]].append(row)
  return {name: report.columns(kind) for name, kind in kinds.items()}


def summarise(folder, settings: Settings) -> dict[str, Any]:
  """Means over questions, with intervals over questions."""
  found = tables(folder)
  options, whole = found["options"], found["vocabulary"]
  seed = settings.seed
  kept, kept_whole = ~options["flip"], ~whole["flip"]
  pairs = options["count"] * (options["count"] - 1) / 2
  log_change = found["option"]["score_pruned"] - found["option"]["score"]

  def mean(values, questions=options["question"]):
    return _entry(values, questions, seed)

  return {
    "questions": len(options["question"]),
    "answer_as": settings.answer_as,
    "analysis_temperature": settings.analysis_temperature,
    "sets": {
      name: {
        measure: _entry(table[measure], table["question"], seed)
        for measure in MEASURES
        if measure in table
      }
      for name, table in found.items()
      if name in SETS
    },
    "accuracy": mean(options["correct"]),
    "accuracy_pruned": mean(options["correct_pruned"]),
    "kept_among_options": mean(kept),
    "kept_in_vocabulary": mean(kept_whole),
    "kept_difference": mean(kept.astype(float) - kept_whole),
    "kl_difference": mean(options["kl"] - whole["kl"]),
    "discordant_pairs": mean(options["discordant"] / pairs),
    "order_kept": mean(options["discordant"] == 0),
    "abs_score_change": mean(np.abs(log_change), found["option"]["question"]),
    "against_random": _against_random(found, seed),
    "by_mass": _by_mass(found, seed),
  }


def _entry(values, questions, seed) -> dict[str, Any]:
  """Mean with its interval; rows that are not finite are counted apart."""
  values = np.asarray(values, np.float64)
  good = np.isfinite(values)
  if not good.any():
    return {
      "mean": None,
      "low": None,
      "high": None,
      "median": None,
      "not_finite": int((~good).sum()),
    }
  found = report.mean_interval(values[good], questions[good], seed=seed)
  return {
    "mean": found.estimate,
    "low": found.low,
    "high": found.high,
    "median": float(np.median(values[good])),
    "not_finite": int((~good).sum()),
  }


def _paired(found):
  """Means over the random sets of a question, and which are of equal mass."""
  own, drawn = found["option_tokens"], found["random"]
  at = np.searchsorted(own["question"], drawn["question"])
  with np.errstate(divide="ignore", invalid="ignore"):
    ratio = np.abs(np.log(drawn["mass"] / own["mass"][at]))
  matched = ratio <= np.log(MASS_FACTOR) * (1 + 1e-6)
  count = np.bincount(at[matched], minlength=len(own["question"]))

  def mean_of(measure):
    values = np.where(matched, drawn[measure], 0)
    total = np.bincount(at, values, minlength=len(count))
    return total / np.maximum(count, 1)

  # Questions whose options are one token have nothing to compare.
  return own, mean_of, (count > 0) & (own["count"] > 1)


def _against_random(found, seed) -> dict[str, Any]:
  """First tokens of the options less random sets of the same mass, paired."""
  own, mean_of, usable = _paired(found)
  result = {"mass_factor": MASS_FACTOR, "questions": int(usable.sum())}
  if usable.any():
    for measure in ("kl", "kl_share", "one_minus_cos_p", "flip"):
      result[measure] = _entry(
        (own[measure] - mean_of(measure))[usable], own["question"][usable], seed
      )
  return result


def _by_mass(found, seed) -> list[dict[str, Any]]:
  """Damage by the probability that the dense model gives the options."""
  options, whole = found["options"], found["vocabulary"]
  # Probabilities of whole answers span many powers of ten.
  log_mass = np.log10(np.maximum(options["mass"], np.finfo(np.float32).tiny))
  edges = report.quantile_edges(log_mass, _BINS)
  place = report.bin_index(log_mass, edges)
  return [
    {
      "low": 10 ** edges[index],
      "high": 10 ** edges[index + 1],
      "centre": float(10 ** log_mass[place == index].mean()),
      "questions": int((place == index).sum()),
    }
    | {
      f"{name}_{measure}": _entry(
        table[measure][place == index], table["question"][place == index], seed
      )
      for name, table in (("options", options), ("vocabulary", whole))
      for measure in ("kl", "one_minus_cos_p", "flip")
    }
    for index in np.unique(place)
  ]


def headline(summary: dict[str, Any]) -> str:
  """The comparison in one line."""

  def said(entry):
    if entry["mean"] is None:
      return "-"
    return f"{entry['mean']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]"

  sets = summary["sets"]
  return (
    f"{summary['questions']} questions, mean [95 %]: KL of the options"
    f" {said(sets['options']['kl'])}, of the vocabulary"
    f" {said(sets['vocabulary']['kl'])} nats; argmax kept among options"
    f" {said(summary['kept_among_options'])}, in the vocabulary"
    f" {said(summary['kept_in_vocabulary'])}; accuracy dense"
    f" {said(summary['accuracy'])}, pruned"
    f" {said(summary['accuracy_pruned'])}"
  )


def verdict(summary: dict[str, Any]) -> str:
  """What the numbers say; it may come out either way."""
  kl, share = summary["kl_difference"], summary["sets"]["options"]
  if kl["mean"] is None or not np.isfinite(kl["low"]):
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
    less = "less" if random["kl"]["mean"] < 0 else "more"
    second = (
      f"The option tokens move {less} than random tokens of the same"
      " probability."
    )
  return (
    f"{first} {second}\n\nThe best option stays the best in"
    f" {100 * summary['kept_among_options']['mean']:.1f} % of"
    f" {summary['questions']} questions, the most likely token of the"
    f" vocabulary in {100 * summary['kept_in_vocabulary']['mean']:.1f} %. The"
    " margin guarantees the best option in"
    f" {100 * share['certified']['mean']:.1f} %.\n\nAccuracy is"
    f" {100 * summary['accuracy']['mean']:.1f} % dense and"
    f" {100 * summary['accuracy_pruned']['mean']:.1f} % pruned. The order of"
    " the options is unchanged in"
    f" {100 * summary['order_kept']['mean']:.1f} %; a score moves by"
    f" {summary['abs_score_change']['mean']:.3g} nats on average."
  )


def write_report(
  run: report.RunFolder,
  description: dict[str, Any],
  summary: dict[str, Any],
  settings: Settings,
  text_of: Callable[[int], str],
) -> None:
  """Figures and report.html."""
  found = tables(run.folder)
  drawn = _figures(found, summary, text_of)
  for name, figure in drawn.items():
    run.write_figure(name, figure.png)
  run.write_page(
    page.render_page(
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
          tables=[_set_table(found, summary)],
          figures=[drawn["kl"], drawn["mass"]],
        ),
        page.Section(
          title="Against random tokens of the same probability",
          tables=_random_tables(summary),
        ),
        page.Section(title="One question", figures=[drawn["question"]]),
      ],
      run=description,
      protocol={
        "Questions": summary["questions"],
        "Answered as": settings.answer_as,
        "Cue": settings.cue if settings.answer_as == "letter" else None,
        "Analysis temperature T": settings.analysis_temperature,
        "Random sets of each question": settings.num_subsets,
      },
    )
  )


def _interval(entry):
  """A stored entry as a table cell."""
  if entry is None or entry["mean"] is None:
    return None
  return report.Interval(
    estimate=entry["mean"],
    low=_nan(entry["low"]),
    high=_nan(entry["high"]),
    level=0.95,
    prompts=0,
    rows=0,
    resamples=0,
    seed=0,
    method="bca",
  )


def _nan(value):
  return np.nan if value is None else value


def _set_table(found, summary) -> page.Table:
  rows = []
  for name in SETS:
    entry = summary["sets"][name]
    rows.append(
      (
        NAMES[name],
        *(
          _interval(entry.get(measure))
          for measure in (
            "mass",
            "kl",
            "kl_share",
            "cos_p",
            "flip",
            "certified",
          )
        ),
      )
    )
  return page.Table(
    caption="Means over questions with 95 % intervals. Share of KL is what a"
    " set adds to KL(p‖q) of the vocabulary, not renormalised. Certified:"
    " the margin exceeds the largest change of a difference, so that the"
    " best one is safe.",
    columns=(
      "token set",
      "probability",
      "KL (nats)",
      "share of KL (nats)",
      "cosine of p",
      "best one changed",
      "certified",
    ),
    rows=rows,
  )


def _random_tables(summary) -> list[page.Table]:
  found = summary["against_random"]
  labels = {
    "kl": "KL renormalised (nats)",
    "kl_share": "share of KL (nats)",
    "one_minus_cos_p": "1 − cosine of p",
    "flip": "best one changed",
  }
  rows = [
    (label, _interval(found[name]))
    for name, label in labels.items()
    if name in found
  ]
  return [
    page.Table(
      caption="First tokens of the options less the mean of random sets,"
      f" paired, over the {found['questions']} questions that have a random"
      f" set of the same probability within a factor {MASS_FACTOR:g}. Below 0:"
      " options move less.",
      columns=("measure", "options − random"),
      rows=rows,
    )
  ]


def _figures(found, summary, text_of) -> dict[str, page.Figure]:
  options, whole = found["options"], found["vocabulary"]

  def by_mass(name, measure):
    entries = [
      (np.log10(one["centre"]), one[f"{name}_{measure}"])
      for one in summary["by_mass"]
    ]
    x, mean, low, high = (
      np.array([_nan(c if part == "x" else e[part]) for c, e in entries], float)
      for part in ("x", "mean", "low", "high")
    )
    return figures.Series(x=x, y=mean, low=low, high=high)

  question = _typical(found)
  return {
    "kl": page.Figure(
      png=figures.scatter_against_truth(
        whole["kl"],
        options["kl"],
        x="KL of the vocabulary (nats)",
        y="KL of the options (nats)",
      ),
      caption="Each point is a question; below the line the renormalised"
      " options changed less than the vocabulary. The chain rule gives"
      " p(C)·KL of options C of one token ≤ KL of the vocabulary: where the"
      " options hold most of the probability, no point can lie far above"
      " the line, and only options of little probability test the claim.",
      alt="Scatter of KL of the options against KL of the vocabulary.",
    ),
    "mass": page.Figure(
      png=figures.lines(
        {
          NAMES[name]: by_mass(name, "kl") for name in ("vocabulary", "options")
        },
        x="log₁₀ of the probability of all options under p",
        y="KL (nats)",
      ),
      caption="Mean KL by the probability that the dense model gives the"
      " options; band: 95 % interval over questions. At the left the"
      " options are in the tail.",
      alt="Lines of KL of vocabulary and options by option probability.",
    ),
    "question": _question_figure(found, question, text_of),
  }


def _typical(found) -> int:
  """The question whose KL of the vocabulary is the median one."""
  order = np.argsort(found["vocabulary"]["kl"], kind="stable")
  return int(found["vocabulary"]["question"][order[len(order) // 2]])


def _question_figure(found, question, text_of) -> page.Figure:
  top, option = (
    {
      name: values[table["question"] == question]
      for name, values in table.items()
    }
    for table in (found["top"], found["option"])
  )
  return page.Figure(
    png=figures.paired_bars(
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
