"""The messages of one gettext catalogue: a reader of `.mo` files, which programs load, and one of `.po` files."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

MAGIC = 0x950412DE
CONTEXT, PLURAL = "\x04", "\0"  # between a context and its message, and between the forms of a number
LINE = re.compile(r'(?:(msgctxt|msgid_plural|msgid|msgstr(?:\[\d+\])?)\s+)?"((?:[^"\\]|\\.)*)"')
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", '"': '"', "\\": "\\"}


def read(path: Path) -> dict[tuple[str, str], str]:
    """The translations of a `.mo` or `.po` file by context (empty as a rule) and message, in the order of the file.

    A message with a plural gives both its forms where the language has two, the plural alone where it has one, and
    nothing where it has more, since none of those is the one for all numbers. In a `.po` file entries that are fuzzy,
    obsolete or empty are left out, as `msgfmt` leaves them out of the `.mo` file.

    Raises:
        ValueError: the file is no catalogue, is cut short, or is not in the character set that it names.
    """
    content = path.read_bytes()
    try:
        entries = list(_entries_of_po(content) if path.suffix == ".po" else _entries_of_mo(content))
    except (ValueError, LookupError, struct.error) as error:
        raise ValueError(f"{path} is no gettext catalogue that can be read: {error}.") from error
    found: dict[tuple[str, str], str] = {}
    for message, translation in entries:
        if not message:  # the header
            continue
        context, _, message = message.rpartition(CONTEXT)
        messages, translations = message.split(PLURAL), translation.split(PLURAL)
        if len(translations) == 1:
            messages = messages[-1:]
        elif len(translations) != len(messages):
            continue
        for one, its in zip(messages, translations, strict=True):
            if one and its:
                found.setdefault((context, one), its)
    return found


def _entries_of_mo(content: bytes) -> Iterator[tuple[str, str]]:
    """Messages and translations, as the two tables of the file point at them (manual of GNU gettext, section 10.3)."""
    order = next((order for order in "<>" if content[:4] == struct.pack(f"{order}I", MAGIC)), None)
    if order is None:
        raise ValueError("it does not begin as a .mo file does")
    count, *tables = struct.unpack_from(f"{order}3I", content, 8)
    pairs = []
    for index in range(count):
        pair = []
        for table in tables:
            length, start = struct.unpack_from(f"{order}2I", content, table + 8 * index)
            if start + length > len(content):
                raise ValueError(f"string {index + 1} of {count} lies behind its end")
            pair.append(content[start : start + length])
        pairs.append(pair)
    charset = _charset(dict(pairs).get(b"", b""))
    for message, translation in pairs:
        yield message.decode(charset), translation.decode(charset)


def _entries_of_po(content: bytes) -> Iterator[tuple[str, str]]:
    """The same, a message's context, plural and forms put together as they are in a `.mo` file."""
    entry: dict[str, str] = {}
    keyword, fuzzy = "", False
    lines = content.decode(_charset(content)).removeprefix("\ufeff").split("\n")
    for number, line in enumerate([*lines, "#"], start=1):
        line = line.strip()
        parts = LINE.fullmatch(line)
        named = parts[1] if parts else None
        if keyword.startswith("msgstr") and (line.startswith("#") or named in ("msgctxt", "msgid")):
            if not fuzzy:
                yield _as_in_mo(entry)
            entry, keyword, fuzzy = {}, "", False
        if line.startswith(("#,", "#~")):  # what is obsolete takes its flags along
            fuzzy = line.startswith("#,") and (fuzzy or "fuzzy" in re.split(r"[,\s]+", line))
        if not line or line.startswith("#"):
            continue
        keyword = named or keyword
        early = not keyword or (keyword.startswith("msgstr") and "msgid" not in entry)
        if parts is None or named in entry or early:
            raise ValueError(f"line {number} is out of place: {line}")
        entry[keyword] = entry.get(keyword, "") + re.sub(r"\\(.)", _unescaped, parts[2])


def _as_in_mo(entry: dict[str, str]) -> tuple[str, str]:
    context = entry["msgctxt"] + CONTEXT if "msgctxt" in entry else ""
    plural = PLURAL + entry["msgid_plural"] if "msgid_plural" in entry else ""
    forms = [text for keyword, text in entry.items() if keyword.startswith("msgstr")]
    return (context + entry["msgid"] + plural if entry["msgid"] else ""), PLURAL.join(forms)


def _unescaped(found: re.Match[str]) -> str:
    if found[1] not in ESCAPES:
        raise ValueError(f"{found[0]} is not among the escapes {', '.join(ESCAPES)}")
    return ESCAPES[found[1]]


def _charset(header: bytes) -> str:
    named = re.search(rb"charset=([\w.:-]+)", header)
    return named[1].decode() if named and named[1] != b"CHARSET" else "utf-8"
