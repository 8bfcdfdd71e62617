"""Which texts do two models continue? Built-in ones, or those of a file.

Where the checkpoint has a chat template, a text is the turn of a user.
"""

import dataclasses
import importlib.util
import logging
from collections.abc import Callable, Sequence

import numpy as np

from jaxprune import checkpoints
from jaxprune.calibration import id_files, load_tokenizer
from jaxprune.calibration import prompts as prompts_lib
from jaxprune.calibration.tokenizer import encode
from jaxprune.evaluation import builtin, chat
from jaxprune.studies import inputs

BUILT_IN, GIVEN, POCKET = "built-in", "given", "pocket"
_POCKET_PROMPTS = 16
_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
  """What both models continue.

  Attributes:
    prompts: in ids of the dense model.
    kinds: of each prompt: a kind of the built-in prompts, `given` or `pocket`.
    chat: whether each is the turn of a user.
  """

  prompts: prompts_lib.Prompts
  kinds: tuple[str, ...]
  chat: bool = False


def read(
  source: checkpoints.Source,
  name: str | None,
  *,
  limit: int | None,
  max_new_tokens: int,
  chat_mode: str = "auto",
) -> Asked:
  """Read what both models continue.

  Args:
    source: the dense model.
    name: a file of prompts; None is the built-in ones, or for a model with the
      tokenizer of the pocket model those of its world.
    limit: only the first so many; None is all.
    max_new_tokens: tokens to be decoded after each.
    chat_mode: of `chat.CHAT`; token ids of an .npz are read as they are.

  Raises:
    ValueError: a prompt and its tokens exceed the context, the file cannot be
      read, or there is no chat template and one is wanted.
  """
  if name is None and inputs.is_pocket(source):
    name, limit = POCKET, limit or _POCKET_PROMPTS
  if name is not None and (name == POCKET or name.endswith(".npz")):
    prompts = inputs.read_prompts(
      source, name, limit=limit, max_new_tokens=max_new_tokens
    )
    kind = POCKET if name == POCKET else GIVEN
    return Asked(prompts=prompts, kinds=(kind,) * len(prompts.tokens))
  if name is None:
    name, given = BUILT_IN, builtin.prompts()[:limit]
    kinds = tuple(prompt.kind for prompt in given)
    texts = [prompt.text for prompt in given]
  else:
    texts = prompts_lib.read_prompt_texts(name)[:limit]
    kinds = (GIVEN,) * len(texts)
  render = template(source, chat_mode)
  rows = _encoded(source, name, texts, render)
  longest = max(map(len, rows))
  if longest + max_new_tokens > source.config.max_positions:
    raise ValueError(
      f"{name}: a prompt of {longest} tokens and --max_new_tokens="
      f"{max_new_tokens} exceed the context of {source.folder},"
      f" {source.config.max_positions}: lower --max_new_tokens, or give shorter"
      " --prompts"
    )
  return Asked(
    prompts=prompts_lib.Prompts(tokens=rows, source=name),
    kinds=kinds,
    chat=render is not None,
  )


def template(
  source: checkpoints.Source, chat_mode: str
) -> Callable[[str], str] | None:
  """As `chat.template`, but auto does without where it cannot be rendered.

  Args:
    source: the checkpoint.
    chat_mode: of `chat.CHAT`.
  """
  folder = source.folder
  if (
    chat_mode == "auto"
    and chat.has_template(folder)
    and importlib.util.find_spec("transformers") is None
  ):
    _LOGGER.info(
      "%s: its chat template is left out, as transformers is not installed:"
      " pip install jaxprune[eval]",
      folder,
    )
    return None
  return chat.template(folder, chat_mode)


def _encoded(
  source: checkpoints.Source,
  name: str,
  texts: Sequence[str],
  render: Callable[[str], str] | None,
) -> tuple[tuple[int, ...], ...]:
  tokenizer, config = load_tokenizer(source.folder), source.config
  rows = []
  for number, text in enumerate(texts):
    if render is None:
      ids = encode(tokenizer, text, None, config.bos_id)
    else:  # the template has written the special tokens already
      ids = encode(tokenizer, render(text), False)
    if not ids:
      raise ValueError(f"{name}: prompt {number} has no token; remove it")
    place = f"prompt {number}"
    id_files.check_vocabulary(np.asarray([ids]), name, place, config.vocab_size)
    rows.append(tuple(ids))
  return tuple(rows)
