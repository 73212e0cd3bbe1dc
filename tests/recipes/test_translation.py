"""The translation recipe: bytes, catalogues, sentences, network, module, data."""

from __future__ import annotations

import gettext
import importlib.metadata
import importlib.util
import io
import math
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from recipes.translation import catalogues, sentences
from recipes.translation.data import TranslationData
from recipes.translation.module import Translator
from recipes.translation.networks import EncoderDecoder, positions, translate
from recipes.translation.tokens import BEGIN, END, PAD, VOCABULARY, decode, encode, join
from tests.recipes.small import ROOT

HAS_DJANGO = importlib.util.find_spec("django") is not None

PO = r"""# Translators:
msgid ""
msgstr ""
"Project-Id-Version: none\n"
"Content-Type: text/plain; charset=UTF-8\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\n"

#: here.py:1
#, python-format
msgid "Enter %(name)s"
msgstr "%(name)s eingeben"

msgctxt "month"
msgid "May"
msgstr "Mai"

msgid "May"
msgstr "darf"

msgid "%d \"day\""
msgid_plural "%d \"days\""
msgstr[0] "%d „Tag“"
msgstr[1] "%d „Tage“"
# a comment ends the entry before it
msgid ""
"two\n"
"lines\\\t"
msgstr "zwei\n"
"Zeilen"

#, fuzzy, python-format
#| msgid "old %s"
msgid "new %s"
msgstr "alt %s"

msgid "not translated"
msgstr ""

#, fuzzy
#~ msgid "gone"
#~ msgstr "weg"

#, no-fuzzy-here
msgid "last"
msgstr "letzte"
"""
MESSAGES = {
    ("", "Enter %(name)s"): "%(name)s eingeben",
    ("month", "May"): "Mai",
    ("", "May"): "darf",
    ("", '%d "day"'): "%d „Tag“",
    ("", '%d "days"'): "%d „Tage“",
    ("", "two\nlines\\\t"): "zwei\nZeilen",
    ("", "last"): "letzte",
}


def mo(messages: dict[str, str], order: str = "<", charset: str = "utf-8") -> bytes:
    """A `.mo` file as the manual of GNU gettext draws it: two tables of lengths and offsets, strings ended by NUL."""
    header = {"": f"Content-Type: text/plain; charset={charset}\nPlural-Forms: nplurals=2; plural=n != 1;\n"}
    rows = sorted((header | messages).items())
    tables, strings = b"", b""
    start = 28 + 16 * len(rows)
    for side in (0, 1):
        for row in rows:
            text = row[side].encode(charset)
            tables += struct.pack(f"{order}2I", len(text), start + len(strings))
            strings += text + b"\0"
    head = (0x950412DE, 0, len(rows), 28, 28 + 8 * len(rows), 0, start)
    return struct.pack(f"{order}7I", *head) + tables + strings


def catalogue(root: Path, language: str, messages: dict[str, str], name: str = "app.mo") -> Path:
    path = root / language / "LC_MESSAGES" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(mo(messages))
    return path


def small_trainer(**arguments: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **arguments)


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_bytes_by_hand() -> None:
    assert encode("é%").tolist() == [1, 0xC3 + 3, 0xA9 + 3, ord("%") + 3, 2]
    sources, targets = join([(encode("ab"), encode("")), (encode("c"), encode("xyz"))])
    assert sources.tolist() == [[1, 100, 101, 2], [1, 102, 2, 0]]
    assert targets.tolist() == [[1, 2, 0, 0, 0], [1, 123, 124, 125, 2]]
    assert decode(torch.tensor([100, END, 101])) == "a"
    assert decode(torch.tensor([BEGIN, 0xC3 + 3, PAD])) == "\N{REPLACEMENT CHARACTER}"  # half of a letter


@pytest.mark.parametrize("sentence", ["", "%(name)s «{0!r}» %%\n\t", "Größe 日本語 🙂", "".join(map(chr, range(256)))])
def test_every_string_comes_back(sentence: str) -> None:
    assert decode(encode(sentence)) == sentence
    assert decode(join([(encode(sentence), encode("x" * 2000))])[0][0]) == sentence


# --- catalogues -------------------------------------------------------------------------------------------------------


