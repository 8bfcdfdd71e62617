"""Run the retrieval tasks of mteb on an encoder of ours.

  model = load_encoder(FOLDER)
  mteb.evaluate(model, task, cache=None)

mteb batches the texts, this object embeds them, mteb searches and scores. It
needs `pip install 'jaxprune[mteb]'`, which brings torch; nothing else here
does.

Reference: `EncoderProtocol` of mteb 2.
Differs from the reference in: queries and documents are embedded alike, as the
checkpoint does; a prompt for one of them is not looked up.
"""

import os
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints
from jaxprune.calibration.tokenizer import load_tokenizer
from jaxprune.evaluation import sentences
from jaxprune.models import EncoderConfig


class MtebEncoder:
  """An encoder as mteb calls it: a structural protocol, no base class.

  Attributes:
    mteb_model_meta: name and revision under which mteb files the scores.
  """

  def __init__(
    self,
    model_name: str,
    revision: str | None = None,
    *,
    device: str | None = None,
    max_tokens: int = 256,
    batch_size: int = 8,
  ):
    """Load a folder; see `load_encoder`.

    Args:
      model_name: folder of the encoder.
      revision: filed with the scores; None is the hash of the weights.
      device: as mteb passes it; JAX's default device is used anyway.
      max_tokens: a longer text loses its end.
      batch_size: texts at a time.

    Raises:
      ValueError: mteb is not installed, or the folder is not an encoder.
    """
    del device
    meta = _model_meta()
    source = checkpoints.open_checkpoint(
      checkpoints.resolve_model(model_name), EncoderConfig
    )
    self._pooling = checkpoints.read_pooling(source.folder)
    self._tokenizer = load_tokenizer(source.folder)
    self._max_tokens = min(max_tokens, source.config.max_positions)
    self._batch_size = batch_size
    self._config, self._params = checkpoints.load_params(source, jnp.float32)
    self.mteb_model_meta = meta.create_empty(
      dict(
        name=f"jaxprune/{source.folder.resolve().name}",
        revision=revision or checkpoints.checkpoint_hash(source)[:16],
      )
    )

  def encode(
    self,
    inputs: Iterable[dict[str, Any]],
    *,
    task_metadata: Any = None,
    hf_split: str = "",
    hf_subset: str = "",
    prompt_type: Any = None,
    **kwargs: Any,
  ) -> np.ndarray:
    """Embed texts.

    Args:
      inputs: batches with a list of strings under `text`.
      task_metadata: not used, nor are the others: mteb passes them all.
      hf_split: not used.
      hf_subset: not used.
      prompt_type: not used; see the module.
      **kwargs: not used; the protocol demands it.

    Returns:
      float32 [texts, D].
    """
    del task_metadata, hf_split, hf_subset, prompt_type, kwargs
    texts = [text for batch in inputs for text in batch["text"]]
    ids = sentences.tokenise(self._tokenizer, texts, self._max_tokens)
    return sentences.embed_texts(
      self._config,
      self._params,
      ids,
      self._pooling,
      batch_size=self._batch_size,
    )

  def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
    """Cosine of every pair, as a torch tensor [n, m]."""
    import torch

    return torch.from_numpy(
      np.einsum("QD,AD->QA", _unit(embeddings1), _unit(embeddings2))
    )

  def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
    """Cosine of each row with its counterpart, as a torch tensor [n]."""
    import torch

    return torch.from_numpy(
      np.sum(_unit(embeddings1) * _unit(embeddings2), axis=1)
    )


def load_encoder(
  folder: str | os.PathLike, *, max_tokens: int = 256, batch_size: int = 8
) -> MtebEncoder:
  """Make the object that `mteb.evaluate` takes.

  Args:
    folder: an encoder in the layout of sentence-transformers, dense or pruned.
    max_tokens: a longer text loses its end.
    batch_size: texts at a time.

  Raises:
    ValueError: mteb is not installed, or the folder is not an encoder.
  """
  return MtebEncoder(
    os.fspath(folder), max_tokens=max_tokens, batch_size=batch_size
  )


def _model_meta() -> Any:
  try:
    from mteb.models import ModelMeta
  except ImportError as error:
    raise ValueError(
      "mteb is not installed: pip install 'jaxprune[mteb]'"
    ) from error
  return ModelMeta


def _unit(embeddings) -> np.ndarray:
  vectors = np.asarray(embeddings, np.float32)
  vectors = np.atleast_2d(vectors)
  length = np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / np.maximum(length, 1e-12)
