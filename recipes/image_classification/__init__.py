"""Image classification on Fashion-MNIST with small residual networks, or a small vision transformer.

Data: Fashion-MNIST from a folder, a Debian package or a download; else the digits that come with scikit-learn.
"""

from .data import FashionMNISTData
from .module import ImageClassifier

__all__ = ["FashionMNISTData", "ImageClassifier"]
