"""Speech made by espeak-ng: spoken words as a folder of wavs, made once and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from . import wavs

PROGRAM = "espeak-ng"
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
# Variants that come with espeak-ng and differ from one another; robots and sound effects are left out.
# fmt: off
VARIANTS = (
    "m1", "f1", "Andy", "Annie", "m2", "f2", "Denis", "Alicia", "m3", "f3", "Diogo", "Andrea", "m4", "f4", "Gene",
    "anika", "m5", "f5", "Henrique", "aunty", "m6", "croak", "Hugo", "belinda", "m7", "whisper", "Jacky", "grandma",
    "m8", "klatt", "Lee", "linda", "Alex", "klatt2", "antonio", "steph", "boris", "klatt4", "ed", "gustave", "iven",
    "john", "kaukovalta", "grandpa", "marcelo", "Marco", "max", "michel", "miguel", "norbert", "pablo", "paul",
    "pedro", "quincy", "robert", "sandro", "shelby", "travis", "victor", "zac", "mike", "rob", "Gene2", "iven2",
    "iven3", "steph2", "adam", "david", "edward", "Mario", "Michael",
)
# fmt: on


@dataclass(frozen=True)
class Saying:
    """One clip to make: the words, and how they are said.

    Pitch 0 to 99, speed in words per minute, volume 0 to 200. With `snr` white noise is added, so many dB below the
    speech, and silence around it up to `seconds`.
    """

    text: str
    voice: str
    take: int = 0
    pitch: int = 50
    speed: int = 160
    volume: int = 100
    snr: int | None = None
    seconds: float = 0.0

    @property
    def path(self) -> str:
        """Its place in a folder of the layout of Speech Commands."""
        return f"{self.text.replace(' ', '_')}/{self.voice}_nohash_{self.take}.wav"


def sayings(texts: Sequence[str], voices: Sequence[str], takes: int, seconds: float, seed: int) -> list[Saying]:
    """Every text by every voice `takes` times, at a pitch, speed and volume and in a noise drawn at random.

    The noise is 0 to 20 dB below the speech; with silence, a clip lasts `seconds` or longer.

    Example::

        >>> [one.path for one in sayings(["one", "two"], ["en-us+m1"], takes=1, seconds=1.0, seed=0)]
        ['one/en-us+m1_nohash_0.wav', 'two/en-us+m1_nohash_0.wav']
    """
    draw = random.Random(seed)
    made = []
    for text, voice, take in itertools.product(texts, voices, range(takes)):
        pitch, speed, volume = draw.randint(30, 70), draw.randint(130, 210), draw.randint(40, 140)
        made.append(Saying(text, voice, take, pitch, speed, volume, snr=draw.randint(0, 20), seconds=seconds))
    return made


def voices(count: int) -> list[str]:
    """The first `count` voices: a variant each, with the accents in turn.

    Raises:
        ValueError: this installation of espeak-ng has fewer.
        FileNotFoundError: espeak-ng is not installed.
    """
    there = set(re.findall(r"!v/(\S+)", _run("--voices=variant").stdout.decode()))
    usable = [variant for variant in VARIANTS if variant in there]  # an unknown variant would be ignored
    if not 1 <= count <= len(usable):
        raise ValueError(f"voices={count} must be 1 to {len(usable)}, which is what this espeak-ng has.")
    return [f"{ACCENTS[index % len(ACCENTS)]}+{variant}" for index, variant in enumerate(usable[:count])]


def folder(to_say: Sequence[Saying], rate: int) -> Path:
    """A folder `TEXT/VOICE_nohash_TAKE.wav` with everything said, at `rate` Hz; it is made unless it is there already.

    The same sayings, rate and version of espeak-ng have the same folder, under `$XDG_CACHE_HOME/espeak-speech` or
    `~/.cache/espeak-speech`.

    Raises:
        ValueError: a text that cannot name a folder; two texts that name the same one.
        FileNotFoundError: espeak-ng is not installed.
        RuntimeError: espeak-ng failed, at an unknown voice for example.
    """
    for text in {one.text for one in to_say}:
        if not text or text.startswith(("_", ".")) or "/" in text:
            raise ValueError(f"{text!r} cannot be a word: it names a folder, without '/' and with a letter in front.")
    texts: dict[str, str] = {}
    for one in to_say:
        name = one.path.partition("/")[0]
        other = texts.setdefault(name, one.text)
        if other != one.text:
            raise ValueError(f"{other!r} and {one.text!r} both name the folder {name!r}: leave one of them out.")
    version = _run("--version").stdout.decode().partition("Data at")[0]
    content = json.dumps([version, rate, *(astuple(one) for one in to_say)])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "espeak-speech"
    target = cache / hashlib.sha256(content.encode()).hexdigest()[:16]
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=cache))
    try:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            list(pool.map(lambda one: _say(one, unfinished / one.path, rate), to_say))
        try:
            unfinished.replace(target)
        except OSError:
            if not target.is_dir():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _say(saying: Saying, path: Path, rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    how = ["-v", saying.voice, "-p", str(saying.pitch), "-s", str(saying.speed), "-a", str(saying.volume), "-z"]
    _run(*how, "-w", str(path), "--", saying.text)
    samples = wavs.read(path, rate)
    if saying.snr is not None:
        generator = torch.Generator().manual_seed(zlib.crc32(saying.path.encode()))
        level = samples.square().mean().sqrt() * 10 ** (-saying.snr / 20)
        samples = wavs.of_length(samples, max(len(samples), round(saying.seconds * rate)))
        samples = samples + level * torch.randn(len(samples), generator=generator)
    wavs.write(path, samples, rate)


def _run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which(PROGRAM)
    if program is None:
        raise FileNotFoundError(
            f"without a folder of wavs the speech comes from {PROGRAM}, which is not installed: "
            f"sudo apt-get install {PROGRAM}, or name a folder with WORD/*.wav (--data.root=FOLDER)."
        )
    done = subprocess.run([program, *arguments], capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{PROGRAM} {' '.join(arguments)} failed ({done.returncode}): {done.stderr.decode().strip()}"
        )
    return done
