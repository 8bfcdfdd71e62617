"""How fast is it, beside a reference on the same machine in the same run?

  python -m experiments.benchmark --size=S --threads=2 --out=out/benchmark

Random weights of two shapes: S (Qwen2, width 256, 8 layers) and M (width 896,
24 layers, MLP 4864, vocabulary 32000, tied). Every piece of work is timed as
A B A B: the PyTorch reference, then jaxprune, after one warm-up each; medians
and their ratio are printed and written. What a first call costs (compilation)
is written apart. Needs the `dev` extra.

  forward      calibration batch through all layers
  decode_1, 8  greedy tokens per second at batch 1 and 8
  wanda        whole run at 50 %: statistics, masks, second forward
  wanda_2of4   the same at 2:4
"""

import functools
import sys
import tempfile
import time

from absl import flags

from . import launch

_SIZE = flags.DEFINE_enum("size", "S", ["S", "M"], "Shape of the model.")
_WORK = flags.DEFINE_multi_enum(
  "work",
  ["forward", "decode_1", "decode_8", "wanda", "wanda_2of4"],
  ["forward", "decode_1", "decode_8", "wanda", "wanda_2of4"],
  "What to time.",
)
_REPEATS = flags.DEFINE_integer(
  "repeats", 3, "Timed runs of each side.", lower_bound=1
)
_THREADS = flags.DEFINE_integer(
  "threads", 2, "Threads of PyTorch; JAX takes the cores it is given."
)
_NEW_TOKENS = flags.DEFINE_integer(
  "new_tokens", 64, "Tokens decoded.", lower_bound=2
)
_OUT = flags.DEFINE_string("out", "out/benchmark", "Folder to write.")

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
CALIBRATION = {"S": (32, 512), "M": (8, 512)}


