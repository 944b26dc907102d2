"""Files: where they are found, what they mean, and how their mistakes are reported."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budget.errors import ConfigError
from shim.config import Config, ModelEntry, find_config, load_config
from shim.config.schema.document import MOST_MODELS

ROOT = Path(__file__).parents[2]
MODEL = '[models.m]\npath = "m.gguf"\n'


def write(folder: Path, text: str, name: str = "keepwarm.toml") -> Path:
    """A configuration file in a folder that is made for it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def load(folder: Path, text: str, **env: str) -> Config:
    """The configuration of a text, in an environment that holds `env` only."""
    file = write(folder, text)
    return load_config(file, env={"HOME": str(folder / "unknown"), **env}, cwd=folder)


def mistakes(folder: Path, text: str, **env: str) -> dict[str, dict[str, Any]]:
    """The mistakes of a text by key."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, **env)
    problems = caught.value.facts["problems"]
    assert isinstance(problems, list)
    assert all(p["message"] in caught.value.message for p in problems)
    return {p["key"]: p for p in problems}


def test_files_are_searched_in_the_documented_order(tmp_path: Path) -> None:
    """--config wins over $KEEPWARM_CONFIG, the working directory, and the user's folder."""
    here, home = tmp_path / "here", tmp_path / "home"
    here.mkdir()
    env = {"HOME": str(home)}
    assert find_config(env=env, cwd=here) is None
    users = write(home / ".config" / "keepwarm", MODEL)
    assert find_config(env=env, cwd=here) == users
    xdg = write(tmp_path / "xdg" / "keepwarm", MODEL)
    env["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
    assert find_config(env=env, cwd=here) == xdg
    local = write(here, MODEL)
    assert find_config(env=env, cwd=here) == local
    named = write(tmp_path, MODEL, "named.toml")
    env["KEEPWARM_CONFIG"] = str(named)
    assert find_config(env=env, cwd=here) == named
    option = write(tmp_path, MODEL, "option.toml")
    assert find_config(option, env=env, cwd=here) == option


def test_a_named_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """A name in --config or $KEEPWARM_CONFIG is never passed over for another file."""
    write(tmp_path, MODEL)
    with pytest.raises(ConfigError, match=r"--config: found no file at .*nope\.toml"):
        load_config("nope.toml", env={}, cwd=tmp_path)
    with pytest.raises(ConfigError, match="KEEPWARM_CONFIG: found a folder"):
        load_config(env={"KEEPWARM_CONFIG": str(tmp_path)}, cwd=tmp_path)


def test_without_a_file_everything_is_default(tmp_path: Path) -> None:
    """No file is no mistake: defaults and no models."""
    config = load_config(env={"HOME": str(tmp_path)}, cwd=tmp_path)
    assert config.models == {}
    assert config.file is None
    assert config.origin("budget.limit") == "default"


def test_the_example_file_loads_and_means_what_its_comments_say() -> None:
    """The file people start from holds, and its roles pin and route as documented."""
    config = load_config(ROOT / "examples" / "keepwarm.toml", env={})
    assert config.models["judge"].pinned
    assert not config.models["writer"].pinned
    assert config.models["writer"].context_per_slot == 4096
    assert config.models["writer"].kv_types == ("q8_0", "q8_0")
    assert config.models["planner"].remote
    assert config.models["planner"].url == "http://gpu-box:8000"
    assert config.models["classifier"].keep_alive == 600.0
    assert config.models["classifier"].path == ROOT / "examples/models/classifier-q8_0.gguf"
    assert config.budget.limit_bytes(10 * 1024**3) == 8 * 1024**3


def test_relative_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    """Not at the working directory; a home and absolute paths stay what they are."""
    file = write(tmp_path / "etc", '[models.m]\npath = "a/m.gguf"\nlora = "l.gguf"\n')
    entry = load_config(file, env={}, cwd=tmp_path).models["m"]
    assert entry.path == tmp_path / "etc" / "a" / "m.gguf"
    assert entry.lora == (tmp_path / "etc" / "l.gguf",)


def test_the_number_of_models_has_a_bound(tmp_path: Path) -> None:
    """A keeper can serve others while it reads so many."""
    text = "".join(f'[models.m{i}]\nurl = "http://h"\n' for i in range(MOST_MODELS))
    assert len(load(tmp_path, text).models) == MOST_MODELS
    problem = mistakes(tmp_path, text + MODEL)["models"]
    assert problem["found"] == f"{MOST_MODELS + 1} models"


@pytest.mark.parametrize("key", ["path", "mmproj", "draft_model", "lora"])
@pytest.mark.parametrize(
    "path",
    ["/proc/self/fd/3", "/dev/fd/63", "/dev/stdin", "/proc/1/root/m.gguf", "/dev/../proc/self/exe"],
)
def test_a_path_that_means_another_file_in_each_process_is_refused(
    tmp_path: Path, key: str, path: str
) -> None:
    """The keeper and its clients would differ about it, and then none of the models could be used."""
    text = f'[models.m]\n{key} = "{path}"\n' + ('path = "m.gguf"\n' if key != "path" else "")
    assert "another file in each process" in mistakes(tmp_path, text)[f"models.m.{key}"]["found"]
    assert load(tmp_path, '[models.m]\npath = "/dev/shm/m.gguf"\n').models["m"].path


def test_origins_name_file_and_line(tmp_path: Path) -> None:
    """Each key says where its value is from."""
    config = load(tmp_path, f'# a comment\n[budget]\nlimit = "1GiB"\n\n{MODEL}')
    file = tmp_path / "keepwarm.toml"
    assert config.origin("budget.limit") == f"{file}:3"
    assert config.origin("models.m.path") == f"{file}:6"
    assert config.origin("models.m.slots") == "default"


def test_every_mistake_of_a_file_is_reported_at_once(tmp_path: Path) -> None:
    """One error lists each key with its line, what was found and what is allowed."""
    found = mistakes(
        tmp_path,
        "[budget]\n"
        'limit = "120%"\n'
        "max_queue = -4\n"
        "reserv = 1\n"
        "[models.m]\n"
        'path = "m.gguf"\n'
        'slots = "two"\n'
        "context = 0\n"
        "[models.far]\n"
        'url = "http://h"\n'
        "pin = true\n"
        "[modles]\n",
    )
    lines = {key: problem["line"] for key, problem in found.items()}
    assert lines == {
        "budget.limit": 2,
        "budget.max_queue": 3,
        "budget.reserv": 4,
        "models.m.slots": 7,
        "models.m.context": 8,
        "models.far.pin": 11,
        "modles": 12,
    }
    assert found["budget.limit"]["found"] == '"120%" (more than 100%)'
    assert found["models.m.context"]["found"] == "0 (not a whole number from 1 to 2147483647)"
    assert found["models.m.slots"]["allowed"] == (
        "a whole number from 1 to 256, or { min = 1, preferred = 4 }"
    )
    assert 'did you mean "reserve"?' in found["budget.reserv"]["found"]
    assert 'did you mean "models"?' in found["modles"]["found"]


@pytest.mark.parametrize(
    ("wrong", "right"), [("contxt", "context"), ("n_ctx", "context"), ("ttl", "keep_alive")]
)
def test_unknown_keys_name_the_nearest_known_one(tmp_path: Path, wrong: str, right: str) -> None:
    """A misspelling and another program's name for a key both lead to ours."""
    found = mistakes(tmp_path, f"{MODEL}{wrong} = 5\n")
    assert f'did you mean "{right}"?' in found[f"models.m.{wrong}"]["found"]


@pytest.mark.parametrize("name", ["llama3.1-8b", "qwen2.5-0.5b-instruct.Q4"])
def test_a_name_with_dots_and_no_quotes_is_answered_with_the_quotes(
    tmp_path: Path, name: str
) -> None:
    """TOML reads the dots as tables; there is one mistake, at its line, with the header to write."""
    text = f'[budget]\nlimit = "50%"\n[models.{name}]\npath = "m.gguf"\n'
    found = mistakes(tmp_path, text)
    assert list(found) == [f"models.{name}"]
    assert found[f"models.{name}"]["line"] == 3
    assert f'[models."{name}"]' in found[f"models.{name}"]["allowed"]
    quoted = text.replace(name, f'"{name}"')
    assert load(tmp_path, quoted).models[name].path == tmp_path / "m.gguf"


@pytest.mark.parametrize("name", ["llama3.1:8b", "team/writer", "a b"])
def test_a_name_that_is_no_toml_is_answered_with_the_quotes(tmp_path: Path, name: str) -> None:
    """Names as Ollama writes them are fine once they are quoted."""
    with pytest.raises(ConfigError, match="not TOML") as caught:
        load(tmp_path, f'[models.{name}] # of mine\npath = "m.gguf"\n')
    assert f'[models."{name}"]' in caught.value.hint


def test_a_mark_of_the_byte_order_is_no_mistake(tmp_path: Path) -> None:
    """Some editors put one in front of UTF-8."""
    (tmp_path / "keepwarm.toml").write_text(MODEL, encoding="utf-8-sig")
    assert load_config(env={"HOME": str(tmp_path)}, cwd=tmp_path).models["m"].path


@pytest.mark.parametrize(
    ("lines", "key", "why"),
    [
        ("role = 'judge'", "role", '"evaluator"'),
        ("kv_type = 'q2'", "kv_type", '"q8_0"'),
        ("n_gpu_layers = -1", "n_gpu_layers", '"auto" or 0 or more'),
        ("n_gpu_layers = true", "n_gpu_layers", '"auto" or 0 or more'),
        ("context = 1.5", "context", "whole number of tokens"),
        ("context = true", "context", "whole number of tokens"),
        ("context = 3\nslots = 4", "context", "one token a slot"),
        ("n_batch = 64\nn_ubatch = 128", "n_ubatch", "at most n_batch"),
        ("keep_alive = '-soon'", "keep_alive", "below 0 for no time-out"),
        ("pin = 'yes'", "pin", "true or false"),
        ("pin = true\nkeep_alive = 0", "keep_alive", "-1, or pin = false"),
        ("priority = 1000", "priority", "-100 to 100"),
        ("engine_args = ['--port', '1']", "engine_args", "--port is refused"),
        ("engine_args = '--jinja'", "engine_args", "a list of texts"),
        ("kv_type = 'q8_0'\nflash_attention = 'off'", "flash_attention", "kv_type_v"),
        ("kv_type_v = 'q4_0'\nflash_attention = 'off'", "flash_attention", "kv_type_v"),
        ("hf = 'a/b:c.gguf'", "hf", "exactly one of"),
        ("url = 'http://h'", "url", "exactly one of"),
        ("backend = 'vllm'", "path", "model folder"),
        (
            "backend = 'tgi'",
            "backend",
            '"llama.cpp", "llama-cpp-python", "python", "vllm", "server", "ollama" or "openai"',
        ),
        ("model_id = 'x'", "model_id", "give url"),
        ("api_key_env = 'KEY'", "api_key_env", "give url"),
        ("warm_prompt = ''", "warm_prompt", "not empty"),
        ("mmproj = ''", "mmproj", "a path"),
        ("lora = [1]", "lora", "list of paths"),
    ],
)
def test_values_and_combinations_that_do_not_hold_are_errors(
    tmp_path: Path, lines: str, key: str, why: str
) -> None:
    """Each names its key and what is allowed there."""
    problem = mistakes(tmp_path, f"{MODEL}{lines}\n")[f"models.m.{key}"]
    assert why in problem["message"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[models.m]\n", "models.m.path"),
        ("models = 3\n", "models"),
        ("[models]\nm = 'm.gguf'\n", "models.m"),
        ("budget = 3\n", "budget"),
        ("[models.'a b']\npath = 'x'\n", 'models."a b"'),
        ("[budget]\ndevice = 'gpu'\n", "budget.device"),
        ("[budget]\npolicy = 'fifo'\n", "budget.policy"),
        ("[budget]\nlimit = 0\n", "budget.limit"),
        ("[keeper]\nidle_exit = 'never'\n", "keeper.idle_exit"),
        ("[trace]\nenabled = 1\n", "trace.enabled"),
        ("[models.m]\nhf = 'owner/file.gguf'\n", "models.m.hf"),
    ],
)
def test_misshapen_tables_name_their_key(tmp_path: Path, text: str, key: str) -> None:
    """A table that is a number, a number that is a table, a model without a source."""
    assert key in mistakes(tmp_path, text)


