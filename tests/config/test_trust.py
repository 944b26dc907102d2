"""What a file that merely lies in the working folder may not use before its user trusts it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from budget.errors import ConfigError
from shim.cli import main
from shim.cli.commands.config.command import config_group
from shim.config import Config, ModelEntry, TrustedFiles, load_config
from shim.config.loader import user_config_file
from shim.config.schema.document import SECTIONS
from shim.config.schema.engine_args import HARMLESS, REFUSED
from shim.config.schema.sections import Section

ROOT = Path(__file__).parents[2]
LOCAL = '[models.m]\npath = "m.gguf"\n'
KEYED = f'{LOCAL}[models.far]\nurl = "http://localhost:80/v1"\napi_key_env = "AWS_SECRET"\n'
RPC = '[budget]\ndevice = "RPC0"\nlimit = "1GiB"\nrpc = '

NEEDS_NO_TRUST = {
    "budget": "device devices limit reserve policy preempt max_wait max_queue max_queue_per_model "
    "prefetch stage_rate",
    "keeper": "idle_exit stall_timeout stop_grace lease_timeout engine_margin trace trace_last",
    "kv": "enabled limit max_age",
    "trace": "enabled content compress sample max_bytes max_age",
    "metrics": "interval",
    "models": "ca_file path hf role context slots kv_type kv_type_k kv_type_v n_gpu_layers flash_attention "
    "n_batch n_ubatch repack swa_full threads keep_alive pin priority max_queue mmproj draft_model "
    "lora warm_prompt backend model_id connect_timeout first_token_timeout token_timeout "
    "answer_timeout fallback "
    "options bytes files cwd device sleep ready can stop_signal",
}
"""Keys that spend no secret, connect to and run nothing, and have nothing written where the file says.

Those of Python models and servers mean something only beside a `factory` or a `command`,
which need trust."""
NEEDS_TRUST = {
    "kv.folder": "folder",
    "trace.folder": "folder",
    "models.engine_args": "program",
    "models.factory": "run",
    "models.command": "run",
    "models.llama_server": "run",
    "models.python": "run",
    "models.env": "run",
    "models.api_key_env": "secret",
    "models.url": "address",
    "models.endpoints": "address",
    "budget.rpc": "address",
    "trace.otlp": "address",
    "metrics.otlp": "address",
    "metrics.prometheus": "address",
}


class Stranger:
    """A folder of a stranger's project, with a keepwarm.toml, and the user's own home."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "checkout"
        self.folder.mkdir()
        self.file = self.folder / "keepwarm.toml"
        self.env = {"HOME": str(root / "home")}

    def load(self, text: str | None = None, **more: Any) -> Config:
        """The configuration of a program that runs there."""
        if text is not None:
            self.file.write_text(text)
        env = {**self.env, **more.pop("env", {})}
        return load_config(more.pop("path", None), env=env, cwd=self.folder)

    def refused(self, text: str | None = None) -> ConfigError:
        """Why it is not loaded."""
        with pytest.raises(ConfigError) as caught:
            self.load(text)
        assert "is not trusted" in caught.value.message or "has changed" in caught.value.message
        return caught.value


@pytest.fixture
def stranger(tmp_path: Path) -> Stranger:
    """A stranger's folder."""
    return Stranger(tmp_path)


def test_every_key_is_known_to_need_trust_or_not_to() -> None:
    """A key that is added has to be put on one of the two lists, by a person."""
    tables: dict[str, type[Section]] = {"models": ModelEntry}
    for name in SECTIONS:
        section = Config.model_fields[name].annotation
        assert isinstance(section, type)
        tables[name] = section
    free = {f"{table}.{key}" for table, keys in NEEDS_NO_TRUST.items() for key in keys.split()}
    found = {}
    for table, section in tables.items():
        for key, field in section.model_fields.items():
            extra = field.json_schema_extra
            assert isinstance(extra, dict)
            found[f"{table}.{key}"] = extra.get("x-trust")
    unsorted = {key for key, trust in found.items() if trust is None} ^ free
    assert unsorted == set(), "add the key to NEEDS_NO_TRUST, or give it `trust=` in its section"
    assert {key: trust for key, trust in found.items() if trust is not None} == NEEDS_TRUST


