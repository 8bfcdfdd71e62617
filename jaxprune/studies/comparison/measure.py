"""Two models, the same tokens: records, scalars and the page of a comparison.

Shared by `trajectories` and `quickstart`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, report
from jaxprune.calibration import batching
from jaxprune.calibration import prompts as prompts_lib
from jaxprune.models import generation
from jaxprune.probes.decoder import sequences
from jaxprune.report import figures, page
from jaxprune.studies.comparison import breakdown
from jaxprune.studies.comparison import decoding as lanes_lib

PROTOCOL = lanes_lib.TEACHER_FORCED
SUBLAYERS = ("attention", "mlp")
# What the summary says of every position, in this order.
MEASURES = (
  "cos_h",
  "cos_z",
  "cos_z_centred",
  "cos_p",
  "kl",
  "kl_reverse",
  "tv",
  "flip",
  "kl_estimate",
  "one_minus_cos_p_estimate",
  "entropy",
  "entropy_pruned",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How two models are compared; the flags of `trajectories`."""

  max_new_tokens: int
  temperature: float = 0.0
  analysis_temperature: float = 1.0
  lens: str = "final_norm"
  batch: int = 8
  seed: int = 0
  num_seeds: int = 1  # texts per prompt, from `seed` on


def compare(
  dense: checkpoints.Source,
  pruned: checkpoints.Source,
  prompts: prompts_lib.Prompts,
  settings: Settings,
  run: report.RunFolder,
  progress: Any,
  protocols: tuple[str, ...] = (PROTOCOL,),
) -> None:
  """Continue every prompt with the dense model and write what both say."""
  sequences.check_same_shape(dense.config, pruned.config)
  config, params = checkpoints.load_params(dense, jnp.float32)
  pruned_config, pruned_params = checkpoints.load_params(pruned, jnp.float32)
  lanes = lanes_lib.lanes_of(protocols)
  # All prompts are padded to one length: one compilation for all batches.
  tokens_XT, valid_XT = prompts_lib.left_pad(prompts.tokens, config.pad_id or 0)
  parts = list(batching.batches(len(tokens_XT), settings.batch))
  for index in range(settings.num_seeds * len(parts)):
    seed = settings.seed + index // len(parts)
    pick, size = parts[index % len(parts)]
    start = int(pick[0])
    tokens_BT, valid_BT = jnp.asarray(tokens_XT[pick]), valid_XT[pick]
    common = [
      {
        "prompt": start + b,
        "seed": seed,
        "position": len(prompts.tokens[start + b]) - 1,
        "analysis_temperature": settings.analysis_temperature,
      }
      for b in range(size)
    ]
    key = jax.random.fold_in(jax.random.key(seed), start)
    if lanes:
      run.write_all(
        lanes_lib.lane_rows(
          sequences.compare_lanes(
            config,
            params,
            pruned_params,
            tokens_BT,
            jnp.asarray(valid_BT),
            lanes,
            num_steps=settings.max_new_tokens,
            key=key,
            eos_ids=config.eos_ids,
            sampling_temperature=settings.temperature,
            temperature=settings.analysis_temperature,
          ),
          common,
        )
      )
    if PROTOCOL in protocols:
      run.write_all(
        _rows(
          *one_pass(
            (config, params),
            (pruned_config, pruned_params),
            tokens_BT,
            valid_BT,
            key,
            settings,
          ),
          common,
          settings,
        )
      )
    progress.step(index)


def one_pass(dense, pruned, tokens_BT, valid_BT, key, settings):
  """Let the dense model continue prompts and both models read its text.

  Args:
    dense: config and parameters.
    pruned: likewise.
    tokens_BT: prompts, int [B, T], left-padded; B is `settings.batch`.
    valid_BT: False for padding, bool [B, T].
    key: of the draws.
    settings: how.

  Returns:
    As `drivers.compare_sequences`, leaves [L, 2, B, steps] and [B, steps], and
    the steps of each text that count, int [B].
  """
  steps, last = settings.max_new_tokens, tokens_BT.shape[1] - 1
  text = generation.generate(
    *dense,
    tokens_BT,
    valid_BT=jnp.asarray(valid_BT),
    max_new_tokens=steps,
    sampling=generation.Sampling(temperature=settings.temperature),
    key=key,
  )
  # The last token is a prediction of the last step and is never read.
  read_BT = jnp.concatenate([tokens_BT, text.tokens[:, :-1]], axis=1)
  valid_BT = np.pad(valid_BT, ((0, 0), (0, steps - 1)), constant_values=True)
  rows_BR = np.broadcast_to(last + np.arange(steps), (settings.batch, steps))
  inner, output = sequences.compare_sequences(
    *dense,
    *pruned,
    read_BT,
    jnp.asarray(valid_BT),
    jnp.asarray(rows_BR),
    temperature=settings.analysis_temperature,
    lens=settings.lens,
  )
  return inner, output, np.asarray(text.lengths)


