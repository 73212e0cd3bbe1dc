"""Where the text comes from: a file of the user, or what every Python installation brings to read."""

from __future__ import annotations

import importlib.metadata
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

WORDS_OF_LICENCES = ("licen", "notice", "copying")


def read(path: Path) -> bytes:
    """The bytes of a text file.

    Raises:
        ValueError: `path` is no file.
    """
    if not path.is_file():
        raise ValueError(f"path={str(path)!r} is no file: name a text file, or leave path out for the default text.")
    return path.read_bytes()


def default() -> tuple[bytes, list[str]]:
    """The licences and the manual that lie in this Python installation, as one text, and the names of its sources.

    First the licence of Python, then those of the installed packages by name, last the language reference that
    `help()` shows, by topic. A paragraph that came before is left out, since licences repeat one another. The same
    installation always gives the same text; another one gives a similar text.

    Raises:
        ModuleNotFoundError: this installation has none of it.
    """
    documents = [*_python_licence(), *_package_licences(), *_manual()]
    if not documents:
        raise ModuleNotFoundError(
            "This Python installation has neither its manual (the module pydoc_data.topics) nor any licence text to "
            "train on: pass a text file of your own as path."
        )
    names, texts = zip(*documents, strict=True)
    return unique_paragraphs(texts), list(names)


def unique_paragraphs(texts: Iterable[str]) -> bytes:
    """The paragraphs of all texts, each only where it first occurs, blank lines between them, as UTF-8.

    Paragraphs that differ in white space only count as the same.

    Example::

        >>> unique_paragraphs(["a\\n\\nb c", "b  c\\n\\nd"])
        b'a\\n\\nb c\\n\\nd\\n'
    """
    first: dict[str, str] = {}
    for text in texts:
        for paragraph in text.replace("\r\n", "\n").split("\n\n"):
            first.setdefault(" ".join(paragraph.split()), paragraph.strip("\n"))
    first.pop("", None)
    return ("\n\n".join(first.values()) + "\n").encode()


def _python_licence() -> Iterator[tuple[str, str]]:
    path = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    if path.is_file():
        yield "Python's licence", _decoded(path)


def _package_licences() -> Iterator[tuple[str, str]]:
    found: dict[str, str] = {}
    for package in importlib.metadata.distributions():
        for file in package.files or ():
            name = file.name.lower()
            licence = any(word in name for word in WORDS_OF_LICENCES) and not name.endswith((".py", ".pyc"))
            path = Path(str(package.locate_file(file)))
            if licence and ".dist-info" in str(file.parent) and path.is_file():
                found[str(file)] = _decoded(path)
    yield from sorted(found.items(), key=lambda item: (item[0].lower(), item[0]))


def _manual() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError:  # some systems cut it out of the standard library
        return
    for topic, text in sorted(topics.items()):
        yield f"Python's manual, {topic}", text


def _decoded(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
