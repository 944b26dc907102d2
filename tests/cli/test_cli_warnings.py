"""What a reply does not honour is shown by `keepwarm chat`."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from shim.cli.commands.asking.chat import reply_json, warnings_of
from shim.cli.commands.config.command import config_group
from shim.replies import Reply


def test_every_warning_of_a_reply_is_a_sentence_on_stderr() -> None:
    """Those of the template, and each place of a schema that was dropped."""
    reply = Reply("m", "x", relaxed=("$.a.uniqueItems",), warnings=("It has no chat template.",))
    first, second = warnings_of(reply)
    assert first == "It has no chat template."
    assert "$.a.uniqueItems" in second
    assert warnings_of(Reply("m", "x")) == []


def test_the_json_of_a_reply_carries_its_warnings() -> None:
    """As lists of texts."""
    told = reply_json(Reply("m", "x", relaxed=("$.a",), warnings=("w",)))
    read = json.loads(json.dumps(told))
    assert (read["relaxed"], read["warnings"]) == (["$.a"], ["w"])


def test_config_check_names_chat_models_without_a_template(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """A base model is named with its line; one with a template, or one that is given, is not."""
    key = b"tokenizer.chat_template"
    base = tmp_path / "base.gguf"
    base.write_bytes(tiny_models["producer"].read_bytes().replace(key, b"tokenizer.chat_templatX"))
    file = tmp_path / "keepwarm.toml"
    chats, vec = tiny_models["producer"], tiny_models["embedder"]
    given = '\nengine_args = ["--chat-template", "chatml"]'
    file.write_text(
        f'[models.chats]\npath = "{chats}"\n[models.base]\npath = "{base}"\n'
        f'[models.given]\npath = "{base}"{given}\n[models.vec]\npath = "{vec}"\nrole = "embedder"\n'
    )
    ran = CliRunner().invoke(config_group, ["check", "--config", str(file), "--json"])
    told = json.loads(ran.stdout)
    assert told["ok"]
    (warning,) = told["warnings"]
    assert "line 4" in warning or ":4:" in warning
    assert "the file of base has no chat template" in warning
    plain = CliRunner().invoke(config_group, ["check", "--config", str(file)])
    assert f"warning: {warning}" in plain.stdout