def test_a_found_file_sends_requests_to_none_of_several_endpoints(stranger: Stranger) -> None:
    """Unless all of them are on this machine."""
    error = stranger.refused(
        '[models.m]\nendpoints = ["http://127.0.0.1:8000", "http://stranger.example"]\n'
    )
    assert "http://stranger.example" in error.message
    assert stranger.load('[models.m]\nendpoints = ["http://127.0.0.1:8000"]\n').models["m"].remote


def test_a_found_file_runs_no_python_code(stranger: Stranger) -> None:
    """A stranger's factory, ready-made or not, runs once its file is trusted."""
    for factory in ("speech:Transcriber", "faster-whisper"):
        error = stranger.refused(f'[models.whisper]\nfactory = "{factory}"\n')
        assert f"models.whisper.factory has {factory}" in error.message
        assert error.facts["keys"] == ["models.whisper.factory"]


def test_a_found_file_that_needs_no_trust_works_as_ever(stranger: Stranger) -> None:
    """Models, a budget, this machine's addresses without a key, harmless arguments, folders of its own."""
    config = stranger.load(
        f'{RPC}["localhost:1", "127.0.0.9:2"]\n[kv]\nfolder = "kv"\n[trace]\nfolder = "./runs"\n'
        f'{LOCAL}engine_args = ["--rope-scaling", "yarn", "--rope-scale=2", "--temp", "-1"]\n'
        '[models.far]\nurl = "http://127.0.0.1:8000"\n[models.far6]\nurl = "https://[::1]:7/v1"\n'
        '[models.hub]\nhf = "o/r:f.gguf"\n'
    )
    assert set(config.models) == {"m", "far", "far6", "hub"}
    assert not user_config_file(stranger.env).parent.exists()


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        (KEYED, "models.far.api_key_env", 5),
        (f'{LOCAL}engine_args = ["--video-ffmpeg-dir", "bin"]\n', "models.m.engine_args", 3),
        (f'{LOCAL}engine_args = ["--temp", "1", "-jf=/a"]\n', "models.m.engine_args", 3),
        (f'{LOCAL}engine_args = ["--new_option", "x"]\n', "models.m.engine_args", 3),
        (f'{LOCAL}[kv]\nfolder = "/srv/documents"\n', "kv.folder", 4),
        (f'{LOCAL}[kv]\nfolder = "../other"\n', "kv.folder", 4),
        (f'{LOCAL}[trace]\nfolder = "~/.ssh"\n', "trace.folder", 4),
        (f'kv = {{ folder = "/x" }}\n{LOCAL}', "kv.folder", 1),
        (f'{RPC}["localhost:1", "gpu-box:50052"]\n{LOCAL}', "budget.rpc", 4),
        (f'[trace]\notlp = "http://far:4318"\n{LOCAL}', "trace.otlp", 2),
        (f'[metrics]\notlp = "http://far:4318"\n{LOCAL}', "metrics.otlp", 2),
        (f'[metrics]\nprometheus = "0.0.0.0:9464"\n{LOCAL}', "metrics.prometheus", 2),
        (f'[metrics]\nprometheus = "../up.sock"\n{LOCAL}', "metrics.prometheus", 2),
        (f'{LOCAL}[models.far]\nurl = "http://169.254.169.254/v1"\n', "models.far.url", 4),
        (f'{LOCAL}[models.far]\nurl = "http://localhost.example"\n', "models.far.url", 4),
        (f'{LOCAL}[models.far]\nurl = "http://[fd00::1]"\n', "models.far.url", 4),
    ],
)
def test_a_found_file_that_needs_trust_is_refused_by_key_and_line(
    stranger: Stranger, text: str, key: str, line: int
) -> None:
    """The error names the keys, and the command that trusts the file; no value of a secret is in it."""
    error = stranger.refused(text)
    assert error.facts["keys"] == [key]
    assert f"line {line}: {key} has " in error.message
    assert f"`keepwarm config trust {stranger.file}`" in error.hint
    assert "AWS_SECRET" not in str(error.to_wire())


def test_the_refusal_of_a_file_is_short_whatever_it_has(stranger: Stranger) -> None:
    """One line with the file and the first reasons, and the one command; programs get them all."""
    many = "".join(f'[models.m{n}]\nurl = "http://h{n}"\napi_key_env = "K"\n' for n in range(99))
    error = stranger.refused(many)
    assert len(error.message.splitlines()) == len(error.hint.splitlines()) == 1
    assert error.message.count(" has ") == 3
    assert error.message.endswith("and 195 more.")
    assert len(error.facts["problems"]) == 198  # type: ignore[arg-type]


