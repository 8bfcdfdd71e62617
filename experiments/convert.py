"""Convert a model: GGUF to Hugging Face, and Hugging Face to Orbax and back.

  jaxprune convert --model=FOLDER --out=ORBAX [--mesh=model:8]
  jaxprune convert --model=ORBAX --out=FOLDER [--shard_size=2GB]
  jaxprune convert --model=FILE.gguf --out=FOLDER

The input decides the direction. Nothing is rounded without --dtype: Hugging
Face to Orbax and back gives the same bits, and the hash is compared. A GGUF
file is dequantised to float32.

ORBAX holds the Flax parameters under `params/`, for any JAX program, the masks
of a pruned model under `masks/`, configuration, tokenizer and provenance. It
may be spread over the devices of --mesh and read onto another mesh, whole or in
parts (jaxprune.checkpoints.orbax_folder). On a pod every process runs the same
command with --distributed.
"""

from absl import flags

from . import descriptions, flag_groups, launch

_MODEL = flag_groups.model(
  flag_groups.REQUIRED,
  about="A GGUF file, a Hugging Face or Orbax folder, a hub id, or pocket.",
)
_OUT = flag_groups.out()
_DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["float32", "bfloat16", "float16"],
  "Type of the weights that are written; by default the model's.",
)
_MESH = flag_groups.mesh(
  "Devices that an Orbax checkpoint is spread over, such as data:4,model:2."
)
_SHARD_SIZE = flag_groups.shard_size()


def main() -> None:
  import pathlib

  from jaxprune.studies import convert, inputs

  name = _MODEL.model.value
  model = convert.identify(name)
  description = descriptions.describe(seeds={}, models=model)
  with launch.place(
    _OUT.value,
    description,
    models=model,
    model=True,
    spare=[pathlib.Path(name)],
  ) as (stage, _):
    kind, record = convert.convert(
      name,
      stage.new,
      convert.Settings(
        dtype=_DTYPE.value,
        mesh=inputs.read_mesh(_MESH.value),
        shard_size=inputs.read_size(_SHARD_SIZE.value),
      ),
    )
    with launch.records(stage, description) as study:
      summary = {"checkpoint_hash": record["checkpoint_hash"]}
      study.finish(summary, kind, wrote=("",))
  study.close()


if __name__ == "__main__":
  launch.run(main)
