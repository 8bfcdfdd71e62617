"""Can a short training bring a pruned model back, its zeros kept?

finetune         the training loop
losses           what it minimises
states           where it keeps its state, to go on after a kill
trainable_mask   which parameters it may change"""

from jaxprune.recovery.finetune import Logbook, Recovered, Recovery, recover
from jaxprune.recovery.losses import (
  OBJECTIVES,
  distillation,
  logit_variance,
  next_token,
)
from jaxprune.recovery.trainable_mask import (
  make_trainable_mask,
  masks_from_zeros,
)

__all__ = [
  "OBJECTIVES",
  "Logbook",
  "Recovered",
  "Recovery",
  "distillation",
  "logit_variance",
  "make_trainable_mask",
  "masks_from_zeros",
  "next_token",
  "recover",
]
