"""Where does a training keep its state, so that a killed one goes on?

A folder for each kept step, written by orbax under another name and renamed,
so that one with its name is whole.
"""

import json
import os
import pathlib
from typing import Any

import jax

from jaxprune import files
from jaxprune.checkpoints import orbax


class States:
  """The newest states of a training, in a folder of their own."""

  def __init__(self, folder: str | os.PathLike, run: dict[str, Any]):
    """Name the folder; it need not exist.

    Args:
      folder: where the states go, or lie.
      run: JSON values that say which training it is.
    """
    self.folder = pathlib.Path(folder)
    self._run = json.loads(json.dumps(run))

  def save(
    self, step: int, state: Any, losses: list[dict[str, float]] = ()
  ) -> None:
    """Keep the state after a step; the one before it stays, too.

    Args:
      step: steps that are done.
      state: a tree of arrays.
      losses: of the steps so far, by name.
    """
    target = self.folder / f"step_{step:06d}"
    if not target.exists():
      about = {"run": self._run, "losses": list(losses)}
      orbax.save_tree(target, _named(state), about)
    for old in self._kept()[:-2]:
      files.remove_tree(old)

  def newest(self, like: Any) -> tuple[int, Any, list[dict[str, float]]]:
    """The state to go on from.

    Args:
      like: the state before the first step.

    Returns:
      (steps that are done, state, losses of these steps); (0, `like`, []) where
      nothing is kept.

    Raises:
      ValueError: what is kept is of another training, or not readable.
    """
    kept = self._kept()
    if not kept:
      return 0, like, []
    leaves, about = orbax.load_tree(kept[-1], _named(like))
    if about.get("run") != self._run:
      raise ValueError(
        f"{kept[-1]}: state of another training ({about.get('run')}); choose"
        " another output folder, or the same flags"
      )
    leaves = [leaves[name] for name in _named(like)]
    state = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return int(kept[-1].name.removeprefix("step_")), state, about["losses"]

  def _kept(self) -> list[pathlib.Path]:
    return sorted(self.folder.glob("step_??????"))


def _named(tree):
  """A flat dict of leaves, which orbax keeps as it is."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