def test_po_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "app.po"
    path.write_text(PO, encoding="utf-8")
    assert catalogues.read(path) == MESSAGES
    path.write_text("\ufeff" + PO.replace("\n", "\r\n"), encoding="utf-8")
    assert catalogues.read(path) == MESSAGES
    path.write_bytes(PO.replace("UTF-8", "cp1252").encode("cp1252"))
    assert catalogues.read(path) == MESSAGES


@pytest.mark.parametrize(("order", "charset"), [("<", "utf-8"), (">", "utf-8"), ("<", "cp1252")])
def test_mo_by_hand_and_as_the_standard_library_reads_it(tmp_path: Path, order: str, charset: str) -> None:
    plural = {'%d "day"\0%d "days"': "%d „Tag“\0%d „Tage“"}
    content = mo({"Enter %(name)s": "%(name)s eingeben", "month\x04May": "Mai", **plural}, order, charset)
    (tmp_path / "app.mo").write_bytes(content)
    found = catalogues.read(tmp_path / "app.mo")
    assert found == {key: MESSAGES[key] for key in found}
    assert len(found) == 4
    theirs = gettext.GNUTranslations(io.BytesIO(content))
    assert theirs.pgettext("month", "May") == found["month", "May"]
    assert theirs.gettext("Enter %(name)s") == found["", "Enter %(name)s"]
    for count, one in ((1, '%d "day"'), (5, '%d "days"')):
        assert theirs.ngettext('%d "day"', '%d "days"', count) == found["", one]


def test_plurals_of_one_and_of_three_forms(tmp_path: Path) -> None:
    (tmp_path / "ja.mo").write_bytes(mo({"day\0days": "日"}))
    (tmp_path / "pl.mo").write_bytes(mo({"day\0days": "dzień\0dni\0dni", "half\0halves": "\0połowy"}))
    assert catalogues.read(tmp_path / "ja.mo") == {("", "days"): "日"}
    assert catalogues.read(tmp_path / "pl.mo") == {("", "halves"): "połowy"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mo", b"PK\x03\x04", "does not begin as a .mo file does"),
        ("a.mo", mo({"a": "b"})[:20], "requires a buffer"),
        ("a.mo", mo({"a": "b"})[:-2], "string 2 of 2 lies behind its end"),
        ("a.mo", mo({"a": "ü"}, charset="latin-1").replace(b"latin-1", b"utf-8  "), "can't decode byte 0xfc"),
        ("a.mo", mo({"a": "b"}).replace(b"utf-8", b"utf-x"), "unknown encoding: utf-x"),
        ("a.po", b'msgid "a"\nmsgstr "b\n', 'line 2 is out of place: msgstr "b'),
        ("a.po", b'msgid "a"\nmsgid "b"\n', "line 2 is out of place"),
        ("a.po", b'"a"\n', "line 1 is out of place"),
        ("a.po", b'msgstr "a"\n', "line 1 is out of place"),
        ("a.po", b'msgid "\\q"\n', r"\\q is not among the escapes"),
    ],
)
def test_what_is_no_catalogue_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is no gettext catalogue that can be read: .*{message}"):
        catalogues.read(tmp_path / name)


# --- sentences --------------------------------------------------------------------------------------------------------


def test_pairs_of_two_languages_are_those_of_the_same_message(tmp_path: Path) -> None:
    catalogue(tmp_path / "a", "de", {"red": "rot", "m\x04May": "Mai", "May": "darf", "only": "nur"})
    catalogue(tmp_path / "a", "fr", {"red": "rouge", "m\x04May": "mai", "May": " peut\n", "blank": "vide"})
    catalogue(tmp_path / "b", "fr", {"red": "vermeil"})
    catalogue(tmp_path / "b", "de", {"red": "rot", "blue": "blau"})
    files = list(tmp_path.rglob("*.*"))
    assert sorted(sentences.of_catalogues(files, "de", "fr")) == [
        ("Mai", "mai"),
        ("darf", "peut"),
        ("rot", "rouge"),
        ("rot", "vermeil"),
    ]
    english = [("May", "Mai"), ("May", "darf"), ("blue", "blau"), ("only", "nur"), ("red", "rot")]
    assert sorted(sentences.of_catalogues(files, None, "de")) == english  # (red, rot) once
    assert sentences.of_path(tmp_path / "b", None, "fr") == [("red", "vermeil")]


