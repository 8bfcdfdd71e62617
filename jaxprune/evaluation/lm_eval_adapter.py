"""How does lm-evaluation-harness score this model, as it stands?

`JaxpruneLM` gives the harness the three things it asks of a language model:
the log-likelihood of a continuation, of a whole text, and a written
continuation. Importing this file registers it as `jaxprune`, so

  python -m jaxprune.evaluation.lm_eval_adapter --model jaxprune \\
    --model_args pretrained=FOLDER --tasks TASK

is the harness's own command line. It needs the extra `eval`, and not torch.

Texts become ids through the AutoTokenizer of the installed transformers, with
the options that the harness's own backend gives it: a folder whose config.json
and tokenizer disagree about special tokens is read as that backend reads it.

Reference: lm-evaluation-harness 0.4.13, HFLM (backend `hf`, batch size 1).
Where the tokenizer itself puts a special token in front, a whole text begins
with two, the prefix token and that one, as it does there.
Differs from the reference in: parallelism is inside the forward pass, so the
harness sees one process (`world_size` 1); a stop string that is a special token
ends its own row, not the whole batch; empty stop strings are left out;
`max_new_tokens` of generation_config.json is not preferred to the task's
`max_gen_toks`; sampling without a temperature takes 1; no thinking tokens are
removed.
"""

import functools
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
  handle_stop_sequences,
  has_bos_prefix,
  normalize_gen_kwargs,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from jaxprune import checkpoints
from jaxprune.evaluation import generation, stock_generation
from jaxprune.evaluation.journal import NO_BOOKKEEPING, Bookkeeping
from jaxprune.evaluation.loglikelihoods import loglikelihoods
from jaxprune.models import ModelConfig

_KNOWN = {
  "do_sample",
  "temperature",
  "top_k",
  "top_p",
  "repetition_penalty",
  "until",
  "max_gen_toks",
}