def test_a_secret_written_into_the_file_is_never_quoted(tmp_path: Path) -> None:
    """Neither as an unknown key's value, nor as a variable's name, nor inside an address."""
    secret = "sk-very-secret"
    text = (
        f'[models.m]\nurl = "http://u:{secret}@h"\napi_key = "{secret}"\napi_key_env = "{secret}"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert secret not in str(caught.value.to_wire())
    assert "api_key_env" in caught.value.message


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"[budget\n", "line 1"),
        (b"[budget]\nlimit = 80%\n", "line 2"),
        (b"[budget]\nlimit = '1GiB'\nlimit = '2GiB'\n", "line 3"),
        (b"[budget]\n# \xff\n", "line 2: found a byte that is not UTF-8"),
        (b"#" * (1 << 20) + b"##", "more than 1048576 bytes"),
        (b"a = " + b"[" * 100_000, "not TOML"),
    ],
)
def test_files_that_are_not_toml_say_where(tmp_path: Path, raw: bytes, why: str) -> None:
    """Broken syntax, a key twice, wrong encoding, a huge file, endless nesting: typed, with a place."""
    file = tmp_path / "keepwarm.toml"
    file.write_bytes(raw)
    with pytest.raises(ConfigError, match=why) as caught:
        load_config(file, env={})
    assert str(file) in str(caught.value)