def test_a_link_out_of_the_folder_is_outside_of_it(stranger: Stranger, tmp_path: Path) -> None:
    """A checkout can hold links."""
    (stranger.folder / "kv").symlink_to(tmp_path)
    assert stranger.refused(f'{LOCAL}[kv]\nfolder = "kv"\n').facts["keys"] == ["kv.folder"]


@pytest.mark.parametrize(
    ("command", "refused_for"),
    [
        ("config show", ""),
        ("unload m", ""),
        ("release m", ""),
        ("unpin m", ""),
        ("kv list", "kv.folder"),
        ("kv clear", "kv.folder"),
        ("trace list", "trace.folder"),
        ("plan", "models.far.api_key_env kv.folder trace.folder"),
        ("load m", "models.far.api_key_env kv.folder trace.folder"),
    ],
)
def test_a_command_needs_trust_only_for_what_it_uses(
    stranger: Stranger,
    monkeypatch: pytest.MonkeyPatch,
    runtime_dir: Path,
    command: str,
    refused_for: str,
) -> None:
    """One that only shows, or lets a model go, spends no key and runs nothing."""
    monkeypatch.chdir(stranger.folder)
    env = {**stranger.env, "KEEPWARM_RUNTIME_DIR": str(runtime_dir), "KEEPWARM_CONFIG": ""}
    risky = {
        "models.far.api_key_env": KEYED,
        "kv.folder": '[kv]\nfolder = "/srv/documents"\n',
        "trace.folder": '[trace]\nfolder = "/srv/documents"\n',
    }
    for key, text in risky.items():
        stranger.file.write_text(text if text.startswith(LOCAL) else f"{text}{LOCAL}")
        done = CliRunner().invoke(main, command.split(), env=env)
        refused = "is not trusted" in done.output
        assert refused == (key in refused_for.split()), (key, done.output)


def test_a_file_that_is_named_is_trusted(stranger: Stranger, tmp_path: Path) -> None:
    """By --config, by $KEEPWARM_CONFIG, or by lying in the user's own folder."""
    stranger.refused(KEYED)
    assert "far" in stranger.load(path="keepwarm.toml").models
    assert "far" in stranger.load(env={"KEEPWARM_CONFIG": "keepwarm.toml"}).models
    users = user_config_file(stranger.env)
    users.parent.mkdir(parents=True)
    users.write_text(KEYED)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert "far" in load_config(env=stranger.env, cwd=elsewhere).models
    assert "far" in load_config(env=stranger.env, cwd=users.parent).models


def test_endpoints_of_the_users_own_environment_are_the_users(stranger: Stranger) -> None:
    """They replace the file's entry; of what they replace nothing is used."""
    endpoints = {"far": {"url": "http://mine", "api_key_env": "MY_KEY"}}
    config = stranger.load(KEYED, env={"HARNESS_ENDPOINTS": json.dumps(endpoints)})
    assert config.models["far"].url == "http://mine"


def test_trust_is_of_a_path_and_its_content(stranger: Stranger, tmp_path: Path) -> None:
    """A change takes it back, a copy elsewhere never had it, and it can be revoked."""
    stranger.refused(KEYED)
    trusted = TrustedFiles(user_config_file(stranger.env).parent)
    trusted.trust(stranger.file, stranger.file.read_bytes())
    assert "far" in stranger.load().models
    assert trusted.path.stat().st_mode & 0o777 == 0o600
    assert [row.state for row in trusted.rows()] == ["trusted"]
    error = stranger.refused(KEYED.replace("AWS", "GCP"))
    assert "has changed since it was trusted" in error.message
    assert [row.state for row in trusted.rows()] == ["changed"]
    assert "far" in stranger.load(KEYED).models
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "keepwarm.toml").write_text(KEYED)
    with pytest.raises(ConfigError, match="is not trusted"):
        load_config(env=stranger.env, cwd=copy)
    assert trusted.revoke(stranger.file)
    assert not trusted.revoke(stranger.file)
    stranger.refused()


