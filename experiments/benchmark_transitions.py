"""How fast are transitions, beside one metric at a time in PyTorch?

  python -m experiments.benchmark_transitions --size=S --out=out/benchmark
  python -m experiments.benchmark_transitions --model=pocket --out=out/benchmark

Both sides decode greedily from one prompt with the dense model and, at every
step, compare each attention and MLP with its pruned twin in three spaces. The
reference works as the official script does: an uncompiled decoder with hooks;
per sublayer two LM-head products and the metrics one after the other; its
pruned attention is not handed the cache, which is less work than ours. It
writes no text log, which the official script does. ABAB, medians, first call
apart. Processor seconds stand beside wall seconds: where others use the machine
they say more, with --threads=1 (idle threads of PyTorch wait busily). With
--batch our side decodes several prompts at once and is charged per prompt; the
reference has no batches. Our side is timed without the metrics too: what is
left is decoding, the sublayers and the products with the LM head.

Needs the `dev` extra.
"""

import sys
import tempfile
import time

from absl import flags

from . import launch

_SIZE = flags.DEFINE_enum("size", "S", ["S", "M"], "Random weights.")
_MODEL = flags.DEFINE_string(
  "model", None, "A folder or `pocket`, instead of --size."
)
_STEPS = flags.DEFINE_integer("steps", 64, "Tokens decoded.", lower_bound=2)
_PROMPT = flags.DEFINE_integer(
  "prompt", 32, "Tokens of the prompt.", lower_bound=1
)
_BATCH = flags.DEFINE_integer(
  "batch", 1, "Prompts at once on our side.", lower_bound=1
)
_REPEATS = flags.DEFINE_integer(
  "repeats", 3, "Timed runs of each side.", lower_bound=1
)
_THREADS = flags.DEFINE_integer("threads", 2, "Threads of PyTorch.")
_OUT = flags.DEFINE_string(
  "out", "out/benchmark_transitions", "Folder to write."
)

SIZES = {
  "S": dict(
    hidden_size=256,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=2,
    intermediate_size=704,
    vocab_size=8192,
  ),
  "M": dict(
    hidden_size=896,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    intermediate_size=4864,
    vocab_size=32000,
    tie_word_embeddings=True,
  ),
}


def torch_metrics(h, g, z, y):
  """The numbers of the official log of one sublayer, as floats."""
  import torch

  cos = torch.nn.functional.cosine_similarity
  found = []
  p, q = torch.softmax(z, -1), torch.softmax(y, -1)
  for a, b in ((h, g), (z, y), (p, q)):
    found.append(cos(a, b, dim=0))
  for a, b in ((h, g), (z, y)):
    change = b - a
    alpha = (a @ change) / (a @ a)
    across = change - alpha * a
    found += [alpha, (alpha * a).norm() / a.norm(), across.norm() / a.norm()]
  found.append((p * ((p + 1e-12).log() - (q + 1e-12).log())).sum())
  dz = y - z
  r = p * p / (p * p).sum()
  for weight in (p, r, torch.full_like(p, 1 / len(p))):
    mean = (weight * dz).sum()
    found.append((weight * (dz - mean) ** 2).sum() / 2)
  found += [x.median() for x in (z, y, dz.abs())]
  torch.topk(p, 5)
  return [x.item() for x in found]


def torch_transitions(dense, pruned, ids, steps):
  """Decode with hooks; compare every sublayer at every step."""
  import torch

  seen = {}

  def before(index):
    def hook(module, args, options):
      x = args[0] if args else options["hidden_states"]
      seen[index] = [x[:, -1:], options["position_embeddings"]]

    return hook

  def middle(index):
    def hook(module, args):
      seen[index].append(args[0][:, -1:])

    return hook

  handles = []
  for index, layer in enumerate(dense.model.layers):
    handles.append(
      layer.register_forward_pre_hook(before(index), with_kwargs=True)
    )
    handles.append(
      layer.post_attention_layernorm.register_forward_pre_hook(middle(index))
    )
  rows, cache = [], None
  with torch.no_grad():
    for _ in range(steps):
      done = dense(ids, past_key_values=cache, use_cache=True)
      cache, ids = done.past_key_values, done.logits[:, -1:].argmax(-1)
      states = [seen[i] for i in range(len(dense.model.layers))]
      for layer, other, (x, angles, mid) in zip(
        dense.model.layers, pruned.model.layers, states
      ):
        angles = tuple(a[:, -1:] for a in angles)
        g_mid = (
          x
          + other.self_attn(
            hidden_states=other.input_layernorm(x),
            position_embeddings=angles,
            attention_mask=None,
            past_key_values=None,
          )[0]
        )
        out = mid + layer.mlp(layer.post_attention_layernorm(mid))
        g_out = mid + other.mlp(other.post_attention_layernorm(mid))
        for h, g in ((mid, g_mid), (out, g_out)):
          rows.append(
            torch_metrics(
              h[0, 0], g[0, 0], dense.lm_head(h)[0, 0], dense.lm_head(g)[0, 0]
            )
          )
  for handle in handles:
    handle.remove()
  return rows


