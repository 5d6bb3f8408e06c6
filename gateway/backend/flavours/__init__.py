"""The differences between backend servers, and nothing else."""

from gateway.backend.flavours.base import Catalogue, Flavour, Refusal, context_exceeded
from gateway.backend.flavours.llamacpp import LlamaCpp
from gateway.backend.flavours.tgi import Tgi
from gateway.backend.flavours.vllm import Vllm

FLAVOURS: dict[str, Flavour] = {"tgi": Tgi(), "vllm": Vllm(), "llamacpp": LlamaCpp()}

__all__ = ["FLAVOURS", "Catalogue", "Flavour", "Refusal", "context_exceeded"]