def _rows(inner, output, lengths, common, settings):
  """Flat rows of one batch; steps after an end of text are left out."""
  inner, output = (
    {
      f.name: np.asarray(getattr(tree, f.name))
      for f in dataclasses.fields(tree)
    }
    for tree in (inner, output)
  )
  layers = inner["kl"].shape[0]
  for b, text in enumerate(common):
    for step in range(int(lengths[b])):
      place = text | {
        "protocol": PROTOCOL,
        "step": step,
        "position": text["position"] + step,
      }
      yield place | {name: leaf[b, step] for name, leaf in output.items()}
      for layer in range(layers):
        for index, sublayer in enumerate(SUBLAYERS):
          yield (
            place
            | {"layer": layer, "sublayer": sublayer, "lens": settings.lens}
            | {
              name: leaf[layer, index, b, step] for name, leaf in inner.items()
            }
          )


def summarise(folder, settings: Settings) -> dict[str, Any]:
  """Means over prompts and steps, with intervals over prompts."""
  table, inner = _tables(folder)
  output = {}
  for name in MEASURES:
    interval = report.mean_interval(
      table[name].astype(float), table["prompt"], seed=settings.seed
    )
    output[name] = {
      "mean": interval.estimate,
      "low": interval.low,
      "high": interval.high,
      "median": float(np.median(table[name])),
      "min": float(np.min(table[name])),
      "max": float(np.max(table[name])),
    }
  by_layer = [
    {"layer": int(layer), "sublayer": sublayer}
    | {
      name: float(
        np.mean(
          inner[name][
            (inner["layer"] == layer) & (inner["sublayer"] == sublayer)
          ]
        )
      )
      for name in ("cos_h", "cos_z", "cos_z_centred", "cos_p", "kl")
    }
    for layer in np.unique(inner["layer"])
    for sublayer in SUBLAYERS
  ]
  return {
    "protocol": PROTOCOL,
    "lens": settings.lens,
    "analysis_temperature": settings.analysis_temperature,
    "prompts": len(np.unique(table["prompt"])),
    "positions": len(table["kl"]),
    "output": output,
    "by_layer": by_layer,
  }


def _tables(folder):
  """Columns of the output rows, and of the inner ones."""
  rows = report.read_records(folder)
  rows = [row for row in rows if row.get("protocol") == PROTOCOL]
  return (
    report.columns([row for row in rows if "layer" not in row]),
    report.columns([row for row in rows if "layer" in row]),
  )


def summarise_texts(folder, settings: Settings) -> dict[str, Any]:
  """`lanes` and `breakdown`: the texts by lane, step, length and entropy."""
  table, _ = _tables(folder)
  return {
    "lanes": lanes_lib.summarise_lanes(folder, seed=settings.seed),
    "breakdown": {
      PROTOCOL: breakdown.break_down(table, seed=settings.seed),
      **lanes_lib.break_down_lanes(folder, seed=settings.seed),
    },
  }


def headline(summary: dict[str, Any]) -> str:
  """The comparison in one line."""
  said = {
    name: f"{entry['mean']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]"
    for name, entry in summary["output"].items()
  }
  return (
    f"output over {summary['positions']} positions of {summary['prompts']}"
    f" prompts, mean [95 %]: cos_h {said['cos_h']}, cos_z {said['cos_z']},"
    f" centred {said['cos_z_centred']}, cos_p {said['cos_p']},"
    f" KL {said['kl']} nats, argmax changed {said['flip']}"
  )


def verdict(summary: dict[str, Any]) -> str:
  """What the numbers say, in plain words; thresholds are not claimed."""
  output = summary["output"]
  space = {name: 1 - output[f"cos_{name}"]["mean"] for name in "hzp"}
  space["centred z"] = 1 - output["cos_z_centred"]["mean"]
  order = sorted(space, key=space.get, reverse=True)
  ranked = ", ".join(f"{name} {space[name]:.3g}" for name in order)
  steps = output["kl"]
  return (
    f"At the output, teacher-forced over {summary['positions']} positions of"
    f" {summary['prompts']} prompts, the largest deviation is in {order[0]}"
    f" (1 - cosine, mean: {ranked}).\n\nThe most likely token changes at"
    f" {100 * output['flip']['mean']:.1f} % of the positions, and KL(p‖q) is"
    f" {steps['mean']:.3g} nats on average, {steps['median']:.3g} in the"
    f" median and {steps['max']:.3g} at worst.\n\nEach changed token would"
    " send free-running text another way; this comparison keeps both models"
    " on the same tokens, so it shows the damage at each position and not"
    " how it adds up."
  )


