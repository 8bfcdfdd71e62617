"""Records, scalars and the page of `transitions`."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, report
from jaxprune.calibration import prompts as prompts_lib
from jaxprune.probes import position
from jaxprune.probes.decoder import transitions
from jaxprune.report import figures, page
from jaxprune.studies import texts

PROTOCOL = "transitions"
SUBLAYERS = ("attention", "mlp")
SPACES = ("cos_h", "cos_z", "cos_z_centred", "cos_p")
MEASURES = (*SPACES, "kl", "kl_reverse", "rho_h", "rho_z", "flip")
# What is estimated, and by which field.
ESTIMATES = {
  "kl": "kl_estimate",
  "one_minus_cos_p": "one_minus_cos_p_estimate",
  "one_minus_cos_h": "one_minus_cos_h_estimate",
  "one_minus_cos_z": "one_minus_cos_z_estimate",
}
FIELDS = {
  "history": report.Field(
    "text",
    "",
    "whose keys and values pruned attention reads: dense, pruned or none",
  )
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How sublayers are replaced; the flags of `transitions`."""

  max_new_tokens: int
  temperature: float = 0.0
  analysis_temperature: float = 1.0
  lens: str = "final_norm"
  history: str = "dense"
  batch: int = 8
  seed: int = 0


def measure(
  dense: checkpoints.Source,
  pruned: checkpoints.Source | None,
  prompts: prompts_lib.Prompts,
  settings: Settings,
  run: report.RunFolder,
  progress: Any,
) -> None:
  """Continue every prompt and write a row per step, layer and sublayer."""
  if pruned is not None:
    transitions.check_replaceable(dense.config, pruned.config)
  config, params = checkpoints.load_params(dense, jnp.float32)
  other = (
    None
    if pruned is None
    else (checkpoints.load_params(pruned, jnp.float32)[1])
  )
  writing = texts.Writing(
    max_new_tokens=settings.max_new_tokens,
    temperature=settings.temperature,
    batch=settings.batch,
    seed=settings.seed,
  )
  measurement = transitions.Measurement(
    lens=settings.lens, history=settings.history
  )
  intervention = "dropped" if pruned is None else "pruned"
  for index, text in enumerate(
    texts.dense_texts(config, params, prompts.tokens, writing)
  ):
    records = transitions.compare_transitions(
      config,
      params,
      other,
      jnp.asarray(text.tokens),
      jnp.asarray(text.valid),
      measurement,
      num_steps=settings.max_new_tokens,
      temperature=settings.analysis_temperature,
    )
    run.write_all(_rows(records, text, settings, intervention))
    progress.step(index)


def _rows(records, text, settings, intervention):
  """Flat rows of one batch; steps after an end of text are left out."""
  leaves = {
    name: np.asarray(leaf) for name, leaf in position.fields_of(records).items()
  }
  common = {
    "protocol": PROTOCOL,
    "intervention": intervention,
    "history": settings.history,
    "lens": settings.lens,
    "analysis_temperature": settings.analysis_temperature,
  }
  for b, step in np.argwhere(text.alive):
    for layer in range(len(leaves["kl"])):
      for index, sublayer in enumerate(SUBLAYERS):
        yield (
          common
          | {
            "prompt": int(text.prompts[b]),
            "step": int(step),
            "layer": layer,
            "sublayer": sublayer,
          }
          | {name: leaf[layer, index, b, step] for name, leaf in leaves.items()}
        )


