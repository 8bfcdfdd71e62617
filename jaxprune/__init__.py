"""Prune a language model and measure what that does to h, z and p.

Import the packages by name: `jaxprune.models`, `.checkpoints`,
`.calibration`, `.pruning`, `.probes`, `.evaluation`, `.report`. Data goes
through them in that order and imports go the other way.
"""

__version__ = "0.1.0"
