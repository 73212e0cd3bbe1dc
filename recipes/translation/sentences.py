"""Where the sentences come from: catalogues of an installed package or of a folder, or a file of the user."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from . import catalogues

DEFAULT = "django"
FOLDER = "LC_MESSAGES"


def of_package(package: str, source: str | None, target: str) -> list[tuple[str, str]]:
    """Pairs of sentences out of the catalogues of an installed package, which is not imported; see `of_catalogues`.

    `package` is the name that `pip` or that `import` knows.

    Raises:
        ModuleNotFoundError: it is not installed.
        ValueError: it has no catalogues, or none of that language.
    """
    files: list[Path] = []
    installed = True
    try:
        files = [Path(str(file.locate())) for file in importlib.metadata.files(package) or ()]
    except importlib.metadata.PackageNotFoundError:
        installed = False
    if not _by_language(files):  # another name than pip's, or an installation that links to a folder
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        installed = installed or spec is not None
        files = [file for root in (spec and spec.submodule_search_locations) or () for file in _below(Path(root))]
    if not installed:
        fix = "pip install 'lightning-perf[translation]'" if package == DEFAULT else f"pip install {package}"
        raise ModuleNotFoundError(
            f"{package} is not installed, whose catalogues hold the sentences: {fix}, or pass as path a file with a "
            "source, a tab and its translation in every line.",
            name=package,
        )
    return of_catalogues(files, source, target, f"package={package!r}")


def of_path(path: Path, source: str | None, target: str) -> list[tuple[str, str]]:
    """Pairs out of the catalogues below a folder, or out of a file with a source, a tab and its translation per line.

    Raises:
        ValueError: there is no such file or folder; a line without one tab; a folder without catalogues of that language.
    """
    if path.is_dir():
        return of_catalogues(_below(path), source, target, f"path={str(path)!r}")
    if not path.is_file():
        raise ValueError(
            f"path={str(path)!r} is neither a file nor a folder: leave it out to read a package's catalogues."
        )
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        parts = line.split("\t")
        if len(parts) != 2:
            raise ValueError(
                f"{path}, line {number}: {len(parts) - 1} tabs; a source, one tab and its translation are needed."
            )
        pairs.append((parts[0], parts[1]))
    return _cleaned(pairs)


def of_catalogues(
    files: Iterable[Path], source: str | None, target: str, where: str = "the files"
) -> list[tuple[str, str]]:
    """Pairs of a message and its translation from files `LANGUAGE/LC_MESSAGES/NAME.mo` or `.po`; others are not read.

    Without `source` the sources are the messages as the program has them, in English as a rule; with a language they
    are its translations of the same messages. Every pair comes once. A `.po` file beside its `.mo` is not read; what
    cannot be read is left out with a warning.

    Raises:
        ValueError: no catalogue, or none of such a language.
    """
    languages = _by_language(files)
    if not languages:
        raise ValueError(f"{where} holds no catalogue, no file LANGUAGE/{FOLDER}/NAME.mo or .po: choose another.")
    for name, language in (("source", source), ("target", target)):
        if language is not None and language not in languages:
            raise ValueError(f"{name}={language!r} is no language of {where}: it has {', '.join(sorted(languages))}.")
    pairs, unreadable = [], []
    for catalogue, file in sorted(languages[target].items()):
        if source is not None and catalogue not in languages[source]:
            continue
        try:
            translations = catalogues.read(file)
            sources = None if source is None else catalogues.read(languages[source][catalogue])
        except ValueError as error:
            unreadable.append(str(error))
            continue
        for (context, message), translation in translations.items():
            one = message if sources is None else sources.get((context, message))
            if one is not None:
                pairs.append((one, translation))
    if unreadable:
        rank_zero_warn(f"{len(unreadable)} catalogues are left out: {' '.join(unreadable)}")
    return _cleaned(pairs)


def _cleaned(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    stripped = ((source.strip(), target.strip()) for source, target in pairs)
    return list(dict.fromkeys(pair for pair in stripped if all(pair)))


def _below(folder: Path) -> list[Path]:
    return [file for suffix in ("mo", "po") for file in folder.rglob(f"{FOLDER}/*.{suffix}")]


def _by_language(files: Iterable[Path]) -> dict[str, dict[Path, Path]]:
    """Languages, of each the catalogues by where they are without language and suffix."""
    found: dict[str, dict[Path, Path]] = {}
    for file in sorted(files, key=lambda file: file.suffix == ".po"):
        if file.parent.name == FOLDER and file.suffix in (".mo", ".po"):
            language = file.parent.parent
            found.setdefault(language.name, {}).setdefault(language.parent / file.stem, file)
    return found