def summarise(
  table: dict[str, np.ndarray], settings: Settings
) -> dict[str, Any]:
  """Means of each sublayer over prompts and steps, and what follows."""
  by_sublayer = []
  for layer in np.unique(table["layer"]):
    for sublayer in SUBLAYERS:
      at = (table["layer"] == layer) & (table["sublayer"] == sublayer)
      entry = {"layer": int(layer), "sublayer": sublayer}
      for name in MEASURES:
        entry[name] = _spread(
          table[name][at].astype(float), table["prompt"][at], settings.seed
        )
      by_sublayer.append(entry)
  return {
    "protocol": PROTOCOL,
    "intervention": str(table["intervention"][0]),
    "history": settings.history,
    "lens": settings.lens,
    "analysis_temperature": settings.analysis_temperature,
    "prompts": len(np.unique(table["prompt"])),
    "positions": len(
      np.unique(np.stack([table["prompt"], table["step"]]), axis=1).T
    ),
    "by_sublayer": by_sublayer,
    "estimates": {
      truth: compare_estimate(table[truth], table[estimate])
      for truth, estimate in ESTIMATES.items()
    },
    "orderings": orderings(by_sublayer),
  }


def _spread(values, prompts, seed):
  """Mean, its interval over prompts, and range, of what is finite."""
  good = np.isfinite(values)
  if not good.any():
    return dict.fromkeys(("mean", "low", "high", "min", "max"), np.nan)
  mean = report.mean_interval(values[good], prompts[good], seed=seed)
  return {
    "mean": mean.estimate,
    "low": mean.low,
    "high": mean.high,
    "min": float(values[good].min()),
    "max": float(values[good].max()),
  }


def compare_estimate(truth: np.ndarray, estimate: np.ndarray) -> dict[str, Any]:
  """How well an estimate follows: ranks, ratio of sums, median ratio.

  Rows that are not finite are left out of everything, those whose truth is 0
  of the ratios. A correlation is None where it is undefined.
  """
  good = np.isfinite(truth) & np.isfinite(estimate)
  truth, estimate = truth[good], estimate[good]
  seen = truth > 0
  pearson, spearman = (
    _correlation(truth, estimate),
    _correlation(_ranks(truth), _ranks(estimate)),
  )
  return {
    "pearson": pearson,
    "spearman": spearman,
    "rows": len(truth),
    "rows_with_ratio": int(seen.sum()),
    "sum_ratio": float(estimate[seen].sum() / truth[seen].sum())
    if seen.any()
    else None,
    "median_ratio": float(np.median(estimate[seen] / truth[seen]))
    if seen.any()
    else None,
  }


def _ranks(values):
  """Ranks from 0; equal values share their mean rank."""
  _, place, count = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(count) - (count + 1) / 2)[place]


def _correlation(a, b):
  if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
    return None
  return float(np.corrcoef(a, b)[0, 1])


def orderings(by_sublayer) -> dict[str, Any]:
  """How many sublayers show the orders that the paper reports.

  Returns:
    Per kind of sublayer: counts over layers, and the rank correlation of depth
    with mean KL.
  """
  found = {}
  for sublayer in SUBLAYERS:
    own = [entry for entry in by_sublayer if entry["sublayer"] == sublayer]

    def mean(name, own=own):
      return np.array([entry[name]["mean"] for entry in own])

    depth = np.arange(len(own), dtype=float)
    found[sublayer] = {
      "layers": len(own),
      "cos_z_above_cos_h": int((mean("cos_z") > mean("cos_h")).sum()),
      "cos_z_centred_above_cos_h": int(
        (mean("cos_z_centred") > mean("cos_h")).sum()
      ),
      "cos_p_below_cos_z": int((mean("cos_p") < mean("cos_z")).sum()),
      "cos_p_below_cos_h": int((mean("cos_p") < mean("cos_h")).sum()),
      "rho_z_below_rho_h": int((mean("rho_z") < mean("rho_h")).sum()),
      "rank_correlation_depth_kl": _correlation(depth, _ranks(mean("kl"))),
    }
  return found