@register_model("jaxprune")
class JaxpruneLM(TemplateLM):
  """A dense or pruned checkpoint behind the harness's interface."""

  def __init__(
    self,
    pretrained: str | os.PathLike,
    *,
    batch_size: int | str = 16,
    dtype: str = "float32",
    add_bos_token: bool | None = None,
    prefix_token_id: int | None = None,
    max_length: int | None = None,
    max_gen_toks: int = 256,
    seed: int = 0,
    max_batch_size: int | None = None,
    device: str | None = None,
    bookkeeping: Bookkeeping = NO_BOOKKEEPING,
  ):
    """Load a model.

    Args:
      pretrained: a folder, a hub id.
      batch_size: texts that are written at a time.
      dtype: float32, bfloat16 or float16.
      add_bos_token: None: the tokenizer's own special tokens; True: the
        tokenizer is told to put its beginning-of-text token in front; False:
        no special tokens.
      prefix_token_id: what a text without a context is conditioned on; None is
        the tokenizer's beginning of text, or else its end.
      max_length: most tokens that are read; None is the model's context.
      max_gen_toks: tokens to write where a task does not say.
      seed: of sampling.
      max_batch_size: not used; the harness passes it.
      device: must be None; JAX finds the device.
      bookkeeping: keeps what the model answers, and tells of it.

    Raises:
      ValueError: a checkpoint that cannot be read or is no decoder, or an
        option that is out of range.
    """
    super().__init__()
    del max_batch_size
    if device is not None:
      raise ValueError(
        f"device={device}: JAX finds the device; leave it out, or set"
        " JAX_PLATFORMS"
      )
    if not str(batch_size).isdigit() or int(batch_size) < 1:
      raise ValueError(f"batch_size={batch_size}: give a number, at least 1")
    folder = checkpoints.resolve_model(pretrained)
    source = checkpoints.open_checkpoint(folder)
    if not isinstance(source.config, ModelConfig):
      raise ValueError(f"{folder}: is an encoder; give a decoder")
    checkpoints.check_head(source)
    self.config, self._params = checkpoints.load_params(
      source, jnp.dtype(dtype)
    )
    self._folder, self._prefix_id = folder, prefix_token_id
    self.tokenizer = stock_generation.load_tokenizer(folder, add_bos_token)
    self._defaults = stock_generation.load_defaults(folder)
    self._batch_size, self._seed = int(batch_size), seed
    self._bookkeeping = bookkeeping
    self._add_bos, self.max_gen_toks = add_bos_token, max_gen_toks
    self.max_length = max_length or self.config.max_positions
    if not 2 <= self.max_length <= self.config.max_positions:
      raise ValueError(
        f"max_length={max_length}: must be from 2 to the model's context,"
        f" {self.config.max_positions}"
      )

  @property
  def eot_token_id(self) -> int | None:
    """The tokenizer's end of text; None where it has none."""
    return self.tokenizer.eos_token_id

  @property
  def prefix_token_id(self) -> int:
    """What a text is conditioned on that has nothing before it."""
    for id_ in (
      self._prefix_id,
      self.tokenizer.bos_token_id,
      self.tokenizer.eos_token_id,
    ):
      if id_ is not None:
        return id_
    raise ValueError(
      f"{self._folder}: the tokenizer names no beginning and no end of text to"
      " condition on; give prefix_token_id"
    )

  @property
  def tokenizer_name(self) -> str:
    """Names the cache of chat-templated requests."""
    return str(self._folder).replace("/", "__")

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """A conversation as one text, by the checkpoint's own template."""
    if not self.tokenizer.chat_template:
      raise ValueError(
        f"{self._folder}: has no chat template; run without"
        " --apply_chat_template"
      )
    options = dict(
      tokenize=False,
      add_generation_prompt=add_generation_prompt,
      continue_final_message=not add_generation_prompt,
    )
    try:
      return self.tokenizer.apply_chat_template(chat_history, **options)
    except Exception as error:
      # Some templates refuse a system message; HFLM leaves it out then.
      if not type(error).__module__.startswith("jinja2."):
        raise
      print(
        f"{self._folder}: its chat template refuses the conversation; system"
        " messages are left out",
        file=sys.stderr,
      )
      history = [turn for turn in chat_history if turn["role"] != "system"]
      return self.tokenizer.apply_chat_template(history, **options)

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **_: Any
  ) -> list[int]:
    """Ids of a text; a beginning-of-text token in it is not doubled."""
    return self._encode(string, self._prefix, add_special_tokens)

  def _encode(self, text, begins, special=None) -> list[int]:
    """Ids; none is added before a text that has `begins` in front already."""
    if special is None:
      special = False if has_bos_prefix(text, begins) else self._add_bos
    options = {} if special is None else {"add_special_tokens": special}
    return self.tokenizer.encode(text, **options)

  @functools.cached_property
  def _prefix(self) -> str | None:
    try:
      return self.tokenizer.decode([self.prefix_token_id])
    except ValueError:  # there is none: no text begins with it
      return None

  def _loglikelihood_tokens(self, requests, **_):
    """(nats, greedy) of each request ((context, continuation), ids, ids)."""
    pairs = []
    for _, head, tail in requests:
      kept = max(1, self.max_length + 1 - len(tail))
      pairs.append((head[-kept:], tail))
    if not pairs:
      return []
    scores = loglikelihoods(
      self.config, self._params, pairs, bookkeeping=self._bookkeeping
    )
    answers = list(zip(scores.nats.tolist(), scores.greedy.tolist()))
    for (texts, _, _), answer in zip(requests, answers):
      if texts is not None:
        self.cache_hook.add_partial("loglikelihood", texts, answer)
    return answers

  def loglikelihood_rolling(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[float]:
    """Log-likelihood of whole texts; each token is predicted once."""
    del disable_tqdm
    windows, owners = [], []
    for index, request in enumerate(requests):
      request_windows = get_rolling_token_windows(
        token_list=self.tok_encode(request.args[0]),
        prefix_token=self.prefix_token_id,
        max_seq_len=self.max_length,
        context_len=1,
      )
      request_windows = [
        (None, *make_disjoint_window(window)) for window in request_windows
      ]
      windows += request_windows
      owners += [index] * len(request_windows)
    totals = [0.0] * len(requests)
    for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(windows)):
      totals[owner] += nats
    for request, total in zip(requests, totals):
      self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
    return totals

  def generate_until(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[str]:
    """Continuations up to a stop string; equal options share a batch."""
    del disable_tqdm
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
      groups.setdefault(repr(request.args[1]), []).append(index)
    texts = [""] * len(requests)
    for chosen in groups.values():
      options = normalize_gen_kwargs(
        requests[chosen[0]].args[1], self.max_gen_toks
      )
      contexts = [requests[index].args[0] for index in chosen]
      for index, text in zip(chosen, self._write(contexts, options)):
        texts[index] = text
        self.cache_hook.add_partial(
          "generate_until", requests[index].args, text
        )
    return texts

  def _write(self, contexts, options) -> list[str]:
    unknown = set(options) - _KNOWN
    if unknown:
      raise ValueError(
        f"generation_kwargs {sorted(unknown)}: not known here; remove them"
      )
    count = options["max_gen_toks"]
    room = self.max_length - count
    if room < 1:
      raise ValueError(
        f"max_gen_toks={count}: must be below the model's context,"
        f" {self.max_length}"
      )
    end = self.eot_token_id
    stop = handle_stop_sequences(
      options["until"],
      eos=None if end is None else self.tokenizer.decode([end]),
    )
    stop = tuple(word for word in stop if word)
    # HFLM asks for the beginning of text here, not for the prefix token.
    begins = self.tokenizer.bos_token
    written = generation.continue_prompts(
      self.config,
      self._params,
      self.tokenizer.backend_tokenizer,
      [self._encode(context, begins)[-room:] for context in contexts],
      generation.Writing(
        max_new_tokens=count,
        stop=stop,
        eos_ids=() if end is None else (end,),
        sampling=self._defaults.sampling(options),
        seed=self._seed,
        batch_size=self._batch_size,
      ),
      bookkeeping=self._bookkeeping,
    )
    return [
      stock_generation.cut_text(self.tokenizer, row.written, stop)
      for row in written
    ]


if __name__ == "__main__":
  from lm_eval.__main__ import cli_evaluate

  cli_evaluate()