def test_a_remote_model_takes_one_line(tmp_path: Path) -> None:
    """A url makes a model remote; the calling name is the endpoint's name unless it has another."""
    entry = load(tmp_path, '[models.m]\nurl = "http://h:8000/v1"\n').models["m"]
    assert entry.remote
    assert entry.backend == "openai"
    assert not entry.pinned
    assert (
        not load(tmp_path, '[models.m]\nurl = "http://h"\nrole = "evaluator"\n').models["m"].pinned
    )


def test_configurations_survive_the_wire(tmp_path: Path) -> None:
    """What a client sends to the keeper means the same there, from another folder."""
    config = load(tmp_path, (ROOT / "examples" / "keepwarm.toml").read_text("utf-8"))
    sent = json.loads(json.dumps(config.to_mapping()))
    again = Config.from_mapping(sent, base=tmp_path / "elsewhere")
    assert again.models == config.models
    assert not config.diff(again)


def test_bare_files_need_no_configuration_file(tmp_path: Path) -> None:
    """Names and paths are enough; a wrong name is reported like other mistakes."""
    config = Config.for_files({"a": tmp_path / "a.gguf"}, budget={"limit": "1GiB"})
    assert config.models["a"].path == tmp_path / "a.gguf"
    with pytest.raises(ConfigError, match="the name"):
        Config.for_files({"a b": "a.gguf"})