def headline(summary: dict[str, Any]) -> str:
  """The result in a few lines."""
  lines = [
    f"{summary['intervention']} one sublayer at a time,"
    f" {summary['positions']} positions of {summary['prompts']} prompts"
  ]
  for sublayer in SUBLAYERS:
    own = [
      entry for entry in summary["by_sublayer"] if entry["sublayer"] == sublayer
    ]
    means = {
      name: np.mean([entry[name]["mean"] for entry in own])
      for name in (*SPACES, "kl")
    }
    worst = max(own, key=lambda entry: entry["kl"]["mean"])
    lines.append(
      f"{sublayer}: mean over layers of cos_h {means['cos_h']:.4f}, cos_z"
      f" {means['cos_z']:.4f}, centred {means['cos_z_centred']:.4f}, cos_p"
      f" {means['cos_p']:.4f}, KL {means['kl']:.4g} nats; most KL in layer"
      f" {worst['layer']}, {worst['kl']['mean']:.4g}"
    )
  return "\n".join(lines)


def verdict(summary: dict[str, Any]) -> str:
  """What the numbers say, in plain words."""
  parts = [headline(summary).replace("\n", "\n\n")]
  for sublayer, found in summary["orderings"].items():
    layers = found["layers"]
    parts.append(
      f"{sublayer.capitalize()}: the logits turn less than the embeddings in"
      f" {found['cos_z_above_cos_h']} of {layers} layers"
      f" ({found['cos_z_centred_above_cos_h']} once the mean over the"
      " vocabulary is removed), the probabilities more than the logits in"
      f" {found['cos_p_below_cos_z']}."
    )
  kl, cos = summary["estimates"]["kl"], summary["estimates"]["one_minus_cos_p"]
  if kl["sum_ratio"] is not None and cos["sum_ratio"] is not None:
    parts.append(
      f"The sum of all estimates is {kl['sum_ratio']:.3g} times the sum of"
      f" KL and {cos['sum_ratio']:.3g} times that of 1 - cos(p, q)."
    )
  parts.append(
    "Each number belongs to one sublayer with everything else dense; how such"
    " changes add up over layers and steps is what `trajectories` measures."
  )
  return "\n\n".join(parts)


