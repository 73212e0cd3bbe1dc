"""A byte-level language model: a small decoder-only transformer on any text file.

Data: a text file of yours; by default the licences and the manual of this Python installation.
"""

from .data import TextData
from .module import LanguageModel

__all__ = ["LanguageModel", "TextData"]
