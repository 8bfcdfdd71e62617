"""How does a prompt become the turn of a conversation?

By the chat template of the checkpoint, which the installed transformers render.

Reference: transformers 5, `apply_chat_template` with one message of the user.
"""

import os
import pathlib
from collections.abc import Callable

from jaxprune import files
from jaxprune.evaluation import stock_generation

CHAT = ("auto", "yes", "no")


def has_template(folder: str | os.PathLike) -> bool:
  """Whether a checkpoint says how conversations are written."""
  folder = pathlib.Path(folder)
  if (folder / "chat_template.jinja").is_file():
    return True
  path = folder / "tokenizer_config.json"
  return path.is_file() and bool(files.read_json(path).get("chat_template"))


def uses_template(folder: str | os.PathLike, chat: str) -> bool:
  """Whether prompts are turns of a conversation.

  Args:
    folder: the checkpoint.
    chat: `yes`, `no`, or `auto`: where the checkpoint has a template.

  Raises:
    ValueError: another word, or a template is wanted and there is none.
  """
  if chat not in CHAT:
    raise ValueError(f"chat={chat!r}: must be one of {', '.join(CHAT)}")
  if chat == "yes" and not has_template(folder):
    raise ValueError(
      f"{folder}: has no chat template; use --chat=no, or --chat=auto"
    )
  return chat == "yes" or (chat == "auto" and has_template(folder))


def template(
  folder: str | os.PathLike, chat: str
) -> Callable[[str], str] | None:
  """What makes a prompt of the user's words.

  Args:
    folder: the checkpoint.
    chat: see `uses_template`.

  Returns:
    From the words to the whole text up to where the model answers, special
    tokens spelled out; None where the words are the prompt.

  Raises:
    ValueError: there is no template and one is wanted, or it is broken, or
      transformers cannot load the tokenizer.
  """
  if not uses_template(folder, chat):
    return None
  try:
    tokenizer = stock_generation.load_tokenizer(folder)
  except ImportError as error:
    raise ValueError(
      f"{folder}: its chat template needs transformers: pip install"
      " jaxprune[eval], or use --chat=no"
    ) from error

  def render(words: str) -> str:
    try:
      return tokenizer.apply_chat_template(
        [{"role": "user", "content": words}],
        tokenize=False,
        add_generation_prompt=True,
      )
    # A template is a program of its own, which may raise anything.
    except Exception as error:
      reason = files.reason(error)
      raise ValueError(
        f"{folder}: its chat template fails ({type(error).__name__}:"
        f" {reason}); mend it, or use --chat=no"
      ) from error

  render("a")  # before any model is loaded
  return render
