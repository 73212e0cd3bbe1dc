"""The sequences recipe: network, module, FASTA files, the made-up task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from recipes.sequences import fasta
from recipes.sequences.data import SequenceData
from recipes.sequences.module import ConvolutionalNetwork, SequenceClassifier


@pytest.fixture
def families(tmp_path: Path) -> Path:
    (tmp_path / "b.fa").write_text(">one\nacg\nTN\n\n>two words\nT\n")
    (tmp_path / "a.fasta").write_text(">three\nGGGGGGGG\n")
    (tmp_path / "notes.txt").write_text("no FASTA")
    return tmp_path


def test_fasta_is_read_by_hand(families: Path) -> None:
    assert fasta.folder(families) == {"a": ["GGGGGGGG"], "b": ["ACGTN", "T"]}


def test_letters_are_encoded_cut_and_padded() -> None:
    data = SequenceData(length=6)
    assert data._encode("ACGTN").tolist() == [1, 2, 3, 4, 0, 0]
    assert data._encode("GGGGGGGG").tolist() == [3] * 6
    assert SequenceData(alphabet="MK", length=3)._encode("KM").tolist() == [2, 1, 0]


def test_the_made_up_task_plants_what_it_says() -> None:
    made = fasta.made_up(1000, 60, seed=0)
    assert {name: len(sequences) for name, sequences in made.items()} == {"motif": 500, "shuffled": 500}
    assert all(len(one) == 60 and set(one) <= set("ACGT") for sequences in made.values() for one in sequences)
    assert all("TATAAAAG" in one for one in made["motif"])
    assert sum("TATAAAAG" in one for one in made["shuffled"]) < 5
    starts = {one.index("TATAAAAG") for one in made["motif"]}
    assert (min(starts), max(starts)) == (0, 52)
    assert made == fasta.made_up(1000, 60, seed=0) != fasta.made_up(1000, 60, seed=1)


def test_network_equals_naive_convolution() -> None:
    torch.manual_seed(0)
    net = ConvolutionalNetwork(letters=4, num_classes=2, width=3, layers=1, kernel=3).eval()
    letters = torch.tensor([[1, 0, 4, 2]])
    x, weight = net.embed.weight[letters[0]], net.get_parameter("blocks.0.weight")
    assert not x[1].any()  # no letter
    padded = torch.cat([torch.zeros(1, 3), x, torch.zeros(1, 3)])
    out = torch.stack([torch.stack([(padded[t : t + 3].T * w).sum() for w in weight]) for t in range(4)])
    out = (out / (1 + 1e-5) ** 0.5).relu()  # a fresh batch norm in evaluation; halved, then the maximum of all
    torch.testing.assert_close(net(letters), net.head(out.amax(0, keepdim=True)))


def test_it_learns_the_motif() -> None:
    torch.manual_seed(0)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=3, enable_model_summary=False, **quiet)
    data = SequenceData(made_up=2000, length=64)
    module = SequenceClassifier(width=32, layers=2, lr=3e-3)
    trainer.fit(module, data)
    assert trainer.callback_metrics["val_acc"] > 0.85
    predictions: Any = trainer.predict(module, dataloaders=data.test_dataloader())
    assert sum(map(len, predictions)) == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "nowhere"}, "path='nowhere' is no folder"),
        ({"path": "one"}, r"needs two FASTA files .* found: a.fa\."),
        ({"path": "twins"}, r"each of another name; found: a.fa, a.fasta"),
        ({"path": "headless"}, r"b.fa, line 1: a FASTA file starts with a header"),
        ({"path": "empty"}, r"b.fa holds no sequence"),
        ({"path": "proteins"}, r"no letter of proteins is in alphabet='ACGT'"),
        ({"alphabet": "ACCT"}, "alphabet='ACCT' must be two letters or more, each once"),
        ({"length": 7}, "length=7 is shorter than the motif"),
        ({"val_share": 0.0}, "val_share=0.0"),
        ({"made_up": 20}, "give 16 for training, 2 for validation and 2 for the test; a batch of 64"),
    ],
)
def test_what_cannot_be_served_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    good = ">x\nWWW\n"
    for name, files in {
        "one": {"a.fa": good},
        "twins": {"a.fa": good, "a.fasta": good},
        "headless": {"a.fa": good, "b.fa": "ACGT\n"},
        "empty": {"a.fa": good, "b.fa": ">x\n"},
        "proteins": {"a.fa": good, "b.fa": good},
    }.items():
        Path(name).mkdir()
        for file, content in files.items():
            (Path(name) / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        SequenceData(**arguments).setup("fit")


def test_an_even_kernel_and_loaders_before_setup_say_so() -> None:
    with pytest.raises(ValueError, match="kernel=8 is even and has no middle: choose 9"):
        SequenceClassifier(kernel=8)
    with pytest.raises(ValueError, match=r"call setup\('fit'\) first"):
        SequenceData().train_dataloader()


def test_split_is_disjoint_complete_and_follows_the_seed() -> None:
    def parts(seed: int) -> list[list[int]]:
        return [part.tolist() for part in SequenceData(seed=seed)._split(100).values()]

    assert [len(part) for part in parts(0)] == [80, 10, 10]
    assert sorted(index for part in parts(0) for index in part) == list(range(100))
    assert parts(0) == parts(0) != parts(1)
