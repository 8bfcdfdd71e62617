"""The flags that name models: --model, or --dense and --pruned."""

import dataclasses
from typing import TYPE_CHECKING, Any

from absl import flags

from .define import REQUIRED, define_flag

if TYPE_CHECKING:  # a script shows its --help without loading JAX
  from jaxprune import checkpoints

# The flags belong to the script that calls, not to this file.
flags.disclaim_key_flags()

_A_MODEL = "a folder, a GGUF file, a hub id, or pocket"


@dataclasses.dataclass(frozen=True)
class Model:
  """The flag --model, or --dense."""

  model: flags.FlagHolder[str]

  def open(self, *, logits: bool = True) -> "checkpoints.Source":
    """Open the model, checked from its headers.

    Args:
      logits: whether they will be needed, and so an output head.
    """
    from jaxprune.studies import inputs

    return inputs.open_model(self.model.value, logits=logits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
  """The flags --dense and --pruned, which name two models of one shape."""

  dense: flags.FlagHolder[str]
  pruned: flags.FlagHolder[str]

  def open(self) -> dict[str, "checkpoints.Source"]:
    """Open the models that are named, by `dense` and `pruned`, in that order.

    Returns:
      The models, checked from their headers. A flag that is None has no entry.
    """
    from jaxprune.studies import inputs

    named = {"dense": self.dense.value, "pruned": self.pruned.value}
    return {
      role: inputs.open_model(name)
      for role, name in named.items()
      if name is not None
    }


def model(
  default: Any = "pocket", *, about: str = f"The model: {_A_MODEL}."
) -> Model:
  """Define --model.

  Args:
    default: name of a model, or REQUIRED.
    about: the help text.
  """
  return Model(define_flag(flags.DEFINE_string, "model", default, about))


def dense_model(about: str) -> Model:
  """Define --dense (also --model), which must be given.

  For scripts that prune the model, or compare it with several.

  Args:
    about: the help text.
  """
  holder = Model(define_flag(flags.DEFINE_string, "dense", REQUIRED, about))
  flags.DEFINE_alias("model", "dense")
  return holder


def models(
  *,
  dense: Any = REQUIRED,
  pruned: Any = REQUIRED,
  about_dense: str = f"The original model: {_A_MODEL}.",
  about_pruned: str = "The pruned model, of the same shape.",
  alias: bool = False,
) -> Models:
  """Define --dense and --pruned.

  Args:
    dense: name of a model, None where the flag may be left out, or REQUIRED.
    pruned: the same.
    about_dense: the help text of --dense.
    about_pruned: the help text of --pruned.
    alias: whether --model is a second name of --dense.
  """
  holders = Models(
    dense=define_flag(flags.DEFINE_string, "dense", dense, about_dense),
    pruned=define_flag(flags.DEFINE_string, "pruned", pruned, about_pruned),
  )
  if alias:
    flags.DEFINE_alias("model", "dense")
  return holders
