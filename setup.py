"""The scripts lie in experiments/; a wheel has them as jaxprune.experiments."""

import setuptools

setuptools.setup(
  packages=[
    *setuptools.find_packages(include=["jaxprune", "jaxprune.*"]),
    "jaxprune.experiments",
    "jaxprune.experiments.flag_groups",
  ],
  package_dir={"jaxprune.experiments": "experiments"},
)
