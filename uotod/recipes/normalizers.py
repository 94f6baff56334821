"""Masses of a batch in, the divisors of detectors of mmdetection out."""

import torch

from uotod.loss import Divisors, Masses, PositiveNormalizer


class AnchorNormalizer(PositiveNormalizer):
    """Divide as `PositiveNormalizer`, but count an image without matches as one match outside of localisation.

    Args: those of `PositiveNormalizer`.
    """

    def divisors(self, masses: Masses) -> Divisors:
        """Return the masses of this process."""
        positive = masses.positive.clamp(min=1).sum(-1, keepdim=True)
        return super().divisors(masses)._replace(classification=positive[None], objectness=positive)


class CenternessNormalizer(PositiveNormalizer):
    """Divide as `PositiveNormalizer`, but localisation by a sum of weights that may be as small as 1e-6.

    Args: those of `PositiveNormalizer`.
    """

    @torch.no_grad()
    def forward(self, masses: Masses) -> Divisors:
        """Return the divisors of a batch."""
        # a divisor is kept at 1 or above: in millionths that is 1e-6
        divisors = super().forward(masses._replace(localization=masses.localization * 1e6))
        return divisors._replace(localization=divisors.localization / 1e6)
