"""Every number of the official layer-wise log, by the matching switches.

The official script reads layers out raw, calls the pruned side p, and projects
on the dense side. At step 0 its pruned attention reads keys of the pruned
weights (`history="pruned"`), later it reads nothing but the current token
(`history="none"`); the dense history of the paper is in neither.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import checkpoints
from jaxprune.models import generation
from jaxprune.probes import transitions
from jaxprune.probes.decoder import transitions as decoder_transitions
from jaxprune.probes.position import compare_position

pytestmark = pytest.mark.slow


def vectors(h, g, z, y, temperature):
  """What is compared; reduced later, in one compilation for all histories."""
  del temperature
  return h, g, z, y


def both_sides(h, g, z, y):
  """Dense as base, pruned as base, and medians over the vocabulary."""
  forth, back = compare_position(h, g, z, y), compare_position(g, h, y, z)
  dz_V, along_V = y - z, forth.alpha_z * z

  def median(x_V):  # the lower of the two in the middle, as in PyTorch
    return jnp.sort(x_V)[(x_V.size - 1) // 2]

  return (
    {
      "emb sim": forth.cos_h,
      "head sim": forth.cos_z,
      "vocab sim": forth.cos_p,
      "REAL_KL": back.kl,
      "KL_estimate": back.kl_estimate,
      "REAL(1-cos)": 1 - forth.cos_p,
      "1-cos_estimate": back.one_minus_cos_p_estimate,
      "Uniform_Var": forth.var_uniform,
      "top5 z_orig_median": median(z),
      "top5 z_post_median": median(y),
      "top5 dz_median": median(jnp.abs(dz_V)),
      "top5 dz_para_median": median(jnp.abs(along_V)),
      "top5 dz_perp_median": median(jnp.abs(dz_V - along_V)),
    }
    | {
      f"{space.upper()}_{name}": value
      for space in "hz"
      for name, value in (
        ("real(1-cos)", 1 - getattr(forth, f"cos_{space}")),
        ("para_rel", jnp.abs(getattr(forth, f"alpha_{space}"))),
        ("orth_rel", getattr(forth, f"rho_{space}")),
        (
          "ratio",
          jnp.abs(getattr(forth, f"alpha_{space}"))
          / getattr(forth, f"rho_{space}"),
        ),
      )
    }
    | {
      "alpha_h_mean": forth.alpha_h,
      "alpha_z_mean": forth.alpha_z,
      "kl": forth.kl,
    }
  )


@pytest.fixture(scope="module")
def case(shared):
  """The official rows, and ours under each history."""
  golden = shared / "golden" / "qwen2_random"
  index = json.loads((golden / "index.json").read_text())
  rows = json.loads((golden / "transitions.json").read_text())
  config, dense = checkpoints.load_params(golden / "dense")
  _, pruned = checkpoints.load_params(golden / index["analysis_pruned_folder"])
  prompt = jnp.asarray(np.load(golden / "tokens.npz")["prompt"])
  steps = 1 + max(row["step"] for row in rows)
  text = generation.generate(
    config,
    dense,
    prompt,
    max_new_tokens=steps,
    sampling=generation.Sampling(eos_ids=()),
  )
  tokens = jnp.concatenate([prompt, text.tokens[:, :-1]], axis=1)
  found = [
    decoder_transitions.compare_transitions(
      config,
      dense,
      pruned,
      tokens,
      num_steps=steps,
      measurement=decoder_transitions.Measurement(
        lens="raw", history=history, measure=vectors
      ),
    )
    for history in transitions.HISTORIES
  ]
  stacked = [jnp.stack(parts) for parts in zip(*found)]
  flat = [x.reshape(-1, x.shape[-1]) for x in stacked]
  reduced = jax.jit(jax.vmap(both_sides))(*flat)
  ours = {
    history: {
      name: np.asarray(value).reshape(stacked[0].shape[:-1])[index, :, :, 0]
      for name, value in reduced.items()
    }
    for index, history in enumerate(transitions.HISTORIES)
  }
  return rows, ours


def place(row):
  return row["layer"], ("attn", "mlp").index(row["sublayer"]), row["step"]


def test_official_log(case):
  rows, ours = case
  for row in rows:
    found = ours["pruned" if row["step"] == 0 else "none"]
    for name, value in row.items():
      if name in ("layer", "sublayer", "step"):
        continue
      name = name.replace("[0]", "").strip()
      for ending in (
        "_para_perp(mean)",
        "_para_perp(median)",
        "_ratio_of_means",
      ):
        name = name.replace(ending, "_ratio")
      # Cosines are logged with four digits.
      assert found[name][place(row)] == pytest.approx(
        value, rel=1e-4, abs=1e-4
      ), (place(row), name)


def test_only_attention_depends_on_the_history(case):
  rows, ours = case
  for row in rows:
    kl = {name: found["kl"][place(row)] for name, found in ours.items()}
    if row["sublayer"] == "mlp":
      assert kl["dense"] == kl["pruned"] == kl["none"]
    else:
      assert len(set(kl.values())) == 3


def test_the_lost_cache_overstates_the_damage(case):
  """What the official rows of attention at step 1 and later are wrong by."""
  _, ours = case
  right, wrong = (
    np.median(ours[name]["kl"][:, 0, 1:]) for name in ("dense", "none")
  )
  assert wrong > 5 * right
