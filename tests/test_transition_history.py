"""The keys and values of earlier tokens that a sublayer reads."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.models import decoder
from jaxprune.probes import transitions
from tests.test_transitions import (
  SLIDING,
  STEPS,
  layer_of,
  models,
  read_vectors,
  text,
)


@pytest.mark.parametrize("history", ["dense", "pruned"])
def test_whole_texts_hold_their_last_positions(history):
  """Without a position before the measured ones, and with."""
  dense, pruned = models(SLIDING)
  _, tokens_BT, _ = text(SLIDING)
  last, whole = (
    read_vectors(
      SLIDING, dense, pruned, tokens_BT, num_steps=num_steps, history=history
    )
    for num_steps in (STEPS, tokens_BT.shape[1])
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b[:, :, :, -STEPS:], rtol=2e-4, atol=2e-5
    ),
    last,
    whole,
  )


def test_pruned_history_is_a_model_with_one_pruned_attention():
  dense, pruned = models(SLIDING)
  _, tokens_BT, valid_BT = text(SLIDING)
  found = read_vectors(
    SLIDING, dense, pruned, tokens_BT, valid_BT, history="pruned"
  )
  read = jax.jit(
    lambda params: decoder.forward(
      SLIDING,
      params,
      tokens_BT,
      valid_BT=valid_BT,
      observe=lambda t: t["residual_mid"],
    )[1]
  )
  for index in range(SLIDING.num_layers):
    mixed = {
      **dense,
      "layers": {
        name: jax.tree.map(
          lambda a, b: np.concatenate(
            [a[:index], b[index : index + 1], a[index + 1 :]]
          ),
          jax.device_get(leaf),
          jax.device_get(pruned["layers"][name]),
        )
        if name.startswith("attention")
        else leaf
        for name, leaf in dense["layers"].items()
      },
    }
    mid_LBTD = read(mixed)
    np.testing.assert_allclose(
      found["g"][index, 0], mid_LBTD[index, :, -STEPS:], rtol=2e-5, atol=2e-5
    )


def test_no_history_reads_the_value_of_the_token():
  dense, pruned = models(SLIDING)
  _, tokens_BT, valid_BT = text(SLIDING)
  found = read_vectors(
    SLIDING, dense, pruned, tokens_BT, valid_BT, history="none"
  )
  layer = layer_of(pruned, 0)["attention"]
  x_BRD = np.asarray(dense["embed"]["table"])[tokens_BT[:, -STEPS:]]
  y_BRD = x_BRD / np.sqrt((x_BRD**2).mean(-1, keepdims=True) + 1e-5)
  y_BRD = y_BRD * np.asarray(layer_of(pruned, 0)["attention_norm"]["scale"])
  value_BRO = y_BRD @ np.asarray(layer["value"]["kernel"]) + np.asarray(
    layer["value"]["bias"]
  )
  read_BRNH = np.repeat(value_BRO.reshape(3, STEPS, 2, 4), 2, axis=2)
  expected = x_BRD + read_BRNH.reshape(3, STEPS, 16) @ np.asarray(
    layer["output"]["kernel"]
  )
  np.testing.assert_allclose(found["g"][0, 0], expected, rtol=1e-5, atol=1e-5)


def test_attention_to_a_foreign_history():
  draw = np.random.default_rng(0)
  batch, rows, keys, heads, kv_heads, width = 2, 3, 5, 6, 2, 4
  query = draw.normal(size=(batch, rows, heads, width))
  key, value = draw.normal(size=(2, batch, keys, kv_heads, width))
  own_key, own_value = draw.normal(size=(2, batch, rows, kv_heads, width))
  mask = draw.random((batch, rows, keys)) < 0.6
  mask[0, 1] = False  # nothing but its own
  expected = np.zeros_like(query)
  for b in range(batch):
    for r in range(rows):
      for n in range(heads):
        k = n // 3
        seen = np.concatenate([key[b, mask[b, r], k], own_key[b, r, k][None]])
        read = np.concatenate(
          [value[b, mask[b, r], k], own_value[b, r, k][None]]
        )
        weight = np.exp(seen @ query[b, r, n] / 2)
        expected[b, r, n] = weight / weight.sum() @ read
  found = transitions.attend_to_history(
    *(
      jnp.asarray(a, jnp.float32)
      for a in (query, key, value, own_key, own_value)
    ),
    jnp.asarray(mask),
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    found[0, 1], np.repeat(own_value[0, 1], 3, axis=0), rtol=1e-6
  )
