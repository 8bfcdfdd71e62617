"""What is removed?

Array functions, each named like its file, on one matrix `w_IO`; `vmap`, `scan`,
`jit` and `shard_map` go outside. They know no model and read no disk:

  from jaxprune.calibration.statistics import observe_gram, observe_squares
  from jaxprune.pruning.patterns import NofM, Unstructured, keep_mask
  from jaxprune.pruning.methods.wanda import wanda

  pruned_IO, mask_IO = wanda(w_IO, observe_squares(x_BTI), NofM(keep=2, of=4))

patterns, lowest            which entries stay, given scores
magnitude, wanda, ria,      methods that score entries
  sparsegpt (factor), swaps
neuron, flap                hidden units of an MLP
quantize, awq               rounding
drops, similarities         whole sublayers
allocation, owl             how sparse each layer
algebra, reconstruction     masks as sets; the error of a layer's outputs

Whole checkpoints: `driver.prune_weights` and `drop_driver.prune_drops`, with
`methods` (the table), `layer`, `streaming`, `placement` (devices), `commits`
(resuming) and `estimate` (memory) behind them.
"""
