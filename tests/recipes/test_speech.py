"""The keyword spotter of the speech recipe: spectra, wavs, folders, speech of espeak-ng, module, data."""

from __future__ import annotations

import math
import shutil
import struct
import wave
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from recipes.speech import espeak, folder, wavs
from recipes.speech.data import SpeechData
from recipes.speech.mel import fft_size, log_mel, mel_filters
from recipes.speech.module import KeywordSpotter
from tests.recipes.tones import RATE, tone, write_tones

QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
QUIET |= {"accelerator": "cpu", "enable_model_summary": False}


# --- spectra ----------------------------------------------------------------------------------------------------------


def naive_levels(samples: list[float], rate: int, mels: int) -> list[list[float]]:
    """Log-mel by the definition: a sum for every bin, and a triangle for every band, with no array operation on time."""
    length, hop = rate * 25 // 1000, rate // 100
    size = 1
    while size < 2 * length:
        size *= 2
    window = [0.5 - 0.5 * math.cos(2 * math.pi * n / length) for n in range(length)]
    mel_of = lambda hertz: 2595 * math.log10(1 + hertz / 700)  # noqa: E731
    top = mel_of(rate / 2)
    edges = [700 * (10 ** (top * i / (mels + 1) / 2595) - 1) for i in range(mels + 2)]
    rows = []
    for frame in range(1 + len(samples) // hop):
        start = frame * hop - length // 2
        piece = [window[n] * samples[start + n] if 0 <= start + n < len(samples) else 0.0 for n in range(length)]
        power = []
        for k in range(size // 2 + 1):
            turns = np.exp(-2j * np.pi * k * np.arange(length) / size)
            power.append(abs(sum(np.array(piece) * turns) * 2 / sum(window)) ** 2)
        row = []
        for low, middle, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
            band = 0.0
            for k, value in enumerate(power):
                hertz = k * rate / size
                if low < hertz <= middle:
                    band += value * (hertz - low) / (middle - low)
                elif middle < hertz < high:
                    band += value * (high - hertz) / (high - middle)
            row.append(10 * math.log10(max(band, 1e-8)))
        rows.append(row)
    return np.array(rows).T.tolist()


def test_log_mel_equals_the_definition() -> None:
    torch.manual_seed(0)
    samples = torch.cat([tone(440, 0.02, RATE) + 0.1 * torch.randn(160), torch.zeros(250)])
    levels = log_mel(samples, RATE, mels=12)
    assert levels.shape == (12, 1 + 410 // 80)
    torch.testing.assert_close(levels, torch.tensor(naive_levels(samples.tolist(), RATE, 12)), atol=1e-2, rtol=0)
    assert levels[:, -1].tolist() == [-80.0] * 12  # nothing but zeros in reach


def test_a_full_sine_has_its_level_in_its_band() -> None:
    filters = mel_filters(20, fft_size(16_000), 16_000)
    middle = int(filters[9].argmax())
    level = log_mel(2 * tone(middle * 16_000 / 1024, 0.5, 16_000), 16_000, mels=20)[:, 25]
    assert int(level.argmax()) == 9
    whole = 10 * math.log10(1.5 * 1024 / 400)  # a Hann window has 1.5 bins of noise, here of 1024 / 400
    assert whole - 1 < level[9] < whole  # the triangle's sides take a little


def test_filters_add_up_to_one_between_the_outer_middles() -> None:
    filters = mel_filters(40, 1024, 16_000)
    middles = filters.argmax(dim=1)
    torch.testing.assert_close(
        filters.sum(0)[middles[0] + 1 : middles[-1]], torch.ones(int(middles[-1] - middles[0]) - 1)
    )
    assert (filters.amax(dim=1) <= 1).all()


@pytest.mark.parametrize(
    ("mels", "message"), [(0, "mels=0 leaves no band"), (300, "mels=300 at 16000 Hz leaves .* band")]
)
def test_bands_that_cannot_be_are_named(mels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mel_filters(mels, 1024, 16_000)


# --- wavs -------------------------------------------------------------------------------------------------------------


def test_a_wav_is_read_byte_by_byte(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes(struct.pack("<6h", 32767, 1, -32768, -32768, 100, 300))
    expected = [(32767 + 1) / 2 / 32768, -1.0, 200 / 32768]
    assert wavs.read(tmp_path / "a.wav", 8000).tolist() == pytest.approx(expected)


def test_what_is_written_is_read_again_and_the_loud_is_cut(tmp_path: Path) -> None:
    wavs.write(tmp_path / "a.wav", torch.tensor([0.25, -1.5, 1.5]), 8000)
    assert wavs.read(tmp_path / "a.wav", 8000).tolist() == [0.25, -1.0, 32767 / 32768]


@pytest.mark.parametrize(("rate", "new_rate"), [(22_050, 16_000), (8000, 16_000), (16_000, 11_025)])
def test_another_rate_has_the_sound_at_other_times(rate: int, new_rate: int) -> None:
    """A tone that swells and fades, sampled at both rates by its formula."""

    hertz = 0.45 * min(rate, new_rate)

    def sound(at: int) -> torch.Tensor:
        time = torch.arange(round(0.2 * at), dtype=torch.float64) / at
        return ((2 * torch.pi * hertz * time).sin() * torch.exp(-(((time - 0.1) / 0.02) ** 2))).float()

    made = wavs.resample(sound(rate), rate, new_rate)
    assert len(made) == math.ceil(0.2 * new_rate)
    torch.testing.assert_close(made, sound(new_rate), atol=1e-5, rtol=0)


def test_frequencies_above_half_of_the_new_rate_go() -> None:
    assert wavs.resample(tone(6000, 0.5, 16_000), 16_000, 8000)[200:-200].abs().max() < 1e-2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no sound", "is no wav of PCM"),
        (b"", "is no wav of PCM"),
        ((1, 1, 8000, b"\0" * 10), "has 8-bit samples, and 16-bit PCM is read: convert it, with `ffmpeg"),
        ((1, 2, 8000, b""), "holds no sample: delete it"),
    ],
)
def test_what_is_no_wav_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "a.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with wave.open(str(path), "wb") as file:
            file.setparams((*content[:3], 0, "NONE", ""))
            file.writeframes(content[3])
    with pytest.raises(ValueError, match=message):
        wavs.read(path, 8000)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_by_hand(tmp_path: Path) -> None:
    for name in ("yes/a_nohash_0.wav", "yes/a_nohash_1.wav", "no/b.wav", "_noise_/c.wav", "up/d.txt", "no/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [(clip.word, clip.speaker, clip.path.name, clip.part) for clip in folder.find(tmp_path)]
    assert found == [("no", "b", "b.wav", ""), ("yes", "a", "a_nohash_0.wav", ""), ("yes", "a", "a_nohash_1.wav", "")]
    (tmp_path / "validation_list.txt").write_text("no/b.wav\n")
    assert [clip.part for clip in folder.find(tmp_path)] == ["", "", ""]  # one list alone decides nothing
    (tmp_path / "testing_list.txt").write_text("yes/a_nohash_1.wav\n")
    assert [clip.part for clip in folder.find(tmp_path)] == ["val", "train", "test"]


def test_suffixes_in_capitals_are_read(tmp_path: Path) -> None:
    for name in ("yes/a_nohash_0.WAV", "yes/b.wav", "no/c.Wav", "no/d.WAVE"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [(clip.word, clip.speaker, clip.path.name) for clip in folder.find(tmp_path)]
    assert found == [("no", "c", "c.Wav"), ("yes", "a", "a_nohash_0.WAV"), ("yes", "b", "b.wav")]


def test_nobody_is_in_two_parts() -> None:
    groups = [f"s{index % 20}" for index in range(100)]
    parts = folder.split(groups, val_share=0.2, test_share=0.1, seed=0)
    assert {part: len(places) for part, places in parts.items()} == {"train": 70, "val": 20, "test": 10}
    assert sorted(index for places in parts.values() for index in places) == list(range(100))
    speakers = {part: {groups[index] for index in places} for part, places in parts.items()}
    assert (
        not speakers["train"] & speakers["val"]
        | speakers["val"] & speakers["test"]
        | speakers["test"] & speakers["train"]
    )
    assert parts == folder.split(groups, 0.2, 0.1, seed=0) != folder.split(groups, 0.2, 0.1, seed=1)


# --- espeak-ng --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng: sudo apt-get install espeak-ng")
def test_espeak_speaks_once_and_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = SpeechData(words=["two", "six"], voices=5, takes=1, batch_size=4, val_share=0.2, test_share=0.2)
    data.prepare_data()
    (made,) = (tmp_path / "espeak-speech").iterdir()
    clips = folder.find(made)
    assert len(clips) == 10 == len({clip.path.read_bytes() for clip in clips})
    assert all(len(wavs.read(clip.path, 16_000)) == 16_000 for clip in clips)
    before = made.stat().st_mtime_ns
    with monkeypatch.context() as context:
        context.setattr(espeak, "_say", lambda *_: pytest.fail("it is in the cache"))
        data.setup("fit")
    assert (data.classes, len(data.parts["train"]), made.stat().st_mtime_ns) == (["six", "two"], 6, before)

    quiet = espeak.Saying("two", "en-us", speed=120)
    slow = wavs.read(espeak.folder([quiet], 16_000) / quiet.path, 16_000)
    fast = espeak.Saying("two", "en-us", speed=240)
    assert len(slow) > 1.2 * len(wavs.read(espeak.folder([fast], 16_000) / fast.path, 16_000))
    noisy = espeak.Saying("two", "en-us", speed=120, snr=10)
    noise = wavs.read(espeak.folder([noisy], 16_000) / noisy.path, 16_000) - slow
    assert 10 * (slow.square().mean() / noise.square().mean()).log10() == pytest.approx(10, abs=0.3)

    with pytest.raises(RuntimeError, match=r"espeak-ng -v nobody .* failed .*voice"):
        espeak.folder([espeak.Saying("two", "nobody")], 16_000)
    with pytest.raises(ValueError, match=r"voices=1000 must be 1 to \d+"):
        espeak.voices(1000)
    assert not [path for path in (tmp_path / "espeak-speech").iterdir() if path.name.startswith(".")]


def test_without_espeak_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "PROGRAM", "espeak-ng-that-is-not-there")
    with pytest.raises(FileNotFoundError, match=r"sudo apt-get install .*, or name a folder .*--data.root=FOLDER"):
        SpeechData().prepare_data()


def test_a_text_that_names_no_folder_is_refused() -> None:
    with pytest.raises(ValueError, match="'and/or' cannot be a word"):
        espeak.folder([espeak.Saying("and/or", "en-us")], 16_000)


def test_two_texts_of_one_folder_are_refused() -> None:
    with pytest.raises(ValueError, match="'ice cream' and 'ice_cream' both name the folder 'ice_cream': leave one"):
        espeak.folder(espeak.sayings(["ice cream", "two", "ice_cream"], ["en-us"], 2, 1.0, seed=0), 16_000)


# --- module and data --------------------------------------------------------------------------------------------------


def test_network_has_the_size_of_the_paper() -> None:
    """TC-ResNet8 has 66K parameters; here counted by hand, with ten classes and the batch norm in front."""
    widths = [16, 24, 32, 48]
    expected = 2 * 40 + 3 * 40 * 16
    for before, after in pairwise(widths):
        expected += 9 * before * after + 9 * after * after + before * after + 3 * 2 * after
    expected += 48 * 10 + 10
    assert sum(p.numel() for p in KeywordSpotter().parameters()) == expected
    assert 64_000 < expected < 68_000


def test_it_learns_tones_of_other_speakers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    root = write_tones(tmp_path, ("a", "b", "c"), speakers=20)
    data = SpeechData(str(root), seconds=0.4, batch_size=6, val_share=0.2, test_share=0.2)
    module = KeywordSpotter(num_classes=3, lr=3e-3)
    trainer = pl.Trainer(max_epochs=8, **QUIET)
    trainer.fit(module, data)
    assert trainer.callback_metrics["val_acc"] == 1
    (scores,) = trainer.test(module, data, verbose=False)
    assert scores["test_acc"] == 1
    predictions: Any = trainer.predict(module, data)
    torch.testing.assert_close(predictions[0].sum(1), torch.ones(12))
    labels = data.parts["test"].tensors[1]
    assert predictions[0].argmax(1).tolist() == labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_lists_of_the_data_set_decide(tmp_path: Path) -> None:
    root = write_tones(tmp_path)
    (root / "validation_list.txt").write_text("high/s3_nohash_0.wav\n")
    (root / "testing_list.txt").write_text("low/s4_nohash_0.wav\nlow/s5_nohash_0.wav\n")
    data = SpeechData(str(root), batch_size=4)
    data.setup("fit")
    assert {part: len(found) for part, found in data.parts.items()} == {"train": 17, "val": 1, "test": 2}
    assert (data.classes, data.parts["test"].tensors[1].tolist()) == (["high", "low"], [1, 1])


def test_clips_are_centred(tmp_path: Path) -> None:
    data = SpeechData(str(write_tones(tmp_path, seconds=0.1)), seconds=0.5, rate=RATE, mels=10, batch_size=4)
    data.setup("fit")
    loud = (data.parts["train"].tensors[0].amax(dim=1) > -60).float()
    assert loud.shape[1] == 51
    assert not loud[:, :18].any()
    assert loud[:, 21:30].all()
    assert not loud[:, 33:].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"root": "nowhere"}, r"root='nowhere' is no folder: name one with wavs as WORD/\*\.wav"),
        ({"root": "empty"}, r"empty needs two folders WORD/\*\.wav or more; found: none"),
        ({"root": "wavs", "words": ["high"]}, "found: high"),
        ({"root": "wavs", "words": ["low", "lower"]}, "has no wavs of lower: its words are high, low"),
        ({"root": "wavs"}, "20 clips give 12 for training, 4 for validation and 4 for the test; a batch of 64"),
        ({"root": "wavs", "val_share": 0.01}, "10 speakers or texts .* give 8 for training, 0 for validation"),
        ({"root": "wavs", "val_share": 0.9, "test_share": 0.9}, "give -8 for training"),
        ({"seconds": 0.0}, "seconds=0.0 and takes=4 must be above 0"),
    ],
)
def test_what_cannot_be_served_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_tones(tmp_path / "wavs")
    with pytest.raises(ValueError, match=message):
        SpeechData(**arguments).setup("fit")


def test_wrong_sizes_and_loaders_before_setup_say_so() -> None:
    with pytest.raises(ValueError, match="kernel=8 is even and has no middle: choose 9"):
        KeywordSpotter(kernel=8)
    with pytest.raises(ValueError, match=r"spectra of 80 bands do not fit mels=40: .*--model.init_args.mels=80"):
        KeywordSpotter()(torch.zeros(2, 80, 101))
    module, levels = KeywordSpotter(num_classes=10), torch.zeros(2, 40, 101)
    for step in (module.training_step, module.validation_step, module.test_step):
        with pytest.raises(
            ValueError, match=r"label 34 does not fit num_classes=10: .*--model.init_args.num_classes=35"
        ):
            step((levels, torch.tensor([9, 34])), 0)
    with pytest.raises(ValueError, match=r"call prepare_data\(\) and setup\('fit'\) first"):
        SpeechData().train_dataloader()