def report_sections(run: report.RunFolder) -> list[page.Section]:
  """Tables and figures of a comparison; the figures are also written."""
  table, inner = _tables(run.folder)
  seed = 0
  rows = []
  for name in MEASURES:
    values = table[name].astype(float)
    rows.append(
      (
        report.axis_label(name),
        report.mean_interval(values, table["prompt"], seed=seed),
        float(np.median(values)),
        float(values.min()),
        float(values.max()),
      )
    )
  spaces = ("cos_h", "cos_z", "cos_z_centred", "cos_p")

  def by(names, x, columns):
    return {n: figures.mean_and_range(columns[x], columns[n]) for n in names}

  drawn = {}
  drawn["steps"] = (
    figures.lines(by(spaces, "step", table), x="step"),
    "Cosine between the two models at the output: mean over prompts, band"
    " from least to greatest.",
    "Lines of the cosine of h, z, centred z and p over decoding steps.",
  )
  sub = {
    kind: {
      name: values[inner["sublayer"] == kind] for name, values in inner.items()
    }
    for kind in SUBLAYERS
  }
  drawn["layers"] = (
    figures.lines_by_sublayer(
      *(by(spaces, "layer", sub[kind]) for kind in SUBLAYERS)
    ),
    "Cosine after every attention and every MLP: mean over prompts and steps,"
    " band from least to greatest. The pruned model runs on its own inner"
    " states, so damage adds up over the layers.",
    "Two panels, attention and MLP: cosine of h, z, centred z and p by layer.",
  )
  drawn["kl_layers"] = (
    figures.lines_by_sublayer(
      *(by(("kl", "kl_estimate"), "layer", sub[kind]) for kind in SUBLAYERS),
      y="nats",
      log_y=True,
    ),
    "KL(p‖q) after every sublayer and its estimate of Theorem 3.",
    "KL divergence and its estimate by layer, logarithmic.",
  )
  drawn["kl_estimate"] = (
    figures.scatter_against_truth(
      table["kl"], table["kl_estimate"], x="kl", y="kl_estimate"
    ),
    "Theorem 3 at the output: the estimate of KL against its value; on the"
    " line it is exact.",
    "Scatter of estimated against true KL with the identity line.",
  )
  drawn["cos_p_estimate"] = (
    figures.scatter_against_truth(
      1 - table["cos_p"],
      table["one_minus_cos_p_estimate"],
      x="one_minus_cos_p",
      y="one_minus_cos_p_estimate",
    ),
    "Theorem 2 at the output: the estimate of 1 - cos(p, q) against its value.",
    "Scatter of estimated against true 1 - cosine of p with the identity.",
  )
  heat = np.full((inner["layer"].max() + 1, inner["step"].max() + 1), np.nan)
  mlp = sub["mlp"]
  for layer in range(heat.shape[0]):
    for step in range(heat.shape[1]):
      values = mlp["kl"][(mlp["layer"] == layer) & (mlp["step"] == step)]
      heat[layer, step] = values.mean() if values.size else np.nan
  drawn["kl_map"] = (
    figures.heat_map(heat, value="kl", log=True),
    "KL(p‖q) after each layer at each step, mean over prompts.",
    "Heat map of KL by layer and decoding step.",
  )
  for name, (png, _, _) in drawn.items():
    run.write_figure(name, png)

  def shown(*names):
    return [
      page.Figure(png=drawn[n][0], caption=drawn[n][1], alt=drawn[n][2])
      for n in names
    ]

  return [
    page.Section(
      title="At the output",
      tables=[
        page.Table(
          caption="Every position counts alike; intervals of the mean are"
          " 95 %, resampling prompts.",
          columns=("measure", "mean", "median", "least", "greatest"),
          rows=rows,
        )
      ],
      figures=shown("steps", "kl_estimate", "cos_p_estimate"),
    ),
    page.Section(
      title="Through the layers", figures=shown("layers", "kl_layers", "kl_map")
    ),
  ]


def _task_sections(summary) -> list[page.Section]:
  tasks = summary.get("tasks")
  if not tasks:
    return []
  return [
    page.Section(
      title="On the tasks",
      tables=[
        page.Table(
          caption="Held-out items of the pocket model's world, whose facts the"
          " same model chooses, retrieves or writes out.",
          columns=("task", "measure", "items", "dense", "pruned"),
          rows=[
            (
              name,
              entry["metric"],
              entry["count"],
              entry["reference"],
              f"{page.format_number(entry['value'])}"
              f" [{page.format_number(entry['low'])},"
              f" {page.format_number(entry['high'])}]",
            )
            for name, entry in tasks.items()
          ],
        )
      ],
    )
  ]


def protocol_of(summary: dict[str, Any], settings: Settings) -> dict[str, Any]:
  """What a reader needs to compare the numbers, beside run.json."""
  return {
    "Protocol": "teacher-forced on the dense model's continuation",
    "Prompts": summary["prompts"],
    "Steps": settings.max_new_tokens,
    "Texts of each prompt (seeds)": settings.num_seeds,
    "Sampling temperature (0 is greedy)": settings.temperature,
    "Analysis temperature T": settings.analysis_temperature,
    "Lens of inner layers": settings.lens,
  }


def write_report(run, description, summary, settings) -> None:
  """Figures and report.html of a comparison."""
  run.write_page(
    page.render_page(
      title="Dense against pruned, teacher-forced",
      verdict=verdict(summary),
      sections=(
        _task_sections(summary)
        + report_sections(run)
        + lanes_lib.sections(summary.get("lanes", {}))
        + breakdown.sections(run, summary.get("breakdown", {}))
      ),
      run=description,
      protocol=protocol_of(summary, settings),
    )
  )
