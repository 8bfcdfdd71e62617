"""Every activation that a config.json may name, beside stock transformers."""

import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from jaxprune.models import activations


@pytest.mark.parametrize("name", activations.STOCK_NAMES)
def test_equals_stock(name):
  x = np.linspace(-12, 12, 481, dtype=np.float32)
  ours = activations.FUNCTIONS[activations.STOCK_NAMES[name]](x)
  theirs = ACT2FN[name](torch.from_numpy(x)).numpy()
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)


def test_every_function_has_a_stock_name():
  assert set(activations.STOCK_NAMES.values()) == set(activations.FUNCTIONS)
