"""A small synthesiser from text to mel spectra, measured by their distance from how the text is said.

Data: numbers spoken by espeak-ng, or a folder of yours in the layout of Speech Commands.
"""

from .data import SpokenTextData
from .module import MelSynthesiser

__all__ = ["MelSynthesiser", "SpokenTextData"]
