"""Finding and reading a configuration file."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from backends.machine.files.folders import user_folder
from budget.errors import ConfigError
from shim.config.endpoints import VARIABLE, read_endpoints, with_endpoints
from shim.config.lines import key_lines, line_of, with_lines
from shim.config.problems import Problem, dotted
from shim.config.schema.document import Config
from shim.config.schema.values import expanded
from shim.config.trust import TrustedFiles, check_trust, risks

FILE_NAME = "keepwarm.toml"
MAX_FILE_BYTES = 1 << 20
MOST_KEY_PARTS = 64
_KEY_PART = r"""[\w"'-]++[ \t]*+\.[ \t]*+"""
_LONG_KEY = re.compile(rf"""(?<![\w"'-])(?:{_KEY_PART}){{{MOST_KEY_PARTS}}}""")
"""A key of very many parts: the TOML reader's time grows with the square of their number."""
_TOML_PLACE = re.compile(r"(?P<what>.*) \(at (?P<where>.*)\)")


def user_config_file(env: Mapping[str, str]) -> Path:
    """The file in the user's configuration folder, whether or not it is there."""
    return user_folder("XDG_CONFIG_HOME", ".config", env) / FILE_NAME


def find_config(
    path: str | Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Path | None:
    """The configuration file to read: `path`, $KEEPWARM_CONFIG, the working directory, the user's.

    Returns None when nothing is named and neither place has one.

    Raises:
        ConfigError: a file that was named is not there.
    """
    return _find(path, os.environ if env is None else env, cwd or Path.cwd())[0]


def _find(path: str | Path | None, env: Mapping[str, str], here: Path) -> tuple[Path | None, bool]:
    """The file, and whether it was merely found in the working folder."""
    for named, by in ((path, "--config"), (env.get("KEEPWARM_CONFIG"), "KEEPWARM_CONFIG")):
        if not named:
            continue
        try:
            file = Path(here, expanded(named))
        except ValueError as error:
            raise ConfigError(f"{by}: found {named}; {error}.", file=str(named)) from None
        if not file.is_file():
            what = "a folder" if file.is_dir() else "no file"
            raise ConfigError(
                f"{by}: found {what} at {file}.",
                hint=f"Give the path of a configuration file ({FILE_NAME}).",
                file=str(file),
            )
        return file, False
    local, users = here / FILE_NAME, user_config_file(env)
    if local.is_file():
        return local, not (users.is_file() and local.samefile(users))
    return (users if users.is_file() else None), False


def read_raw(file: Path) -> bytes:
    """A configuration file's bytes.

    Raises:
        ConfigError: it cannot be read, or is too big.
    """
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}).", file=str(file)) from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(
            f"{file}: has more than {MAX_FILE_BYTES} bytes; allowed: at most that many.",
            file=str(file),
        )
    return raw


def parse_toml(file: Path, raw: bytes) -> tuple[dict[str, Any], dict[str, int]]:
    """A file's tables, and the line of each of its keys.

    Raises:
        ConfigError: it is not UTF-8, or not TOML (with the line).
    """
    try:
        text = raw.decode("utf-8-sig")
        long_key = _LONG_KEY.search(text)
        if long_key is None:
            return tomllib.loads(text), key_lines(text)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{file}: line {line}: found a byte that is not UTF-8; allowed: UTF-8 text.",
            file=str(file),
            line=line,
        ) from None
    except (ValueError, RecursionError) as error:
        # Beside what is not TOML: integers of more digits than Python converts.
        match = _TOML_PLACE.fullmatch(str(error))
        what, where = (match["what"], match["where"]) if match else (str(error), "some line")
        raise ConfigError(
            f"{file}: {where}: not TOML: {what}.",
            hint=_quotes_hint(where, text),
            file=str(file),
        ) from None
    line = text[: long_key.start()].count("\n") + 1
    raise ConfigError(
        f"{file}: line {line}: found a key of more than {MOST_KEY_PARTS} parts; allowed: the keys of "
        "`keepwarm config schema`.",
        file=str(file),
        line=line,
    )


def _quotes_hint(where: str, text: str) -> str:
    """How the line of a TOML error is to be written: what is not TOML lacks quotes, as a rule."""
    number = re.match(r"line (\d+)", where)
    line = text.splitlines()[int(number[1]) - 1] if number else ""
    header = re.fullmatch(r"""\s*\[models\.([^"'\]]+)\].*""", line)
    if header is not None:
        return f'Such a name needs quotes: [models."{header[1].strip()}"].'
    return 'Texts need quotes: path = "model.gguf".'


def load_config(
    path: str | Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    uses: Collection[str] | None = None,
) -> Config:
    """The configuration in effect: the file that `find_config` finds, under HARNESS_ENDPOINTS.

    Without a file it has no models except those of HARNESS_ENDPOINTS, and defaults elsewhere.

    Args:
        path: a file named on purpose (`--config`).
        env: the environment; the process's when left out.
        cwd: the working directory; the process's when left out.
        uses: the sections that the caller acts on; a file that was merely found needs no trust for what
            the other sections. All sections when left out.

    Raises:
        ConfigError: lists every mistake with file, line, key, what was found and what is allowed.
    """
    env = os.environ if env is None else env
    here = cwd or Path.cwd()
    file, merely_found = _find(path, env, here)
    endpoints = read_endpoints(env, here)
    if file is None:
        config = Config.from_mapping(with_endpoints({}, endpoints), base=here, label=VARIABLE)
        config.remember(None, _origins(None, {}, {}, endpoints))
        return config
    raw = read_raw(file)
    data, lines = parse_toml(file, raw)
    label = str(file)
    config = Config.from_mapping(data, base=file.parent, label=label, lines=lines)
    if merely_found:
        own = {name: entry for name, entry in config.models.items() if name not in endpoints}
        found = risks(config.model_copy(update={"models": own}), file.parent)
        used = [risk for risk in found if uses is None or risk.key.split(".")[0] in uses]
        trusted = TrustedFiles(user_config_file(env).parent)
        check_trust(file, raw, with_lines(used, lines), trusted)
    if endpoints:
        config = Config.from_mapping(with_endpoints(data, endpoints), base=file.parent, label=label)
    config.remember(file, _origins(file, data, lines, endpoints))
    return config


def risks_of_file(file: Path) -> tuple[bytes, list[Problem]]:
    """A file's content, and the keys in it that need trust.

    Raises:
        ConfigError: lists every mistake of the file.
    """
    raw = read_raw(file)
    data, lines = parse_toml(file, raw)
    config = Config.from_mapping(data, base=file.parent, label=str(file), lines=lines)
    return raw, with_lines(risks(config, file.parent), lines)


def _origins(
    file: Path | None,
    data: Mapping[str, Any],
    lines: Mapping[str, int],
    endpoints: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    keys = [dotted(path) for section, table in data.items() for path in _key_paths(section, table)]
    found = {key: f"{file}:{line_of(lines, key)}" for key in keys}
    for tag, endpoint in endpoints.items():
        found.update({dotted(("models", tag, name)): VARIABLE for name in endpoint})
    return found


def _key_paths(section: str, table: Mapping[str, Any]) -> list[tuple[str, ...]]:
    if section == "models":
        return [(section, name, key) for name, entry in table.items() for key in entry]
    return [(section, key) for key in table]
