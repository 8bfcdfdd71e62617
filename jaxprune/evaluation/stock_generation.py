"""How would stock transformers read, continue and cut a text of this folder?

The tokenizer and the defaults of `generate` come from the installed
transformers itself, so that they follow whatever release is at hand. None of it
needs torch.

Reference: transformers 5, AutoTokenizer and GenerationConfig;
lm-evaluation-harness 0.4.13, MultiTokenEOSCriteria and
postprocess_generated_text.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxprune import files
from jaxprune.evaluation.generation import cut_at
from jaxprune.models import Sampling

# What `generate` may do besides choosing: the values that do nothing, by field.
_NEUTRAL = {
  "bad_words_ids": (None,),
  "begin_suppress_tokens": (None,),
  "dola_layers": (None,),
  "encoder_no_repeat_ngram_size": (None, 0),
  "encoder_repetition_penalty": (None, 1.0),
  "exponential_decay_length_penalty": (None,),
  "forced_bos_token_id": (None,),
  "forced_eos_token_id": (None,),
  "guidance_scale": (None, 1),
  "min_length": (None, 0),
  "min_new_tokens": (None, 0),
  "no_repeat_ngram_size": (None, 0),
  "num_beams": (None, 1),
  "penalty_alpha": (None, 0),
  "sequence_bias": (None,),
  "stop_strings": (None,),
  "suppress_tokens": (None,),
  "watermarking_config": (None,),
}
_NEUTRAL_SAMPLING = {
  "epsilon_cutoff": (None, 0.0),
  "eta_cutoff": (None, 0.0),
  "min_p": (None,),
  "top_h": (None,),
  "typical_p": (None, 1.0),
}
_TOP_K = 50  # where neither the task nor the folder says


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defaults:
  """What a folder says of generation.

  Attributes:
    folder: whose they are.
    fields: of its generation_config.json, or of config.json without one, as
      stock reads them.
  """

  folder: str
  fields: Mapping[str, Any]

  def sampling(self, options: Mapping[str, Any]) -> Sampling:
    """How `generate` would choose tokens with these options.

    Args:
      options: of one request; they go before the folder's. Known are
        do_sample, temperature, top_k, top_p, repetition_penalty.

    Raises:
      ValueError: the folder asks for something that is not done here.
    """
    sampled = bool(options.get("do_sample"))
    known = _NEUTRAL | (_NEUTRAL_SAMPLING if sampled else {})
    wrong = [
      f"{name}={self.fields[name]}"
      for name, values in known.items()
      if self.fields.get(name) not in values
    ]
    if wrong:
      raise ValueError(
        f"{self.folder}/generation_config.json: {', '.join(wrong)}: would"
        " change what is written and is not done here; remove it"
      )

    def value(name, neutral):
      given = options.get(name)
      given = self.fields.get(name) if given is None else given
      return neutral if given is None else given

    ends = self.fields.get("eos_token_id")
    ends = ends if isinstance(ends, (list, tuple)) else [ends]
    chosen = dict(
      repetition_penalty=float(value("repetition_penalty", 1.0)),
      eos_ids=tuple(id_ for id_ in ends if id_ is not None),
    )
    if not sampled:
      return Sampling(**chosen)
    return Sampling(
      temperature=float(options.get("temperature", 1.0)),
      top_k=int(value("top_k", _TOP_K)),
      top_p=float(value("top_p", 1.0)),
      **chosen,
    )


def load_defaults(folder: str | os.PathLike) -> Defaults:
  """Read what a folder says of generation.

  Raises:
    ValueError: the file is broken.
  """
  from transformers import GenerationConfig

  path = os.fspath(folder)
  own = os.path.isfile(os.path.join(path, "generation_config.json"))
  name = "generation_config.json" if own else "config.json"
  try:
    read = GenerationConfig.from_pretrained(
      path,
      config_file_name=name,
      local_files_only=True,
      **({} if own else {"_from_model_config": True}),
    )
  except (OSError, ValueError, TypeError) as error:
    raise ValueError(
      f"{os.path.join(path, name)}: not read by transformers"
      f" ({files.reason(error)}); mend it"
    ) from error
  return Defaults(folder=path, fields=read.to_dict())


def load_tokenizer(
  folder: str | os.PathLike, add_bos_token: bool | None = None
) -> Any:
  """The folder's AutoTokenizer.

  Args:
    folder: a checkpoint.
    add_bos_token: given to the tokenizer; None leaves it as the folder says.

  Raises:
    ValueError: transformers cannot load it.
  """
  import transformers

  told = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
  try:
    return transformers.AutoTokenizer.from_pretrained(
      os.fspath(folder), local_files_only=True, trust_remote_code=False, **told
    )
  except Exception as error:  # the Rust side raises bare Exception
    raise ValueError(
      f"{folder}: transformers cannot load its tokenizer"
      f" ({files.reason(error)}); copy the tokenizer's files"
      " again"
    ) from error


def cut_text(
  tokenizer: Any, written: Sequence[int], stop: Sequence[str]
) -> str:
  """The text that the harness makes of tokens.

  Generation ends with the token that completes a stop string, special tokens
  counted; the text is then taken without special tokens and cut at the first
  stop string that is left in it.

  Args:
    tokenizer: from `load_tokenizer`.
    written: ids from the model, the one that ended the text included.
    stop: texts, none of them empty.
  """

  def stopped(count):
    text = tokenizer.decode(written[:count])
    return any(word in text for word in stop)

  count = len(written)
  if stopped(count):
    low, high = 0, count
    while low < high:
      middle = (low + high) // 2
      low, high = (low, middle) if stopped(middle) else (middle + 1, high)
    count = low
  return cut_at(
    tokenizer.decode(written[:count], skip_special_tokens=True), stop
  )
