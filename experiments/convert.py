"""Convert a model: GGUF to Hugging Face, and Hugging Face to Orbax and back.

  python -m experiments.convert --model=FOLDER --out=ORBAX [--mesh=model:8]
  python -m experiments.convert --model=ORBAX --out=FOLDER [--shard_size=2GB]
  python -m experiments.convert --model=FILE.gguf --out=FOLDER

The input decides the way. ORBAX holds the Flax parameters under `params/`, for
any JAX program, spread over the devices of --mesh, the masks of a pruned model
under `masks/`, configuration, tokenizer and provenance; it can be read onto
another mesh, whole or in parts (jaxprune.checkpoints.orbax_folder). Without
--dtype the way there and back gives the same bits, and the hash is compared.
A GGUF file is dequantised to float32, which rounds nothing, unless --dtype says
otherwise. On a pod every process runs the same command with --distributed.
"""

from absl import flags

from . import flag_groups, launch

_MODEL = flag_groups.model(
  flag_groups.REQUIRED,
  about="A GGUF file, a Hugging Face or Orbax folder, a hub id, or pocket.",
)
_OUT = flag_groups.out()
_DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["float32", "bfloat16", "float16"],
  "Of the weights that are written; by default those of the model.",
)
_MESH = flag_groups.mesh(
  "Devices that an Orbax checkpoint is spread over, such as data:4,model:2."
)
_SHARD_SIZE = flag_groups.shard_size()


def main() -> None:
  from jaxprune import checkpoints, devices
  from jaxprune.studies import convert, inputs

  wrote, record = convert.convert(
    _MODEL.model.value,
    _OUT.value,
    convert.Settings(
      dtype=_DTYPE.value,
      mesh=inputs.read_mesh(_MESH.value),
      shard_size=inputs.read_size(_SHARD_SIZE.value),
      overwrite=flags.FLAGS.overwrite,
    ),
  )
  if devices.is_writer():
    description = launch.describe(seeds={}, models=record["checkpoint_hash"])
    checkpoints.atomic_write_json(f"{_OUT.value}/run.json", description)
    print(f"wrote {wrote}")


if __name__ == "__main__":
  launch.run(main)
