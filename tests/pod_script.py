"""A script of many steps, for the processes of tests/test_pods.py."""

import time

from absl import flags

from experiments import interrupts, launch

_SECONDS = flags.DEFINE_float("seconds", 0.1, "Of every step but the first.")


def main() -> None:
  interrupts.keep("every step is kept in here.partial")
  progress = launch.Progress("step", 1000)
  for index in range(1000):
    time.sleep(_SECONDS.value if index else 0)
    progress.step(index)


if __name__ == "__main__":
  launch.run(main)
