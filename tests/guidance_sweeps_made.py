"""Sweeps as `experiments.discrepancy` writes them, from made-up damage."""

import json

import numpy as np

POSITIONS = [(prompt, step) for prompt in range(4) for step in range(5)]


def measurements(damage, flips):
  """Columns whose deviations are all `damage`, with `flips` flipped steps."""
  count = len(POSITIONS)
  same = np.full(count, float(damage))
  return {
    "prompt": [prompt for prompt, _ in POSITIONS],
    "step": [step for _, step in POSITIONS],
    "cos_h": (1 - same / 100).tolist(),
    "cos_z": (1 - same / 50).tolist(),
    "cos_z_centred": (1 - same / 40).tolist(),
    "cos_p": (1 - same / 20).tolist(),
    "kl": same.tolist(),
    "var_p": (same**2).tolist(),
    "rms_dz": same.tolist(),
    "max_abs_dz": (2 * same).tolist(),
    "margin": [2.0] * count,
    "flip": [index < flips for index in range(count)],
    "tv": (same / 20).tolist(),
    "entropy": [1.0] * count,
    "one_minus_cos_h": (same / 100).tolist(),
    "one_minus_cos_z_centred": (same / 40).tolist(),
    "one_minus_cos_p": (same / 20).tolist(),
  }


def write_configuration(
  folder, name, configuration, seed, damage, right, items=20
):
  """`right` of `items` answers are right; nll grows with damage."""
  tasks = {
    "choose": {
      "columns": {"acc": [1.0] * right + [0.0] * (items - right)},
      "weights": None,
    },
    "text": {
      "columns": {"nll": [5.0 * (1 + damage)] * 3},
      "weights": [5.0] * 3,
    },
    "easy": {
      "columns": {"length": [4.0] * 3, "ndcg@10": [1.0] * 3},
      "weights": None,
    },
  }
  content = {
    "configuration": configuration,
    "seed": seed,
    "removed": 0.5,
    "tasks": tasks,
  }
  if configuration != "dense":
    content["measurements"] = measurements(damage, min(int(10 * damage), 20))
  (folder / "configurations").mkdir(parents=True, exist_ok=True)
  (folder / "configurations" / f"{name}.json").write_text(json.dumps(content))


def write_dense(folder, dense="aaaa", right=20):
  """The score of a dense model, and what the scores are scores of."""
  write_configuration(folder, "dense", "dense", 0, 0.0, right)
  (folder / "configurations" / "job.json").write_text(
    json.dumps(
      {
        "checkpoint_hash": dense,
        "model": "made",
        "calibration": "made",
        "num_samples": 4,
        "seq_len": 8,
      }
    )
  )


def write_sweep(folder, dense="aaaa", shift=0.0):
  """Six methods, two seeds, three amounts; `choose` dies at damage 0.3.

  Returns the folder. magnitude and rtn look at no data: one seed, 30 models.
  """
  write_dense(folder, dense)
  methods = {
    "magnitude": ("0.2", "0.5", "0.7"),
    "wanda": ("0.2", "0.5", "2:4"),
    "sparsegpt": ("0.2", "0.5", "0.7"),
    "rtn": ("8", "4", "3"),
    "drop_attention": ("1", "2", "4"),
    "drop_mlp": ("1", "2", "4"),
  }
  for place, (method, amounts) in enumerate(methods.items()):
    for seed in (0,) if method in ("magnitude", "rtn") else (0, 1):
      for level, amount in enumerate(amounts):
        damage = (0.05, 0.2, 0.5)[level] + 0.01 * place + 0.002 * seed + shift
        name = f"{method}_{amount.replace(':', 'of')}-seed{seed}"
        write_configuration(
          folder,
          name,
          f"{method}:{amount}",
          seed,
          damage,
          20 if damage < 0.3 else 10,
        )
  return folder
