"""Does jaxprune compute what stock transformers computes, to rounding?

Two right float32 programs differ by their rounding, and a model amplifies it:
on some tokens a thousandfold. So the yardstick is stock itself. Its own code
runs once in float64 and once in float32, and jaxprune may be as far from the
first as the second is, times `ALLOWED`.

Both runs are of one stock model in float32, so that all it holds is the same.
For the second every weight is widened while its module runs: beside the model
there is the largest tensor in 8 bytes and no more.
"""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, devices
from jaxprune.checkpoints import folders
from jaxprune.models import final_norm, forward, generate, unembed
from jaxprune.models.generation import Sampling

# A deviation counts as rounding up to this many times stock's own error.
ALLOWED = 4.0
# Relative error of float32 logits where there is no float64 to compare with:
# several times what stock has on models of up to 1.5 B parameters.
BOUND = 3e-5
# Where stock's own error is larger, it cannot be compared with.
MOST = 1e-3
_EPS = float(np.finfo(np.float32).eps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
  """How far jaxprune is from stock on some texts.

  Relative errors are |z - z'| / |z'| over all logits, Euclidean; the largest is
  the largest difference over the largest logit.

  Attributes:
    relative_error: of jaxprune, from stock in float64, or in float32 where
      float64 did not fit.
    stock_relative_error: of stock in float32 from stock in float64; None where
      that did not fit.
    largest_error: largest difference of jaxprune from the same.
    stock_largest_error: the same of stock in float32, or None.
    largest_logit: largest absolute logit of stock.
    top_1: fraction of positions whose likeliest token is that of stock; this
      and the next two are None for a model without head, whose hidden states
      are compared.
    kl_mean: mean over positions of KL(stock || jaxprune), nats, both float32.
    kl_max: the largest.
    greedy_common: tokens of a greedy continuation in common with stock before
      the first that differs.
    greedy_tokens: how many were written.
    passed: whether jaxprune is as stock, to rounding.
    verdict: the same in words.
  """

  relative_error: float
  stock_relative_error: float | None
  largest_error: float
  stock_largest_error: float | None
  largest_logit: float
  top_1: float | None
  kl_mean: float | None
  kl_max: float | None
  greedy_common: int
  greedy_tokens: int
  passed: bool
  verdict: str


def compare(
  source: checkpoints.Source,
  tokens: np.ndarray,
  *,
  max_new_tokens: int = 32,
  allowed: float = ALLOWED,
) -> Parity:
  """Run a decoder here and in stock transformers.

  Args:
    source: an opened decoder. What it lists as left out is left out in stock
      too.
    tokens: int [B, T]; the greedy continuation is of the first half of the
      first row.
    max_new_tokens: most tokens of the greedy continuation.
    allowed: how many times the rounding of stock is still rounding.

  Raises:
    ValueError: the folder holds files that stock would follow out of it or
      wait for, or there is no memory for float32.
  """
  folders.check_files(source.folder)
  needed = 4 * sum(_sizes(source))
  if needed > _memory():
    raise ValueError(
      f"{source.folder}: float32 needs {devices.gib(needed)}, there are"
      f" {devices.gib(_memory())}; use a larger machine"
    )
  max_new_tokens = min(
    max_new_tokens, source.config.max_positions - tokens.shape[1] // 2
  )
  prompt = tokens[:1, : max(1, tokens.shape[1] // 2)]
  config, params = checkpoints.load_params(source, jnp.float32)
  written = [np.zeros(0)]
  with jax.default_matmul_precision("highest"):
    z = np.asarray(_logits(config, params, jnp.asarray(tokens)))
    if config.has_head:
      written = generate(
        config,
        params,
        prompt,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(eos_ids=()),
      ).tokens
  del params
  stock, exact, theirs = _run_stock(source, tokens, prompt, max_new_tokens)
  return judge(
    z,
    stock,
    exact,
    texts=(np.asarray(written[0]), theirs),
    allowed=allowed,
    head=config.has_head,
  )


def judge(
  z_BTV: np.ndarray,
  stock_BTV: np.ndarray,
  exact_BTV: np.ndarray | None,
  *,
  texts: tuple[Sequence[int], Sequence[int]] = ((), ()),
  allowed: float = ALLOWED,
  head: bool = True,
) -> Parity:
  """Compare logits, or hidden states.

  Args:
    z_BTV: of jaxprune, float32.
    stock_BTV: of stock, float32.
    exact_BTV: of stock in float64; None where that did not fit.
    texts: what both wrote, of one length.
    allowed: how many times the rounding of stock is still rounding.
    head: whether these are logits.
  """
  reference = stock_BTV if exact_BTV is None else exact_BTV
  error, largest = _errors(z_BTV, reference)
  theirs, most = (None, None), BOUND
  if exact_BTV is not None:
    theirs = _errors(stock_BTV, exact_BTV)
    most = min(allowed * max(theirs[0], _EPS), MOST)
  log_p, log_q = _log_softmax(stock_BTV), _log_softmax(z_BTV)
  kl = np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=-1), 0)
  top_1 = z_BTV.argmax(-1) == stock_BTV.argmax(-1)
  same = np.equal(*(np.asarray(text) for text in texts))
  passed = bool(error <= most)
  yardstick = (
    f"a bound of {BOUND:.1e}, float64 did not fit in memory"
    if exact_BTV is None
    else f"{theirs[0]:.1e} of stock float32"
  )
  return Parity(
    relative_error=error,
    stock_relative_error=theirs[0],
    largest_error=largest,
    stock_largest_error=theirs[1],
    largest_logit=float(abs(reference).max()),
    top_1=float(top_1.mean()) if head else None,
    kl_mean=float(kl.mean()) if head else None,
    kl_max=float(kl.max()) if head else None,
    greedy_common=int(np.cumprod(same).sum()),
    greedy_tokens=len(same),
    passed=passed,
    verdict=(
      f"{'as stock to rounding' if passed else 'NOT as stock'}: relative error"
      f" {error:.1e}, against {yardstick}"
    ),
  )


def round_trip(source: checkpoints.Source, folder: str | os.PathLike) -> bool:
  """Whether reading a model and writing it again gives the same bytes.

  Args:
    source: an opened checkpoint.
    folder: is written, and removed.
  """
  folder = pathlib.Path(folder)
  try:
    written = checkpoints.save_params(
      folder, checkpoints.load_params(source)[1], source
    )
    again = checkpoints.open_checkpoint(written, type(source.config))
    return checkpoints.checkpoint_hash(again) == (
      checkpoints.checkpoint_hash(source)
    )
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
  """A Markdown table of what was found.

  Args:
    rows: by model, the fields of `Parity` and `round_trip`.
  """
  lines = [
    "| model | relative error | of stock | largest | of stock | top-1 |"
    " KL mean | KL max | greedy | bytes equal | verdict |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  number = lambda x: "not measured" if x is None else f"{x:.1e}"
  for name, row in rows.items():
    cells = [
      name,
      *(
        number(row[field])
        for field in ("relative_error", "stock_relative_error")
      ),
      *(
        number(row[field] and row[field] / max(row["largest_logit"], 1e-300))
        for field in ("largest_error", "stock_largest_error")
      ),
      "no head" if row["top_1"] is None else f"{row['top_1']:.2%}",
      *(number(row[field]) for field in ("kl_mean", "kl_max")),
      f"{row['greedy_common']} of {row['greedy_tokens']}",
      {True: "yes", False: "NO", None: "not measured"}[row["round_trip"]],
      row["verdict"].partition(":")[0],
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _errors(z_BTV, reference_BTV) -> tuple[float, float]:
  """Relative error and largest difference, in float64."""
  difference = z_BTV.astype(np.float64) - reference_BTV
  size = np.linalg.norm(reference_BTV.astype(np.float64).ravel())
  return (
    float(np.linalg.norm(difference.ravel()) / max(size, 1e-300)),
    float(abs(difference).max()),
  )


def _log_softmax(z_BTV) -> np.ndarray:
  z_BTV = z_BTV.astype(np.float64)
  z_BTV = z_BTV - z_BTV.max(axis=-1, keepdims=True)
  return z_BTV - np.log(np.exp(z_BTV).sum(axis=-1, keepdims=True))


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens_BT):
  """Logits [B, T, V]; without a head what it would read, [B, T, D]."""
  read = unembed if config.has_head else final_norm
  return read(config, params, forward(config, params, tokens_BT)[0])


def _sizes(source) -> list[int]:
  """Entries of every tensor."""
  return [math.prod(tensor.shape) for tensor in source.tensors.values()]


def _memory() -> float:
  """Bytes of the host; without end where they are not told."""
  return devices.available_bytes()[1] or math.inf


def _stock(source: checkpoints.Source) -> Any:
  """The stock model in float32, without what the folder leaves out."""
  import torch
  import transformers

  loader = transformers.AutoModelForCausalLM
  if not source.config.has_head:
    loader = transformers.AutoModel
  model = loader.from_pretrained(
    source.folder, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  parameters = dict(model.named_parameters())
  with torch.no_grad():
    for listed in source.zeroed:
      # Files may leave out the name of the model before those of its layers.
      names = [
        name
        for name in parameters
        if f".{name}".endswith(f".{listed}")
        or f".{listed}".endswith(f".{name}")
      ]
      if len(names) != 1:
        raise ValueError(
          f"{source.folder}: stock transformers has no {listed!r} to leave out"
        )
      parameters[names[0]].zero_()
  return model


def _output(model, tokens) -> np.ndarray:
  """Logits, or without a head the last hidden states."""
  import torch

  with torch.no_grad():
    out = model(torch.tensor(tokens))
  return (out.logits if "logits" in out else out.last_hidden_state).numpy()


def _run_stock(source, tokens, prompt, max_new_tokens):
  """Logits [B, T, V] in float32 and float64, and the greedy continuation.

  The logits in float64 are None where they do not fit, the continuation is
  empty for a model without head.
  """
  import torch
  import transformers

  model = _stock(source)
  z_BTV, exact_BTV, text = _output(model, tokens), None, np.zeros(0)
  sizes = _sizes(source)
  if 4 * sum(sizes) + 2 * 8 * max(sizes) <= _memory():
    with _wide(model):
      exact_BTV = _output(model, tokens)
  if source.config.has_head:
    # Nothing of the folder's own settings: no end of text stops the text, and
    # none is suppressed.
    model.generation_config = transformers.GenerationConfig(
      max_new_tokens=max_new_tokens,
      do_sample=False,
      use_cache=True,
      pad_token_id=0,
    )
    with torch.no_grad():
      text = model.generate(
        torch.tensor(prompt),
        attention_mask=torch.ones(prompt.shape, dtype=torch.long),
      )[0, prompt.shape[1] :].numpy()
  return z_BTV, exact_BTV, text


@contextlib.contextmanager
def _wide(model: Any) -> Iterator[None]:
  """Run a torch model in float64, whatever it asks to do in float32."""
  import torch
  from torch.overrides import TorchFunctionMode

  class Wide(TorchFunctionMode):
    """float64 for every float32 in the arguments of a torch function."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
      del types
      if function is torch.Tensor.float:
        function = torch.Tensor.double
      wide = lambda x: torch.float64 if x is torch.float32 else x
      return function(
        *map(wide, args), **{k: wide(v) for k, v in (kwargs or {}).items()}
      )

  def cast(module, dtype):
    for parameter in module.parameters(recurse=False):
      parameter.data = parameter.data.to(dtype)

  dtype = next(model.parameters()).dtype
  hooks = []
  for module in model.modules():
    if any(True for _ in module.parameters(recurse=False)):
      hooks += [
        module.register_forward_pre_hook(
          lambda module, inputs: cast(module, torch.float64)
        ),
        module.register_forward_hook(
          lambda module, inputs, out: cast(module, dtype)
        ),
      ]
  try:
    with Wide():
      yield
  finally:
    for hook in hooks:
      hook.remove()