def test_a_po_is_read_where_there_is_no_mo(tmp_path: Path) -> None:
    folder = catalogue(tmp_path, "de", {"red": "rot"}).parent
    (folder / "app.po").write_text('msgid "red"\nmsgstr "hochrot"\n')
    (folder / "more.po").write_text('msgid "blue"\nmsgstr "blau"\n')
    (folder / "app.pot").write_text("no catalogue")
    (tmp_path / "de" / "stray.po").write_text("no catalogue")
    assert sorted(sentences.of_path(tmp_path, None, "de")) == [("blue", "blau"), ("red", "rot")]


def test_what_cannot_be_read_is_left_out_with_a_warning(tmp_path: Path) -> None:
    catalogue(tmp_path, "de", {"red": "rot"})
    (tmp_path / "de" / "LC_MESSAGES" / "bad.mo").write_bytes(b"bad")
    with pytest.warns(UserWarning, match=r"1 catalogues are left out: .*bad.mo is no gettext catalogue"):
        assert sentences.of_path(tmp_path, None, "de") == [("red", "rot")]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages that must not be imported: one as pip installs it, one linked to its folder, one without catalogues."""
    site, source = tmp_path / "site", tmp_path / "source"
    for root, module, name in ((site, "colours", "Fine-Colours"), (source, "linked", "linked"), (site, "mute", "mute")):
        (root / module).mkdir(parents=True)
        (root / module / "__init__.py").write_text("raise AssertionError('imported')")
        info = site / f"{name.replace('-', '_')}-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "RECORD").write_text(f"{info.name}/METADATA,,\n")
    path = catalogue(site / "colours" / "locale", "de", {"red": "rot"})
    (site / "Fine_Colours-1.dist-info" / "RECORD").write_text(f"{path.relative_to(site).as_posix()},,\n")
    catalogue(source / "linked" / "locale", "de", {"blue": "blau"})
    monkeypatch.setattr(sys, "path", [str(site), str(source), *sys.path])
    importlib.invalidate_caches()
    return site


def test_packages_are_found_under_either_name_and_not_imported(installed: Path) -> None:
    assert sentences.of_package("fine-colours", None, "de") == [("red", "rot")]
    assert sentences.of_package("colours", None, "de") == [("red", "rot")]
    assert sentences.of_package("linked", None, "de") == [("blue", "blau")]
    with pytest.raises(ValueError, match=r"package='mute' holds no catalogue, no file LANGUAGE/LC_MESSAGES/NAME.mo"):
        sentences.of_package("mute", None, "de")
    with pytest.raises(ModuleNotFoundError, match=r"no-such is not installed.*: pip install no-such, or pass as path"):
        sentences.of_package("no-such", None, "de")


def test_missing_django_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(sentences.importlib.metadata, "files", nothing)
    monkeypatch.setattr(sentences.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"pip install 'lightning-perf\[translation\]', or pass as path a file"
    ):
        TranslationData().setup("fit")


@pytest.mark.skipif(not HAS_DJANGO, reason="needs django (extra translation)")
def test_django_as_documented() -> None:
    data = TranslationData()
    data.setup("fit")
    pairs = [pair for part in data.pairs.values() for pair in part]
    assert 600 < len(pairs) < 1200
    assert len(set(pairs)) == len(pairs)
    assert ("August", "August") in pairs
    named = [pair for pair in pairs if "%(" in pair[0]]
    assert len(named) > 20
    served = set()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for sources, targets in loader:
            served |= {(decode(source), decode(target)) for source, target in zip(sources, targets, strict=True)}
    assert served <= set(pairs)
    assert len(pairs) - len(served) < data.batch_size
    assert len(served & set(named)) > len(named) - data.batch_size


@pytest.mark.skipif(not HAS_DJANGO, reason="needs django (extra translation)")
def test_django_is_not_imported() -> None:
    code = (
        "import sys; from recipes.translation.data import TranslationData; data = TranslationData(); data.setup('fit'); "
        "print(len(data.pairs['train']), 'django' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    size, imported = done.stdout.split()[-2:]
    assert int(size) > 400
    assert imported == "False"


@pytest.mark.skipif(not HAS_DJANGO, reason="needs django (extra translation)")
def test_both_readers_agree_on_all_of_django_s_german() -> None:
    (root,) = importlib.util.find_spec("django").submodule_search_locations  # pyright: ignore
    files = sorted(Path(root).rglob("de/LC_MESSAGES/*.mo"))
    assert len(files) > 5
    for file in files:
        assert catalogues.read(file) == catalogues.read(file.with_suffix(".po"))


# --- network ----------------------------------------------------------------------------------------------------------


def random_pairs(lengths: list[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
    return [
        (torch.randint(3, VOCABULARY, (source,)), torch.randint(3, VOCABULARY, (target,))) for source, target in lengths
    ]


@pytest.mark.parametrize("training", [True, False])  # in evaluation attention takes another kernel
def test_padding_changes_no_logits(training: bool) -> None:
    torch.manual_seed(0)
    net = EncoderDecoder(VOCABULARY, width=16, layers=2, heads=2).train(training)
    pairs = random_pairs([(3, 9), (7, 2), (1, 5)])
    with torch.no_grad():
        together = net(*join(pairs))
        for row, (source, target) in zip(together, pairs, strict=True):
            alone = net(source[None], target[None])[0]
            torch.testing.assert_close(row[: len(target)], alone, rtol=1e-4, atol=1e-5)
            assert alone.std() > 0.1


def test_no_position_sees_what_follows_and_all_see_the_source() -> None:
    torch.manual_seed(0)
    net = EncoderDecoder(VOCABULARY, width=16, layers=2, heads=2)
    ((source, target),) = random_pairs([(6, 8)])
    logits = net(source[None], target[None])[0]
    for cut in range(1, 8):
        torch.testing.assert_close(net(source[None], target[None, :cut])[0], logits[:cut], rtol=1e-4, atol=1e-5)
    for position in range(6):
        changed = source.clone()
        changed[position] = 3 + (changed[position] - 2) % 256
        moved = (net(changed[None], target[None])[0] - logits).abs().amax(1)
        assert (moved > 1e-4).all()
    swapped = net(source.flip(0)[None], target[None])[0]
    assert (swapped - logits).abs().max() > 1e-3  # order counts


def test_positions_by_hand() -> None:
    table = positions(3, 4, torch.zeros(1))
    for row in range(3):
        expected = [math.sin(row), math.sin(row * 0.01), math.cos(row), math.cos(row * 0.01)]
        assert table[row].tolist() == pytest.approx(expected, abs=1e-6)


def naive_translation(net: EncoderDecoder, source: Tensor, longest: int) -> list[int]:
    """One sentence, no batch, no padding: the whole network anew for every token."""
    found: list[int] = []
    while len(found) < longest and (not found or found[-1] != END):
        scores = net(source[None], torch.tensor([[BEGIN, *found]]))[0, -1].tolist()
        scores[PAD] = scores[BEGIN] = -math.inf
        found.append(max(range(len(scores)), key=scores.__getitem__))
    return found


def test_translation_equals_naive_steps() -> None:
    torch.manual_seed(5)
    net = EncoderDecoder(12, width=16, layers=2, heads=2).eval()
    with torch.no_grad():  # few tokens and large weights, so that translations wander and some end early
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1 and "tokens" not in name:
                parameter.mul_(4.5)
    rows = [torch.randint(3, 12, (length,)) for length in (5, 1, 9, 3, 7, 2, 8, 4)]
    expected = [naive_translation(net, row, 10) for row in rows]
    sources = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    found = translate(net, sources, 10)
    lengths = [len(one) for one in expected]
    assert len(set(lengths)) > 2
    assert max(lengths) == found.shape[1] == 10
    assert [row[: len(one)].tolist() for row, one in zip(found, expected, strict=True)] == expected
    assert all((row[len(one) :] == PAD).all() for row, one in zip(found, expected, strict=True))


# --- module and data --------------------------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """400 numbers and their names in an invented language, a syllable a digit: what a small model learns in seconds."""
    syllables = ("ba", "do", "ki", "lu", "me", "na", "po", "ra", "si", "tu")
    numbers = [str(number) for number in range(100, 900, 2)]
    tails = ["vwxyz"[: 1 + int(number) // 2 % 5] for number in numbers]  # the same on both sides, of 1 to 5 letters
    names = ["".join(syllables[int(digit)] for digit in number) for number in numbers]
    lines = [f"{a}{tail}\t{b}{tail}\n" for a, b, tail in zip(numbers, names, tails, strict=True)]
    (tmp_path / "numbers.tsv").write_text("".join(lines))
    return tmp_path / "numbers.tsv"


def chrf(translations: list[str], references: list[str]) -> float:
    """chrF2 of a corpus, from its definition (Popović 2015): F-scores of letter n-grams of 1 to 6, then their mean.

    torchmetrics leaves the references of sentences without one letter in common out; none here is such a sentence.
    """
    scores = []
    for n in range(1, 7):
        ours = [ngrams(one.replace(" ", ""), n) for one in translations]
        theirs = [ngrams(one.replace(" ", ""), n) for one in references]
        same = sum((one & other).total() for one, other in zip(ours, theirs, strict=True))
        precision, recall = (same / max(sum(one.total() for one in side), 1) for side in (ours, theirs))
        scores.append(5 * precision * recall / (4 * precision + recall) if same else 0.0)
    return sum(scores) / len(scores)


def ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[start : start + n] for start in range(len(text) - n + 1))


def test_it_learns_and_logs_what_a_naive_count_finds(words: Path) -> None:
    torch.manual_seed(0)
    data = TranslationData(path=str(words), eval_batch_size=16)
    module = Translator(width=32, layers=1, heads=2, dropout=0.0, lr=1e-2, warmup_steps=10, scored=20, longest=12)
    trainer = small_trainer(max_epochs=12)
    (before,) = trainer.validate(module, data, verbose=False)
    trainer.fit(module, data)
    (logged,) = trainer.validate(module, data, verbose=False)
    assert logged["val_loss"] < before["val_loss"] / 3
    assert 0 < logged["val_chrf_copy"] < 0.5 < logged["val_chrf"]

    pairs = data.pairs["val"]
    losses, hits = [], []
    for source, target in pairs:
        with torch.no_grad():
            logits = module(encode(source)[None], encode(target)[None, :-1])[0].double()
        for row, token in zip(logits, encode(target)[1:].tolist(), strict=True):
            losses.append(float(row.exp().sum().log() - row[token]))
            hits.append(int(row.argmax()) == token)
    assert logged["val_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert logged["val_acc"] == pytest.approx(sum(hits) / len(hits), rel=1e-6)
    everything = [decode(torch.tensor(naive_translation(module.net, encode(source), 12))) for source, _ in pairs]
    translations = everything[:20]
    references = [target for _, target in pairs[:20]]
    assert logged["val_chrf"] == pytest.approx(chrf(translations, references), rel=1e-5)
    copies = [chrf(*map(list, zip(*some, strict=True))) for some in (pairs[:20], pairs)]
    assert logged["val_chrf_copy"] == pytest.approx(copies[0], rel=1e-5)
    assert abs(copies[0] / copies[1] - 1) > 1e-3  # no others were scored

    predictions: Any = trainer.predict(module, dataloaders=data.val_dataloader())
    assert [one for batch in predictions for one in batch] == everything
    predictions = trainer.predict(module, data)
    assert [len(batch) for batch in predictions] == [16, 16, 8]
    (tested,) = trainer.test(module, data, verbose=False)
    assert {name.partition("_")[2] for name in tested} == {"loss", "acc", "bleu", "chrf", "chrf_copy"}


def test_bf16_changes_little() -> None:
    torch.manual_seed(0)
    module = Translator(width=32, layers=2, heads=2, dropout=0.0)
    sources, targets = join([(encode("red wine"), encode("Rotwein")), (encode("a"), encode("ein rotes Haus"))])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = module(sources, targets)
    exact = module(sources, targets)
    assert rounded.dtype is torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_the_loss_of_training_smooths_labels_and_leaves_padding_out() -> None:
    torch.manual_seed(0)
    module = Translator(width=16, layers=1, heads=2, dropout=0.0, label_smoothing=0.2)
    pairs = [(encode("ab"), encode("x")), (encode("c"), encode("wxyz"))]
    terms = []
    for source, target in pairs:
        for row, token in zip(module(source[None], target[None, :-1])[0].log_softmax(-1), target[1:], strict=True):
            terms.append(-0.8 * row[token] - 0.2 * row.mean())
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    torch.testing.assert_close(module.training_step(join(pairs), 0), torch.stack(terms).mean())


def test_the_learning_rate_rises_and_stays(words: Path) -> None:
    rates: list[float] = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    module = Translator(width=8, layers=1, heads=2, lr=0.08, weight_decay=0.03, warmup_steps=4)
    trainer = small_trainer(max_steps=6, limit_val_batches=0, callbacks=[Watch()])
    trainer.fit(module, TranslationData(path=str(words)))
    assert rates == pytest.approx([0.02, 0.035, 0.05, 0.065, 0.08, 0.08])
    assert type(trainer.optimizers[0]) is torch.optim.AdamW
    assert trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.03


def test_no_source_is_in_two_parts(tmp_path: Path) -> None:
    lines = [
        f"{word}\t{index}" for index in range(40) for word in (f"Word {index}", f"word  {index}.", f"WORD {index}")
    ]
    (tmp_path / "pairs.tsv").write_text("\n".join([*lines, *lines[:9], "!\tone", "?\ttwo"]))

    def parts(seed: int) -> dict[str, list[tuple[str, str]]]:
        data = TranslationData(path=str(tmp_path / "pairs.tsv"), batch_size=4, seed=seed)
        data.setup("fit")
        return data.pairs

    found = parts(0)
    expected = {*map(tuple_of, lines), ("!", "one"), ("?", "two")}
    assert sorted(pair for part in found.values() for pair in part) == sorted(expected)
    targets = [{target for _, target in found[part]} for part in ("train", "val", "test")]
    assert sum(map(len, targets)) == 42 == len(set.union(*targets))
    assert [len(one) for one in targets] == [34, 4, 4]
    assert parts(0) == found != parts(1)


def tuple_of(line: str) -> tuple[str, ...]:
    return tuple(line.split("\t"))


def test_long_pairs_are_left_out_by_bytes(tmp_path: Path) -> None:
    rows = [f"{letter}\t{letter}" for letter in "abcdefghij"] + ["ää\tb", "c\töö", "dddd\tb", "äöü\te", "e\tfffff"]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows), encoding="utf-8")
    data = TranslationData(path=str(tmp_path / "pairs.tsv"), batch_size=4, max_bytes=4)
    data.setup("fit")
    longest = max(len(side.encode()) for part in data.pairs.values() for pair in part for side in pair)
    assert (sum(map(len, data.pairs.values())), longest) == (13, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "nowhere"}, "path='nowhere' is neither a file nor a folder"),
        ({"path": "bad.tsv"}, "bad.tsv, line 3: 2 tabs; a source, one tab and its translation are needed"),
        ({"path": "."}, "path='.' holds no catalogue"),
        ({"path": "locale", "target": "xx"}, "target='xx' is no language of path='locale': it has de, fr"),
        ({"path": "locale", "source": "en"}, "source='en' is no language of path='locale': it has de, fr"),
        ({"path": "locale"}, r"2 pairs .* give 2 for training, 0 for validation and 0 for the test; a batch of 32"),
        ({"val_share": 0.0}, "val_share=0.0"),
        ({"test_share": 0.9}, "together they must leave some"),
    ],
)
def test_what_cannot_be_served_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.tsv").write_text("red\trot\n\nblue\tblau\tazur\n")
    if (
        arguments["path" if "path" in arguments else "val_share" if "val_share" in arguments else "test_share"]
        == "locale"
    ):
        catalogue(Path("locale"), "de", {"red": "rot", "blue": "blau"})
        catalogue(Path("locale"), "fr", {"red": "rouge"})
    with pytest.raises(ValueError, match=message):
        TranslationData(**arguments).setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 30, "heads": 4}, "width=30 is not even and divisible by heads=4"),
        ({"width": 15, "heads": 3}, "width=15 is not even and divisible by heads=3"),
        ({"scored": 0}, "scored=0 is below 1: give the number of sentences"),
        ({"longest": 0}, "longest=0 is below 1: give the number of tokens"),
        ({"warmup_steps": 0}, "warmup_steps=0 is below 1: give the number of steps"),
    ],
)
def test_modules_that_cannot_be_say_so(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Translator(**arguments)


def test_loaders_before_setup_say_so() -> None:
    with pytest.raises(ValueError, match=r"call setup\('fit'\) first"):
        TranslationData().train_dataloader()