def torch_wanda(model, ids, pattern):
  """Wanda as its paper describes it, layer by layer with PyTorch."""
  import torch

  captured = {}

  def remember(module, args, options):
    captured.update(
      options, x=options.get("hidden_states", args[0] if args else None)
    )
    raise StopIteration

  handle = model.model.layers[0].register_forward_pre_hook(
    remember, with_kwargs=True
  )
  states, options = [], []
  with torch.no_grad():
    for row in ids:
      try:
        model(row[None], use_cache=False)
      except StopIteration:
        pass
      states.append(captured.pop("x"))
      captured.pop("hidden_states", None)
      options.append(dict(captured))
      captured.clear()
    handle.remove()
    for layer in model.model.layers:
      kernels = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
      sums = {m: torch.zeros(m.in_features) for m in kernels}

      def add(module, args, output, sums=sums):
        sums[module] += args[0].float().square().sum((0, 1))

      handles = [m.register_forward_hook(add) for m in kernels]
      for x, option in zip(states, options):
        layer(x, **option)
      for handle in handles:
        handle.remove()
      for m in kernels:
        score = m.weight.abs() * (sums[m] / len(states)).sqrt()[None]
        if pattern is None:
          order = torch.sort(score, dim=-1, stable=True)[1]
          m.weight.data.scatter_(1, order[:, : score.shape[1] // 2], 0)
        else:
          keep, of = pattern
          groups = score.reshape(len(score), -1, of)
          lowest = torch.topk(groups, of - keep, dim=2, largest=False)[1]
          m.weight.data.reshape(groups.shape).scatter_(2, lowest, 0)
      outputs = [layer(x, **o) for x, o in zip(states, options)]
      states = [y[0] if isinstance(y, tuple) else y for y in outputs]


def main() -> None:
  import copy
  import pathlib

  import jax
  import jax.numpy as jnp
  import numpy as np
  import torch
  import transformers

  from jaxprune import checkpoints, models, report
  from jaxprune.models import generation
  from jaxprune.pruning.checkpoint import weights
  from jaxprune.pruning.patterns import NofM, Unstructured

  torch.set_num_threads(_THREADS.value)
  torch.manual_seed(0)
  transformers.utils.logging.disable_progress_bar()
  reference = transformers.Qwen2ForCausalLM(
    transformers.Qwen2Config(**SIZES[_SIZE.value], max_position_embeddings=2048)
  ).eval()
  scratch = pathlib.Path(tempfile.mkdtemp())
  reference.save_pretrained(scratch / "dense")
  source = checkpoints.open_checkpoint(scratch / "dense")
  config, params = checkpoints.load_params(source)
  rows, length = CALIBRATION[_SIZE.value]
  ids = (
    np.random.default_rng(0)
    .integers(0, config.vocab_size, (rows, length))
    .astype(np.int32)
  )
  tensor = torch.tensor(ids, dtype=torch.long)
  forward = jax.jit(functools.partial(models.forward, config))

  def torch_forward():
    with torch.no_grad():
      for row in tensor:
        reference.model(row[None], use_cache=False)

  def jax_forward():
    for i in range(rows):
      jax.block_until_ready(forward(params, ids[i : i + 1])[0])

  def torch_decode(batch):
    with torch.no_grad():
      reference.generate(
        tensor[:batch, :32],
        attention_mask=torch.ones(batch, 32),
        max_new_tokens=_NEW_TOKENS.value,
        min_new_tokens=_NEW_TOKENS.value,
        do_sample=False,
        pad_token_id=0,
      )

  def jax_decode(batch):
    jax.block_until_ready(
      generation.generate(
        config,
        params,
        jnp.asarray(ids[:batch, :32]),
        max_new_tokens=_NEW_TOKENS.value,
        eos_ids=(),
      ).tokens
    )

  def torch_prune(pattern):
    # The copy is not timed against us: it is a memory copy of the weights.
    torch_wanda(copy.deepcopy(reference), tensor, pattern)

  def jax_prune(pattern):
    weights.prune_weights(
      source,
      scratch / "pruned",
      method="wanda",
      pattern=pattern,
      tokens=ids,
      overwrite=True,
    )

  work = {
    "forward": (torch_forward, jax_forward),
    "decode_1": (lambda: torch_decode(1), lambda: jax_decode(1)),
    "decode_8": (lambda: torch_decode(8), lambda: jax_decode(8)),
    "wanda": (
      lambda: torch_prune(None),
      lambda: jax_prune(Unstructured(sparsity=0.5)),
    ),
    "wanda_2of4": (
      lambda: torch_prune((2, 4)),
      lambda: jax_prune(NofM(keep=2, of=4)),
    ),
  }

  def timed(function):
    began = time.perf_counter()
    function()
    return time.perf_counter() - began

  description = report.describe_run(
    flags=launch.flag_values(), command=sys.argv, seeds={"weights": 0}
  )
  summary = {"size": _SIZE.value, "torch": torch.__version__}
  with report.RunFolder(_OUT.value, description) as run:
    for name in _WORK.value:
      theirs, ours = work[name]
      timed(theirs)
      first = timed(ours)
      pairs = [(timed(theirs), timed(ours)) for _ in range(_REPEATS.value)]
      for seed, (slow, fast) in enumerate(pairs):
        run.write_all(
          [
            {
              "task": name,
              "seed": seed,
              "metric": "seconds",
              "value": fast,
              "reference": slow,
            }
          ]
        )
      slow, fast = np.median(pairs, axis=0)
      summary[name] = {
        "seconds": fast,
        "reference_seconds": slow,
        "ratio": slow / fast,
        "first_call_seconds": first,
      }
      if name.startswith("decode"):
        written = int(name[-1]) * _NEW_TOKENS.value
        summary[name] |= {
          "tokens_per_second": written / fast,
          "reference_tokens_per_second": written / slow,
        }
      print(
        f"{name:12s} reference {slow:8.3f} s   jaxprune {fast:8.3f} s  "
        f" ratio {slow / fast:5.2f}   first call {first:.2f} s",
        flush=True,
      )
    run.write_summary(summary)


if __name__ == "__main__":
  launch.run(main)
