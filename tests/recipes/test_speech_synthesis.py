"""The synthesiser of the speech recipe: alignment, network, distances, texts, its YAML files."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml

from lightning_perf.cli.recipes_command import copy_recipe
from lightning_perf.cli.trainer_cli import trainer_command
from recipes.speech.synthesis.data import SpokenTextData, join
from recipes.speech.synthesis.module import MeanSpectrum, MelSynthesiser, distance
from recipes.speech.synthesis.networks import TextToMel, spread
from recipes.speech.synthesis.numbers import in_words
from tests.recipes.small import ROOT
from tests.recipes.tones import write_tones

FOLDER = ROOT / "recipes" / "speech" / "synthesis"
QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
QUIET |= {"accelerator": "cpu", "enable_model_summary": False}


def test_spread_equals_naive_loops() -> None:
    lengths = torch.tensor([[2.0, 3.5, 1.0], [4.0, 2.0, 0.0]])
    weights, place = spread(lengths, torch.tensor([[5, 1, 2], [3, 3, 0]]), frames=6, softness=1.5)
    for row, count in ((0, 3), (1, 2)):
        for frame in range(6):
            start, away = 0.0, []
            for length in lengths[row, :count].tolist():
                away.append((frame + 0.5 - start - length / 2) / 1.5)
                start += length
            scores = [math.exp(-one * one / 2) for one in away]
            expected = [score / sum(scores) for score in scores]
            assert weights[row, frame, :count].tolist() == pytest.approx(expected, abs=1e-6)
            mean = sum(weight * one for weight, one in zip(expected, away, strict=True))
            assert place[row, frame].item() == pytest.approx(mean, abs=1e-5)
    assert not weights[1, :, 2].any()


def test_a_text_sounds_the_same_alone_and_in_a_batch() -> None:
    torch.manual_seed(0)
    net = TextToMel(letters=9, mels=4, width=8, layers=2, kernel=3, dropout=0.5, softness=2.0).eval()
    letters = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]])
    lengths, levels = net(letters)
    alone_lengths, alone = net(letters[1:, :2])
    frames = alone.shape[2]
    assert frames == round(alone_lengths.sum().item()) < levels.shape[2]
    torch.testing.assert_close(lengths[1, :2], alone_lengths[0])
    assert not lengths[1, 2:].any()
    torch.testing.assert_close(levels[1, :, :frames], alone[0])
    assert net(letters, torch.tensor([20, 11]))[1].shape == (2, 4, 20)


def test_mean_spectrum_equals_the_mean_of_all_frames() -> None:
    torch.manual_seed(0)
    mean, seen = MeanSpectrum(3), []
    for frames in (4, 7, 5):
        levels = 10 * torch.randn(2, 3, frames) - 50
        counts = torch.tensor([frames, frames - 2])
        mean.update(levels, (torch.arange(frames) < counts.unsqueeze(1)).unsqueeze(1))
        seen += [levels[0], levels[1, :, : frames - 2]]
    torch.testing.assert_close(mean.mean, torch.cat(seen, dim=1).mean(dim=1))


def test_distance_leaves_out_what_was_filled_up() -> None:
    said, inside = torch.tensor([[[1.0, 2.0, 9.0], [-3.0, 4.0, 9.0]]]), torch.tensor([[[True, True, False]]])
    assert distance(said, torch.zeros(1, 2, 3), inside).item() == (1 + 2 + 3 + 4) / 4


def naive_scores(module: MelSynthesiser, data: SpokenTextData) -> dict[str, float]:
    """Distances and length error of the test clips, one at a time."""
    away, naive, frames, errors = 0.0, 0.0, 0, []
    mean = torch.cat([levels for _, levels in data.parts["train"]], dim=1).mean(dim=1)
    for letters, levels in data.parts["test"]:
        count = levels.shape[1]
        lengths, _ = module.net(letters.unsqueeze(0))
        said = module(letters.unsqueeze(0), torch.tensor([count]))[0]
        away += float((said - levels).abs().mean(dim=0).sum())
        naive += float((mean.unsqueeze(1) - levels).abs().mean(dim=0).sum())
        frames += count
        errors.append(abs(float(lengths.sum()) / count - 1))
    return {
        "distance": away / frames,
        "naive_distance": naive / frames,
        "length_error": 100 * sum(errors) / len(errors),
    }


def test_it_learns_and_logs_what_naive_loops_find(tmp_path: Path) -> None:
    torch.manual_seed(0)
    root = write_tones(tmp_path, ("one", "two", "three"), speakers=10)
    data = SpokenTextData(str(root), mels=20, split_by="speaker", batch_size=8, eval_batch_size=2)
    module = MelSynthesiser(mels=20, width=32, layers=2, dropout=0.0, lr=5e-3)
    trainer = pl.Trainer(max_epochs=15, **QUIET)
    trainer.fit(module, data)
    logged = {"train_loss_step", "train_loss_epoch", "train_distance", "train_length_error", "val_naive_distance"}
    assert logged <= set(trainer.callback_metrics)
    module.mean_spectrum = MeanSpectrum(20)
    for _, levels in data.parts["train"]:
        module.mean_spectrum.update(levels.unsqueeze(0), torch.ones(1, 1, levels.shape[1], dtype=torch.bool))
    (scores,) = trainer.test(module, data, verbose=False)
    with torch.no_grad():
        for name, value in naive_scores(module.eval(), data).items():
            assert scores[f"test_{name}"] == pytest.approx(value, rel=1e-3), name
    assert scores["test_distance"] < scores["test_naive_distance"] / 2
    predictions: Any = trainer.predict(module, data)
    assert sum(len(levels) for levels in predictions) == 3


def test_training_alone_shapes_the_naive_synthesiser(tmp_path: Path) -> None:
    data = SpokenTextData(str(write_tones(tmp_path)), mels=20, split_by="speaker", batch_size=16)
    module = MelSynthesiser(mels=20, width=8, layers=1)
    pl.Trainer(max_epochs=2, **QUIET).fit(module, data)
    expected = torch.cat([levels for _, levels in data.parts["train"]], dim=1).mean(dim=1)
    assert len(data.parts["train"]) == 16
    torch.testing.assert_close(module.mean_spectrum.mean, expected, atol=1e-3, rtol=0)


def test_numbers_are_all_different_and_spelled() -> None:
    assert [in_words(number) for number in (0, 7, 13, 20, 99, 100, 305, 610, 999)] == [
        "zero",
        "seven",
        "thirteen",
        "twenty",
        "ninety nine",
        "one hundred",
        "three hundred five",
        "six hundred ten",
        "nine hundred ninety nine",
    ]
    assert len({in_words(number) for number in range(1000)}) == 1000


def test_texts_are_encoded_and_filled_up(tmp_path: Path) -> None:
    root = write_tones(tmp_path, ("ab_c", "b", "c"), speakers=3)
    data = SpokenTextData(str(root), mels=10, alphabet=" abc", batch_size=2, val_share=0.3, test_share=0.3)
    data.setup("fit")
    texts = [{tuple(letters.tolist()) for letters, _ in items} for items in data.parts.values()]
    assert sorted(one for (one,) in texts) == [(2, 3, 1, 4), (3,), (4,)]  # a text a part
    assert data.encode("C-a!").tolist() == [4, 2]
    items = [(torch.tensor([3]), torch.ones(2, 4)), (torch.tensor([1, 2]), torch.ones(2, 3))]
    letters, levels, frames = join(items)
    assert letters.tolist() == [[3, 0], [1, 2]]
    assert (levels[1].tolist(), frames.tolist()) == ([[1.0, 1.0, 1.0, -80.0]] * 2, [4, 3])


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng: sudo apt-get install espeak-ng")
def test_espeak_says_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = SpokenTextData(texts=10, batch_size=4)
    data.prepare_data()
    data.setup("fit")
    assert {part: len(items) for part, items in data.parts.items()} == {"train": 8, "val": 1, "test": 1}
    (folder,) = (tmp_path / "espeak-speech").iterdir()
    names = {path.name.replace("_", " ") for path in folder.iterdir()}
    assert len(names) == 10
    assert names <= {in_words(number) for number in range(1000)}
    long, short = max(names, key=len), min(names, key=len)
    sizes = {name: (folder / name.replace(" ", "_") / "en-us_nohash_0.wav").stat().st_size for name in (long, short)}
    assert sizes[long] > sizes[short]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": 1001}, "texts=1001 must be 3 to 1000"),
        ({"alphabet": "aa"}, "alphabet='aa' must be letters, each once"),
        ({"root": "wavs", "alphabet": "xyz", "split_by": "speaker", "batch_size": 4}, "no letter of 'high' is in"),
        ({"root": "wavs"}, r"2 speakers or texts \(val_share=0.1, .* give 2 for training, 0 for validation"),
        ({"root": "wavs", "split_by": "speaker"}, "20 clips give 16 for training, which is no batch of 17"),
    ],
)
def test_what_cannot_be_served_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tones(tmp_path / "wavs")
    with pytest.raises(ValueError, match=message):
        SpokenTextData(**{"batch_size": 17, **arguments}).setup("fit")


def test_wrong_sizes_and_loaders_before_setup_say_so() -> None:
    with pytest.raises(ValueError, match="kernel=4 is even and has no middle: choose 5"):
        MelSynthesiser(kernel=4)
    batch = (torch.ones(1, 2, dtype=torch.int64), torch.zeros(1, 80, 5), torch.tensor([5]))
    with pytest.raises(ValueError, match=r"spectra of 80 bands do not fit mels=40: .*--model.init_args.mels=80"):
        MelSynthesiser().validation_step(batch, 0)
    batch = (torch.tensor([[27, 30]]), torch.zeros(1, 40, 5), torch.tensor([5]))
    module = MelSynthesiser(letters=27)
    for step in (module.training_step, module.validation_step, module.test_step, module.predict_step):
        with pytest.raises(ValueError, match=r"letter 30 does not fit letters=27: .*--model.init_args.letters=30"):
            step(batch, 0)
    assert module.predict_step((torch.tensor([[27, 1]]), *batch[1:]), 0).shape[:2] == (1, 40)  # the last letter
    with pytest.raises(ValueError, match=r"call prepare_data\(\) and setup\('fit'\) first"):
        SpokenTextData().val_dataloader()


# --- YAML files -------------------------------------------------------------------------------------------------------


def test_lossless_is_baseline_and_the_callbacks_of_the_recipe() -> None:
    base, ours = (yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in ("baseline", "lossless"))
    spotter = yaml.safe_load((FOLDER.parent / "lossless.yaml").read_text())
    assert base["trainer"].pop("callbacks") == []
    assert ours["trainer"].pop("callbacks") == spotter["trainer"]["callbacks"]
    assert ours == base
    assert "# FROZEN: " in (FOLDER / "baseline.yaml").read_text()


@pytest.mark.parametrize("name", ["baseline", "lossless"])
@pytest.mark.filterwarnings("ignore")
def test_every_yaml_fits_two_batches(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = FOLDER / f"{name}.yaml"
    command = f"lightning-perf fit --config recipes/speech/synthesis/{name}.yaml\n"
    assert f"#   {command}" in config.read_text()
    assert command in (FOLDER.parent / "README.md").read_text()
    data = [f"--data.root={write_tones(tmp_path / 'wavs')}", "--data.split_by=speaker", "--data.batch_size=4"]
    cli = trainer_command(
        ["fit", "--config", str(config), "--trainer.accelerator=cpu", "--trainer.fast_dev_run=2", *data]
    )
    assert cli.trainer.global_step == 2


def test_a_copy_names_itself(tmp_path: Path) -> None:
    """The second task's YAML files stay with the code, and the README says where they are then."""
    copy_recipe("speech", tmp_path / "copy")
    copied = (tmp_path / "copy" / "speech" / "synthesis" / "baseline.yaml").read_text()
    assert "--config speech/synthesis/baseline.yaml\n" in copied
    assert "class_path: speech.synthesis.module.MelSynthesiser\n" in copied
    readme = (tmp_path / "copy" / "README.md").read_text()
    assert "--config speech/synthesis/lossless.yaml\n" in readme
    assert "--config lossless.yaml\n" in readme
