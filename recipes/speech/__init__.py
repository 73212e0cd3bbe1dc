"""Spoken words told apart by one-dimensional convolutions on log-mel spectra, and a small synthesiser from text to mel.

Data: words spoken by espeak-ng (sudo apt-get install espeak-ng), or a folder of yours in the layout of Speech Commands.
"""

from .data import SpeechData
from .module import KeywordSpotter

__all__ = ["KeywordSpotter", "SpeechData"]
