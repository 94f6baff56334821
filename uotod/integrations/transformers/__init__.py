"""Detectors of transformers: a model in, the same model trained by a criterion of this library out."""

from uotod.integrations.transformers.families import criterion_for
from uotod.integrations.transformers.outputs import convert
from uotod.integrations.transformers.training import set_criterion

__all__ = ["convert", "criterion_for", "set_criterion"]