def draw(
  table: dict[str, np.ndarray], summary: dict[str, Any]
) -> dict[str, tuple[bytes, str, str]]:
  """Figures by name: PNG, caption, alternative text."""
  parts = [
    {name: values[table["sublayer"] == kind] for name, values in table.items()}
    for kind in SUBLAYERS
  ]

  def over(x, names, at=None):
    """Mean and range of fields over `x`, for attention and for MLP."""
    panels = []
    for part in parts:
      keep = slice(None) if at is None else part["layer"] == at
      panels.append(
        {
          name: figures.mean_and_range(part[x][keep], part[name][keep])
          for name in names
        }
      )
    return panels

  def bars(names):
    """Intervals of the means over prompts, from the summary."""
    panels = []
    for kind in SUBLAYERS:
      own = [
        entry for entry in summary["by_sublayer"] if entry["sublayer"] == kind
      ]
      panels.append(
        {
          name: figures.Series(
            **{"x": np.array([entry["layer"] for entry in own])}
            | {
              field: np.array([entry[name][key] for entry in own], float)
              for field, key in (
                ("y", "mean"),
                ("low", "low"),
                ("high", "high"),
              )
            }
          )
          for name in names
        }
      )
    return tuple(panels)

  layers = np.unique(table["layer"])
  middle, last = int(layers[len(layers) // 2]), int(layers[-1])
  drawn = {
    "cosines": (
      figures.lines_by_sublayer(*over("layer", SPACES), intervals=bars(SPACES)),
      "Cosine behind each sublayer that alone is changed (Fig 4 of the"
      " paper): mean over prompts and steps, band from least to greatest,"
      " bar: 95 % interval of the mean, resampling prompts.",
      "Two panels, attention and MLP: cosine of h, z, centred z and p by"
      " layer.",
    ),
    "kl_layers": (
      figures.lines_by_sublayer(
        *over("layer", ("kl", "kl_estimate")), y="nats", log_y=True
      ),
      "KL(p‖q) behind each sublayer and its estimate of Theorem 3.",
      "KL divergence and its estimate by layer, logarithmic.",
    ),
  }
  for layer in dict.fromkeys((middle, last)):
    for name, names, y, words in (
      (
        "relative_change",
        ("rho_h", "rho_z"),
        "relative change across",
        "Relative orthogonal magnitude of h and z (Fig 5)",
      ),
      (
        "kl",
        ("kl", "kl_estimate"),
        "nats",
        "KL(p‖q) and its estimate (Figs 6 and 14)",
      ),
      (
        "cos_p",
        ("one_minus_cos_p", "one_minus_cos_p_estimate"),
        "1 − cosine of p",
        "1 - cos(p, q) and its estimate (Figs 6 and 15)",
      ),
      (
        "variances",
        ("var_uniform", "var_r", "var_p"),
        "logits²",
        "Variance of Δz over the vocabulary, under r and under p (Fig 19)",
      ),
    ):
      drawn[f"{name}_layer_{layer}"] = (
        figures.lines_by_sublayer(
          *over("step", names, layer), x="step", y=y, log_y=True
        ),
        f"{words} by decoding step, layer {layer}: mean over prompts, band"
        " from least to greatest.",
        f"Two panels, attention and MLP of layer {layer}: {words}, by step.",
      )
  for truth in ("kl", "one_minus_cos_p"):
    drawn[f"{truth}_estimate"] = (
      figures.scatter_against_truth(
        table[truth], table[ESTIMATES[truth]], x=truth, y=ESTIMATES[truth]
      ),
      "Estimate against truth, every prompt, step and sublayer; on the line"
      " it is exact.",
      "Scatter of estimated against true values with the identity line.",
    )
  return drawn


def write_page(run, description, table, summary, settings) -> None:
  """Figures and report.html."""
  drawn = draw(table, summary)
  for name, (png, _, _) in drawn.items():
    run.write_figure(name, png)

  def shown(keep):
    return [
      page.Figure(png=png, caption=caption, alt=alt)
      for name, (png, caption, alt) in drawn.items()
      if keep(name)
    ]

  cells = [
    (
      f"{entry['sublayer']} {entry['layer']}",
      *(entry[name]["mean"] for name in (*SPACES, "kl")),
      entry["kl"]["max"],
      entry["cos_p"]["min"],
    )
    for entry in summary["by_sublayer"]
  ]
  fits = [
    (
      report.axis_label(truth),
      *(
        found[key]
        for key in ("sum_ratio", "median_ratio", "pearson", "spearman", "rows")
      ),
    )
    for truth, found in summary["estimates"].items()
  ]
  run.write_page(
    page.render_page(
      title="One sublayer at a time",
      verdict=verdict(summary),
      sections=[
        page.Section(
          title="By layer",
          figures=shown(lambda name: name in ("cosines", "kl_layers")),
          tables=[
            page.Table(
              caption="Means over prompts and steps.",
              columns=(
                "sublayer",
                "cosine of h",
                "z",
                "centred z",
                "p",
                "KL (nats)",
                "largest KL",
                "least cosine of p",
              ),
              rows=cells,
            )
          ],
        ),
        page.Section(
          title="By decoding step",
          figures=shown(lambda name: "_layer_" in name),
        ),
        page.Section(
          title="Estimates against truth",
          figures=shown(lambda name: name.endswith("_estimate")),
          tables=[
            page.Table(
              caption="Over every prompt, step and sublayer. Ratios are"
              " estimate over truth.",
              columns=(
                "truth",
                "ratio of sums",
                "median ratio",
                "Pearson",
                "Spearman",
                "rows",
              ),
              rows=fits,
            )
          ],
        ),
      ],
      run=description,
      protocol={
        "Protocol": "one sublayer changed, residual stream and cache dense",
        "Change": summary["intervention"],
        "Keys and values of earlier tokens": settings.history,
        "Prompts": summary["prompts"],
        "Steps": settings.max_new_tokens,
        "Sampling temperature (0 is greedy)": settings.temperature,
        "Analysis temperature T": settings.analysis_temperature,
        "Lens": settings.lens,
      },
    )
  )
