"""Classification of DNA or protein sequences with one-dimensional convolutions.

Data: FASTA files of yours, one per class; by default made-up DNA with and without a motif, which is no measured data.
"""

from .data import SequenceData
from .module import SequenceClassifier

__all__ = ["SequenceClassifier", "SequenceData"]
