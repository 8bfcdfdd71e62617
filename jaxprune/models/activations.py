"""Which function is between the two halves of an MLP?

Reference: ACT2FN of transformers 5, which gives one function several names.
"""

import functools
from collections.abc import Callable

import jax

# The functions, by the names that configurations have here.
FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "silu": jax.nn.silu,
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
}

# The name in config.json -> the name here.
STOCK_NAMES = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_python": "gelu",
  "gelu_accurate": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_new": "gelu_tanh",
  "gelu_python_tanh": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu",
}
