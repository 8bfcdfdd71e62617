"""What is run: configuration, decoder, cached generation, encoder."""

from jaxprune.models.blocks import Context as Context
from jaxprune.models.config import ModelConfig as ModelConfig
from jaxprune.models.config import RopeConfig as RopeConfig
from jaxprune.models.decoder import KERNEL_INPUTS as KERNEL_INPUTS
from jaxprune.models.decoder import KERNELS as KERNELS
from jaxprune.models.decoder import Decoder as Decoder
from jaxprune.models.decoder import block as block
from jaxprune.models.decoder import embed as embed
from jaxprune.models.decoder import final_norm as final_norm
from jaxprune.models.decoder import forward as forward
from jaxprune.models.decoder import init as init
from jaxprune.models.decoder import make_context as make_context
from jaxprune.models.decoder import make_gates as make_gates
from jaxprune.models.decoder import unembed as unembed
from jaxprune.models.encoder import Encoder as Encoder
from jaxprune.models.encoder import init_encoder as init_encoder
from jaxprune.models.encoder import pool as pool
from jaxprune.models.encoder_config import EncoderConfig as EncoderConfig
from jaxprune.models.generation import Cache as Cache
from jaxprune.models.generation import Generation as Generation
from jaxprune.models.generation import choose as choose
from jaxprune.models.generation import decode_step as decode_step
from jaxprune.models.generation import generate as generate
from jaxprune.models.generation import prefill as prefill
from jaxprune.models.generation import unstack as unstack
from jaxprune.models.parts import Gates as Gates