@pytest.mark.parametrize(
    "text", ["", "[]", "{" * 3000, '{"format": 1, "files": [1]}', '{"files": 3}']
)
def test_a_damaged_list_trusts_nothing_and_can_be_written_again(
    stranger: Stranger, text: str
) -> None:
    """It is never taken as a yes, and never in the way."""
    stranger.file.write_text(KEYED)
    trusted = TrustedFiles(user_config_file(stranger.env).parent)
    trusted.path.parent.mkdir(parents=True)
    trusted.path.write_text(text)
    stranger.refused()
    trusted.trust(stranger.file, stranger.file.read_bytes())
    assert "far" in stranger.load().models


def test_a_list_that_cannot_be_kept_is_a_typed_error(stranger: Stranger, tmp_path: Path) -> None:
    """It names the file and the variable."""
    (tmp_path / "home").touch()
    with pytest.raises(ConfigError, match=r"trusted\.json cannot be written") as caught:
        TrustedFiles(user_config_file(stranger.env).parent).trust(stranger.folder, b"")
    assert "$XDG_CONFIG_HOME" in caught.value.hint


def test_harmless_arguments_are_none_of_the_refused_ones() -> None:
    """And none of them is written with the underscores that llama-server takes for dashes."""
    assert not HARMLESS & REFUSED.keys()
    assert not any("_" in name for name in HARMLESS)


class Commands:
    """`keepwarm config` in a stranger's folder."""

    def __init__(self, stranger: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(stranger.folder)
        for name in ("KEEPWARM_CONFIG", "HARNESS_ENDPOINTS", "XDG_CONFIG_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", stranger.env["HOME"])
        monkeypatch.setenv("AWS_SECRET", "set")

    def run(self, *args: str) -> Result:
        """A command's output."""
        return CliRunner().invoke(config_group, list(args))

    def json(self, *args: str) -> Any:
        """What a command prints with --json."""
        return json.loads(self.run(*args, "--json").stdout)


@pytest.fixture
def commands(stranger: Stranger, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """The commands, in a folder whose file needs trust."""
    stranger.file.write_text(KEYED)
    return Commands(stranger, monkeypatch)


def test_the_command_trusts_says_what_lists_and_revokes(
    commands: Commands, stranger: Stranger
) -> None:
    """What the check names as a problem is gone after one command."""
    report = commands.json("check")
    assert [problem["key"] for problem in report["problems"]] == ["models.far.api_key_env"]
    assert commands.run("trust", "--list").output == "No file is trusted.\n"
    said = commands.run("trust")
    assert said.exit_code == 0
    assert "is trusted until it changes" in said.output
    assert (
        "models.far.api_key_env: the name of a key that is sent to http://localhost" in said.output
    )
    assert "models.far.api_key_env" not in str(commands.json("check")["problems"])
    assert commands.json("trust", "--list")["files"][0]["file"] == os.path.realpath(stranger.file)
    assert "trusted" in commands.run("trust", "--list").output
    assert commands.json("trust", "--revoke", "keepwarm.toml")["revoked"] is True
    assert "was not trusted" in commands.run("trust", "--revoke").output
    assert commands.json("trust", str(stranger.file))["uses"][0]["line"] == 5


def test_a_file_with_mistakes_or_none_at_all_is_not_trusted(
    commands: Commands, stranger: Stranger
) -> None:
    """Both are said."""
    stranger.file.write_text("[models.m]\n")
    assert isinstance(commands.run("trust").exception, ConfigError)
    stranger.file.unlink()
    assert "There is no file" in str(commands.run("trust").exception)
    stranger.file.write_text(LOCAL)
    assert "nothing that needs trust" in commands.run("trust").output


def test_a_home_that_no_one_knows_is_a_typed_error(stranger: Stranger) -> None:
    """`~no-user-of-that-name` in a path of the file, in --config, and in HARNESS_ENDPOINTS."""
    home = "~no-user-of-that-name/x"
    with pytest.raises(ConfigError, match="no home that ~ could mean"):
        stranger.load(f'[models.m]\npath = "{home}"\n')
    with pytest.raises(ConfigError, match=r"--config: .*no home that ~ could mean"):
        stranger.load(LOCAL, path=home)
    with pytest.raises(ConfigError, match=r"HARNESS_ENDPOINTS: .*no home that ~ could mean"):
        stranger.load(LOCAL, env={"HARNESS_ENDPOINTS": home})
