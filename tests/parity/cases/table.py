"""Every case, by its ``model_type`` and what is special about it: a new family adds itself to one of these modules."""

from types import MappingProxyType

from tests.parity.cases import dense, experts, latent, recurrent

CASES = MappingProxyType({**dense.CASES, **experts.CASES, **latent.CASES, **recurrent.CASES})
