"""From SMILES to graphs, and many graphs as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ELEMENTS = ("B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Br", "I")
DEGREES, HYDROGENS = 5, 4
BONDS = ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC")
ATOM_FEATURES = len(ELEMENTS) + 1 + DEGREES + 1 + HYDROGENS + 1 + 3
BOND_FEATURES = len(BONDS) + 2


@dataclass
class Graphs:
    """Molecules side by side in one graph.

    `atoms` (A, ATOM_FEATURES) float, `bonds` (2, E) int64 from an atom to an atom, each bond in both directions,
    `bond_features` (E, BOND_FEATURES) float, `owner` (A,) int64 the molecule of each atom, `targets` (B,) float.
    """

    atoms: Tensor
    bonds: Tensor
    bond_features: Tensor
    owner: Tensor
    targets: Tensor

    @property
    def num_graphs(self) -> int:
        """The number of molecules, B."""
        return len(self.targets)


def chemistry() -> Any:
    """The module `rdkit.Chem`.

    Raises:
        ModuleNotFoundError: RDKit is not installed.
    """
    try:
        from rdkit import Chem
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "rdkit":
            raise
        raise ModuleNotFoundError(
            "rdkit is not installed; it is needed to read SMILES: pip install 'lightning-perf[molecules]'", name="rdkit"
        ) from error
    return Chem


def graph(smiles: str, target: float) -> Graphs:
    """One molecule, hydrogens left to the features of their atoms.

    An atom says its element, number of neighbours, number of hydrogens, charge, and whether it is aromatic and in a
    ring; a bond its kind, and whether it is conjugated and in a ring.

    Raises:
        ValueError: RDKit does not understand `smiles`.
        ModuleNotFoundError: RDKit is not installed.
    """
    molecule = chemistry().MolFromSmiles(smiles)
    if molecule is None or not molecule.GetNumAtoms():
        raise ValueError(f"smiles={smiles!r} is no molecule that RDKit can read: mend or leave out this row.")
    atoms = [
        [
            *_one_hot(atom.GetSymbol(), ELEMENTS, rest=True),
            *_one_hot(min(atom.GetDegree(), DEGREES), range(DEGREES + 1)),
            *_one_hot(min(atom.GetTotalNumHs(), HYDROGENS), range(HYDROGENS + 1)),
            float(atom.GetFormalCharge()),
            float(atom.GetIsAromatic()),
            float(atom.IsInRing()),
        ]
        for atom in molecule.GetAtoms()
    ]
    ends, features = [], []
    for bond in molecule.GetBonds():
        first, second = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        ends += [(first, second), (second, first)]
        features += [
            [
                *_one_hot(str(bond.GetBondType()), BONDS),
                float(bond.GetIsConjugated()),
                float(bond.IsInRing()),
            ]
        ] * 2
    return Graphs(
        atoms=torch.tensor(atoms),
        bonds=torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).T.contiguous(),
        bond_features=torch.tensor(features).reshape(-1, BOND_FEATURES),
        owner=torch.zeros(len(atoms), dtype=torch.int64),
        targets=torch.tensor([target]),
    )


def join(graphs: Sequence[Graphs]) -> Graphs:
    """Several graphs as one without edges between them; the `collate_fn` of the loaders."""
    atoms_before = molecules_before = 0
    bonds, owner = [], []
    for one in graphs:
        bonds.append(one.bonds + atoms_before)
        owner.append(one.owner + molecules_before)
        atoms_before += len(one.atoms)
        molecules_before += one.num_graphs
    return Graphs(
        atoms=torch.cat([one.atoms for one in graphs]),
        bonds=torch.cat(bonds, dim=1),
        bond_features=torch.cat([one.bond_features for one in graphs]),
        owner=torch.cat(owner),
        targets=torch.cat([one.targets for one in graphs]),
    )


def _one_hot(value: Any, choices: Sequence[Any], rest: bool = False) -> list[float]:
    """A 1.0 where `value` is, zeros elsewhere; with `rest` one more place for what is not among the choices."""
    row = [float(value == choice) for choice in choices]
    return [*row, float(value not in choices)] if rest else row
