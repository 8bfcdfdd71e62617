"""Whatever happens to one process of a pod, all end soon, and say why."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import faults
import pytest
import scripts

SECONDS = 60  # from what happens to the end of all, on a busy machine
STEPS = [sys.executable, str(scripts.ROOT / "tests" / "pod_script.py")]
PRUNE = [sys.executable, "-m", "experiments.prune"]


class Process:
  """A process of a pod, whose stderr is read as it comes."""

  def __init__(self, command, cwd=scripts.ROOT):
    environment = dict(
      os.environ,
      JAX_PLATFORMS="cpu",
      PYTHONPATH=str(scripts.ROOT),
      # Of two flags the last one counts.
      XLA_FLAGS=os.environ["XLA_FLAGS"]
      + " --xla_force_host_platform_device_count=1",
    )
    self._popen = subprocess.Popen(
      command,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
      cwd=cwd,
      env=environment,
    )
    self.lines = []
    self._came = threading.Condition()
    self._reader = threading.Thread(target=self._read)
    self._reader.start()

  def _read(self):
    for line in self._popen.stderr:
      with self._came:
        self.lines.append(line.rstrip())
        self._came.notify()
    self._popen.stderr.close()

  def wait_for(self, text, seconds=200):
    with self._came:
      assert self._came.wait_for(
        lambda: any(text in line for line in self.lines), seconds
      ), self.lines

  def send(self, number):
    self._popen.send_signal(number)

  def wait(self, until):
    """The exit status and the last line, where it ends in time."""
    status = self._popen.wait(max(until - time.monotonic(), 0.1))
    self._reader.join()
    return status, (self.lines or [""])[-1]

  def end(self):
    if self._popen.poll() is None:
      self._popen.kill()
      self._popen.wait()
    self._reader.join()


@pytest.fixture
def pods():
  """Starts the processes of pods of two; those that are left are ended."""
  started = []

  def start_all():
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      port = free.getsockname()[1]

    def start(index, command, **options):
      address = [f"--coordinator=127.0.0.1:{port}", f"--process_id={index}"]
      started.append(
        Process(
          [*command, "--distributed", "--num_processes=2", *address], **options
        )
      )
      return started[-1]

    return start

  yield start_all
  for process in started:
    process.end()


@pytest.fixture
def pod(pods):
  """Starts the processes of one pod."""
  return pods()


def assert_clean(*processes):
  """One line at the end, nothing of the runtime."""
  for process in processes:
    said = "\n".join(process.lines)
    assert "Traceback" not in said and "absl" not in said, said
    assert sum(line.startswith("stopped: ") for line in process.lines) <= 1


def test_other_flags(pod, tmp_path):
  same = [*PRUNE, f"--model={tmp_path}", f"--out={tmp_path}/out"]
  zero, one = pod(0, same), pod(1, [*same, "--sparsity=0.4"])
  one.wait_for("error: ")
  until = time.monotonic() + SECONDS
  why = "--sparsity is 0.4 in process 1 and 0.5 in process 0; start all"
  status, line = one.wait(until)
  assert status == 1 and line.startswith(f"error: {why}")
  status, line = zero.wait(until)
  assert status == 1
  assert line.startswith(f"stopped: process 1 ended by an error: {why}")
  assert line.endswith("--process_id=0")  # its own command
  assert_clean(zero, one)


def test_the_model_is_not_everywhere(pod, tmp_path):
  """Process 0 waits in the backend for devices that never come."""
  home = faults.save_model(tmp_path / "there")
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  flags = ["--model=dense", "--method=magnitude", f"--out={tmp_path}/out"]
  zero = pod(0, [*PRUNE, *flags], cwd=home)
  one = pod(1, [*PRUNE, *flags], cwd=elsewhere)
  one.wait_for("error: ")
  until = time.monotonic() + SECONDS
  assert one.wait(until)[0] == 1
  status, line = zero.wait(until)
  assert status == 1
  assert line.startswith("stopped: process 1 ended by an error: ")
  assert "dense" in line
  assert_clean(zero, one)


def test_killed_or_at_no_end(pods):
  """The coordinator takes its service with it; others miss heartbeats.

  And a process that is told to end ends nevertheless: one that finishes no
  step, and one that waits for the others. All pods at once, since they wait.
  """
  alone = pods()(1, STEPS)
  seconds = (0.1, 0.1, 1000)
  victims = ((0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGTERM))
  steps = [[*STEPS, f"--seconds={each}"] for each in seconds]
  started = [
    [start(index, command) for index in range(2)]
    for start, command in zip([pods() for _ in steps], steps)
  ]
  for processes in started:
    processes[0].wait_for("step 1/")
  alone.wait_for("process 1 waits for process 0 at 127.0.0.1:")
  alone.send(signal.SIGTERM)
  for processes, (victim, number) in zip(started, victims):
    processes[victim].send(number)
  until = time.monotonic() + SECONDS
  for processes, (victim, number) in zip(started, victims):
    told = "no longer answers"
    if number == signal.SIGTERM:
      told = "was told to end (SIGTERM)"
      assert processes[victim].wait(until)[0] == 143
      assert_clean(processes[victim])
    status, line = processes[1 - victim].wait(until)
    assert status == 1
    assert line.startswith(f"stopped: process {victim} {told}")
    assert "every step is kept in here.partial; go on with: " in line
    assert_clean(processes[1 - victim])
  status, line = alone.wait(until)
  assert status == 143 and line.startswith("stopped: was told to end (SIGTERM)")
  assert_clean(alone)


# Layers so slow that the notice of the signal comes in between.
_SLOW_PRUNE = """
import runpy, sys, time
from jaxprune.pruning.checkpoint import resume
save = resume.save_layer
def slow(*args):
  save(*args)
  time.sleep(1)
resume.save_layer = slow
sys.argv[0] = "prune"
runpy.run_module("experiments.prune", run_name="__main__", alter_sys=True)
"""


def test_preempted_and_run_again(pods, tmp_path):
  """SIGTERM: the same layer is the last in all; then the same bytes."""
  home = faults.save_model(tmp_path, num_hidden_layers=8)
  flags = [*faults.prune_flags(home, "magnitude"), f"--out={home}/out"]
  slow = [sys.executable, "-c", _SLOW_PRUNE, *flags]
  pod = pods()
  processes = [pod(index, slow) for index in range(2)]
  processes[0].wait_for("layer 1/")
  processes[1].send(signal.SIGTERM)
  until = time.monotonic() + SECONDS
  for process in processes:
    status, line = process.wait(until)
    assert status == 143, process.lines
    assert line.startswith(
      "stopped: process 1 was told to end (SIGTERM); what was finished is kept"
      f" in {home}/out.partial; go on with: python -m experiments.prune"
    )
  assert_clean(*processes)
  pod = pods()
  again = [pod(index, [*PRUNE, *flags]) for index in range(2)]
  for process in again:
    assert process.wait(time.monotonic() + 200)[0] == 0, process.lines
  assert again[0].lines and not any(
    "layer 1/" in line for line in again[0].lines
  )
  done = scripts.call("prune", *flags[:-1], f"--out={home}/whole")
  assert done.returncode == 0, done.stderr
  for name in ("model.safetensors", "masks.safetensors"):
    whole = (home / "whole" / name).read_bytes()
    assert (home / "out" / name).read_bytes() == whole
