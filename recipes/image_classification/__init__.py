"""Image classification on Fashion-MNIST with small residual networks."""

from .data import FashionMNISTData
from .module import ImageClassifier

__all__ = ["FashionMNISTData", "ImageClassifier"]