def test_a_reload_knows_what_changed(tmp_path: Path) -> None:
    """Each changed model by the keys that changed; what says its default is unchanged."""
    old = load(
        tmp_path,
        "".join(f'[models.{n}]\npath = "{n}.gguf"\n' for n in ("same", "alive", "bigger", "gone")),
    )
    new = load(
        tmp_path,
        '[budget]\nlimit = "1GiB"\n[models.same]\npath = "same.gguf"\nslots = 1\n'
        '[models.alive]\npath = "alive.gguf"\nkeep_alive = "5m"\n'
        '[models.bigger]\npath = "bigger.gguf"\ncontext = 8192\n[models.new]\npath = "n.gguf"\n',
    )
    diff = old.diff(new)
    assert diff.added == ("new",)
    assert diff.removed == ("gone",)
    assert diff.changed == {"alive": ("keep_alive",), "bigger": ("context",)}
    assert diff.unchanged == ("same",)
    assert diff.sections == ("budget.limit",)
    assert not new.diff(new)


def test_missing_files_are_listed_by_key(tmp_path: Path) -> None:
    """Loading does not look for model files; a check can ask which are missing."""
    (tmp_path / "m.gguf").touch()
    config = load(tmp_path, f'{MODEL}lora = ["a.gguf", "m.gguf"]\n')
    assert config.missing_files() == [("models.m.lora", tmp_path / "a.gguf")]


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(["budget", "keeper", "trace", "x"]) | st.text(max_size=5), JSONISH
    ),
    st.dictionaries(st.sampled_from(sorted(ModelEntry.model_fields)), JSONISH),
)
def test_any_mapping_is_a_configuration_or_a_config_error(
    data: dict[str, Any], entry: dict[str, Any]
) -> None:
    """Whatever shape a mapping has, nothing but ConfigError comes out, and it can cross the wire."""
    outcome: Config | ConfigError
    try:
        outcome = Config.from_mapping({"models": {"m": entry}, **data})
    except ConfigError as error:
        outcome = error
    wire = outcome.to_mapping() if isinstance(outcome, Config) else outcome.to_wire()
    assert json.loads(json.dumps(wire)) == wire


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (".".join(["a"] * 40_000) + " = 1\n", "more than 64 parts"),
        ("[" + ".".join(["a"] * 100_000) + "]\n", "more than 64 parts"),
        ("x = {" + " . ".join(["'a'"] * 5_000) + " = 1}\n", "more than 64 parts"),
        ("[budget]\nlimit = " + "9" * 5_000 + "\n", "not TOML"),
        ("[models.a]\ncontext = 0x" + "f" * 5_000 + "\n", "an integer of 20000 bits"),
    ],
    ids=["dotted key", "table", "inline table", "integer", "hexadecimal integer"],
)
def test_a_hostile_file_is_refused_at_once(tmp_path: Path, text: str, found: str) -> None:
    """Keys that would take minutes to read, and integers that Python does not convert, are typed errors."""
    file = tmp_path / "keepwarm.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=found):
        load_config(file)


@pytest.mark.parametrize(
    ("keys", "stays_s"),
    [
        ('role = "planner"', 60),
        ('role = "planner"\nkeep_alive = "5m"', 300),
        ('role = "planner"\nkeep_alive = -1', -1),
        ('role = "planner"\npin = true', -1),
        ('role = "producer"', -1),
        ("", -1),
    ],
)
def test_a_planner_leaves_a_minute_after_its_last_request_unless_it_is_told_otherwise(
    tmp_path: Path, keys: str, stays_s: float
) -> None:
    """What is written counts, also where it is what other roles have by default."""
    config = load(tmp_path, f'[models.m]\npath = "m.gguf"\n{keys}\n')
    assert config.models["m"].stays_s == stays_s
