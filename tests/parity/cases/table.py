"""Every case, by its ``model_type`` and what is special about it: a new family adds itself to one of these modules."""

from types import MappingProxyType

from tests.parity.cases import dense, experts, gpt, latent, recurrent

CASES = MappingProxyType({**dense.CASES, **experts.CASES, **gpt.CASES, **latent.CASES, **recurrent.CASES})
