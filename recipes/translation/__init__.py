"""Translation with a small encoder-decoder transformer over bytes, scored by BLEU and chrF.

Data: the catalogues of an installed package, by default Django's, English into German; or a file of yours.
"""

from .data import TranslationData
from .module import Translator

__all__ = ["TranslationData", "Translator"]
