"""Classification of the rows of a table with a small multilayer perceptron.

Data: a table bundled with scikit-learn (digits by default), or a CSV file of yours.
"""

from .data import TableData
from .module import TabularClassifier

__all__ = ["TableData", "TabularClassifier"]
