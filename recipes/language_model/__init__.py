"""A byte-level language model: a small decoder-only transformer on any text file."""

from .data import TextData
from .module import LanguageModel

__all__ = ["LanguageModel", "TextData"]
