"""The table of refused arguments against the llama-server that is installed."""

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from shim.config.schema.engine_args import HARMLESS, REFUSED

NAMES_SOMETHING = re.compile(r"\b(FNAME|FILE|PATH|DIR|URL|TOKEN|\w*_FILE)\b|<user>|repo")
OPTION = re.compile(r"(?<![\w-])--?[A-Za-z][\w.-]*")


@pytest.mark.real
def test_every_refused_argument_is_one_llama_server_knows() -> None:
    """A name that llama-server dropped or renamed shows up here when llama.cpp is updated."""
    server = Path(sysconfig.get_path("purelib"), "bin", "llama-server")
    text = subprocess.run([server, "--help"], capture_output=True, text=True, check=True).stdout
    assert set(REFUSED) - set(OPTION.findall(text)) == set()


@pytest.mark.real
def test_no_other_spelling_of_a_refused_argument_gets_through() -> None:
    """llama-server's help names the spellings of one argument on one line: all or none are refused."""
    server = Path(sysconfig.get_path("purelib"), "bin", "llama-server")
    text = subprocess.run([server, "--help"], capture_output=True, text=True, check=True).stdout
    leaks = {}
    for line in text.splitlines():
        if not line.startswith("-") or line.startswith("-----"):
            continue
        names = OPTION.findall(re.split(r"\s{2,}(?!-)", line)[0])
        allowed = [name for name in names if name not in REFUSED]
        if allowed and len(allowed) < len(names):
            leaks[line] = allowed
    assert leaks == {}


@pytest.mark.real
def test_no_harmless_argument_names_a_file_a_folder_or_an_address() -> None:
    """By llama-server's own help: what an untrusted file may give an engine are numbers and words."""
    server = Path(sysconfig.get_path("purelib"), "bin", "llama-server")
    text = subprocess.run([server, "--help"], capture_output=True, text=True, check=True).stdout
    assert set(HARMLESS) - set(OPTION.findall(text)) == set()
    naming = {}
    for line in text.splitlines():
        if not line.startswith("-") or line.startswith("-----"):
            continue
        usage = re.split(r"\s{2,}(?!-)", line)[0]
        if NAMES_SOMETHING.search(usage) and HARMLESS.intersection(OPTION.findall(usage)):
            naming[usage] = sorted(HARMLESS.intersection(OPTION.findall(usage)))
    assert naming == {}