def _one_logit(h, g, z, y, temperature):
  """In place of the metrics: both logits are needed, nothing is computed."""
  del h, g, temperature
  return z[0] - y[0]


def main() -> None:
  import copy
  import pathlib

  import jax
  import jax.numpy as jnp
  import numpy as np
  import torch
  import transformers

  from jaxprune import checkpoints, report
  from jaxprune.probes import position
  from jaxprune.probes.decoder import transitions
  from jaxprune.studies import inputs

  torch.set_num_threads(_THREADS.value)
  torch.manual_seed(0)
  transformers.utils.logging.disable_progress_bar()
  if _MODEL.value:
    dense = transformers.AutoModelForCausalLM.from_pretrained(
      inputs.open_model(_MODEL.value).folder, dtype=torch.float32
    ).eval()
  else:
    dense = transformers.Qwen2ForCausalLM(
      transformers.Qwen2Config(
        **SIZES[_SIZE.value], max_position_embeddings=2048
      )
    ).eval()
  pruned = copy.deepcopy(dense)
  with torch.no_grad():
    for weight in pruned.model.layers.parameters():
      if weight.ndim == 2:
        size = weight.abs()
        weight *= size > size.flatten()[:4096].median()
  scratch = tempfile.TemporaryDirectory()
  trees = []
  for name, model in (("dense", dense), ("pruned", pruned)):
    folder = pathlib.Path(scratch.name) / name
    model.save_pretrained(folder)
    config, params = checkpoints.load_params(folder, jnp.float32)
    trees.append(params)
  ids = (
    np.random.default_rng(0)
    .integers(3, config.vocab_size, (_BATCH.value, _PROMPT.value))
    .astype(np.int32)
  )
  valid = jnp.ones(ids.shape, bool)

  def theirs():
    torch_transitions(
      dense, pruned, torch.tensor(ids[:1], dtype=torch.long), _STEPS.value
    )

  def ours(measure=position.compare_position):
    jax.block_until_ready(
      transitions.decode_transitions(
        config,
        *trees,
        jnp.asarray(ids),
        valid,
        num_steps=_STEPS.value,
        measure=measure,
      )
    )

  def bare():
    ours(_one_logit)

  def timed(function, prompts=1):
    began = np.array([time.perf_counter(), time.process_time()])
    function()
    ended = np.array([time.perf_counter(), time.process_time()])
    return (ended - began) / prompts

  description = report.describe_run(
    flags=launch.flag_values(), command=sys.argv, seeds={"weights": 0}
  )
  with report.RunFolder(_OUT.value, description) as run:
    first = timed(ours)[0]
    timed(theirs)
    timed(bare)
    runs = [
      (timed(theirs), timed(ours, _BATCH.value), timed(bare, _BATCH.value))
      for _ in range(_REPEATS.value)
    ]
    run.write_all(
      {
        "task": "transitions",
        "metric": metric,
        "value": fast[at],
        "reference": slow[at],
        "seed": index,
      }
      for index, (slow, fast, _) in enumerate(runs)
      for at, metric in enumerate(("seconds", "processor_seconds"))
    )
    run.write_all(
      {
        "task": "transitions",
        "metric": "seconds_without_metrics",
        "value": rest[0],
        "seed": index,
      }
      for index, (_, _, rest) in enumerate(runs)
    )
    (slow, slow_cpu), (fast, fast_cpu), (rest, _) = np.median(runs, axis=0)
    run.write_summary(
      {
        "model": _MODEL.value or _SIZE.value,
        "steps": _STEPS.value,
        "seconds_per_prompt": fast,
        "reference_seconds_per_prompt": slow,
        "without_metrics_seconds_per_prompt": rest,
        "ratio": slow / fast,
        "processor_seconds_per_prompt": fast_cpu,
        "reference_processor_seconds_per_prompt": slow_cpu,
        "processor_ratio": slow_cpu / fast_cpu,
        "first_call_seconds": first,
        "torch": torch.__version__,
      }
    )
  scratch.cleanup()
  print(
    f"transitions  reference {slow:8.3f} s   jaxprune {fast:8.3f} s   "
    f"ratio {slow / fast:6.2f}   without metrics {rest:.3f} s"
    f"   processor {slow_cpu:.3f} s, {fast_cpu:.3f} s, ratio"
    f" {slow_cpu / fast_cpu:.2f}   first call {first:.2f} s"
  )


if __name__ == "__main__":
  launch.run(main)
