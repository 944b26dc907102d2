"""`keepwarm doctor`: each kind of trouble is a line with what to do, and none is a traceback."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from backends.machine.children import Answered
from backends.machine.files.file_locks import lock_keeper
from backends.machine.files.lock_holders import Holder
from budget.errors import ConfigError
from shim.cli.commands.doctor import machine_checks, place_checks, program_checks, settings_checks
from shim.cli.commands.doctor.command import CHECKS
from shim.cli.commands.doctor.finding import Check, Finding, found_by
from shim.config import Config
from tests.cli.support import CommandPlace
from tests.fake_nvml import FakeNvml, error, gpu

GIB = 1 << 30


def levels(check: Callable[..., Iterator[Finding]], *args: Any) -> list[str]:
    """The level of each finding of a check, with the defaults of a configuration."""
    return [finding.level for finding in check(Config(), *args)]


def machine(**files: str) -> Callable[[str], str | None]:
    """A reader of made files of `/proc` and `/sys`, by the ends of their names."""

    def read(path: str) -> str | None:
        return next((text for name, text in files.items() if path.endswith(name)), None)

    return read


def meminfo(total: int, free: int) -> str:
    """`/proc/meminfo` of a machine."""
    return f"MemTotal: {total >> 10} kB\nMemAvailable: {free >> 10} kB\n"


def test_a_machine_that_is_well_has_a_line_for_each_check(
    place: CommandPlace, models: dict[str, Any]
) -> None:
    """No keeper is started, and the same findings are there for programs."""
    place.configure({name: models[name] for name in ("writer", "judge", "far")})
    found = place.json("doctor")
    assert found["ok"]
    names = [row["check"] for row in found["findings"]]
    assert {"configuration", "llama-server", "memory", "runtime folder", "devices"} <= set(names)
    assert len(names) > len(CHECKS)
    text = place.run("doctor").stdout.splitlines()
    assert len(text) == len(names) + 1 + sum(bool(row["todo"]) for row in found["findings"])
    assert all(line.split()[0] in {"ok", "warn"} for line in text[:-1] if line[0] != " ")
    assert not place.json("ps")["running"]


def test_trouble_is_bad_with_what_to_do_and_exit_code_4(
    place: CommandPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is missing, a llama-server that is not there, and a configuration that is no TOML."""
    monkeypatch.setattr(CommandPlace, "env", {**place.env, "KEEPWARM_LLAMA_BIN": "/nowhere"})
    rows = place.json("doctor", code=4)["findings"]
    bad = {row["check"]: row for row in rows if row["level"] == "bad"}
    assert "lost.gguf, which is not there" in bad["configuration"]["text"]
    assert "Set KEEPWARM_LLAMA_BIN" in bad["llama server"]["todo"]
    place.config.write_text("[models")
    broken = place.run("doctor")
    assert broken.exit_code == 4
    assert "not TOML" in broken.stdout
    assert "Traceback" not in broken.output


def test_memory_is_judged_by_what_is_free_and_by_a_groups_limit() -> None:
    """Little is a warning, less than the reserve is bad, and a container's limit is named."""
    well = machine(meminfo=meminfo(32 * GIB, 20 * GIB))
    assert levels(machine_checks.check_memory, well) == ["ok"]
    tight = machine(meminfo=meminfo(32 * GIB, 2 * GIB))
    assert levels(machine_checks.check_memory, tight) == ["warn"]
    short = machine(meminfo=meminfo(32 * GIB, GIB))
    assert levels(machine_checks.check_memory, short) == ["warn", "bad"]
    group = {"cgroup": "0::/\n", "memory.max": str(8 * GIB), "memory.current": str(GIB)}
    (finding,) = machine_checks.check_memory(
        Config(), machine(meminfo=meminfo(32 * GIB, 30 * GIB), **group)
    )
    assert (
        finding.text == "7.00 GiB free of 8.00 GiB (control group limit; the machine has 32.0 GiB)"
    )
    assert finding.facts == {"total_bytes": 8 * GIB, "free_bytes": 7 * GIB}


def test_a_share_of_the_cores_and_low_limits_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cpu.max` of a container; `ulimit -n` and `-v`."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(8))
    (cores,) = machine_checks.check_cores(
        Config(), machine(cgroup="0::/\n", **{"cpu.max": "150000 100000\n"})
    )
    assert (cores.level, cores.facts["allowed"]) == ("warn", 1.5)
    assert "threads = 1" in cores.todo
    assert levels(machine_checks.check_cores, machine(**{"cpu.max": "max 100000\n"})) == ["ok"]
    free, least = (resource.RLIM_INFINITY,) * 2, (64, 64)
    limits = {resource.RLIMIT_NOFILE: least, resource.RLIMIT_AS: (GIB, GIB)}
    monkeypatch.setattr(resource, "getrlimit", lambda number: limits.get(number, free))
    files, space = machine_checks.check_limits(Config())
    assert (files.level, space.level) == ("bad", "warn")
    assert "`ulimit -v` holds the address space to 1.00 GiB" in space.text


def test_gpus_are_listed_and_a_broken_one_is_bad() -> None:
    """By NVML, without a GPU here."""
    assert levels(machine_checks.check_gpus, lambda: FakeNvml([])) == ["ok"]
    (found,) = machine_checks.check_gpus(Config(), lambda: FakeNvml([gpu()]))
    assert (found.check, found.level, found.facts["free_bytes"]) == ("cuda:0", "ok", 20 * GIB)
    broken = FakeNvml([], error("Unknown"))
    assert levels(machine_checks.check_gpus, lambda: broken) == ["bad"]


def test_a_llama_server_that_does_not_run_or_sees_no_gpu_is_bad(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it said last is quoted."""

    def answers(code: int, log: str) -> None:
        monkeypatch.setattr(program_checks, "_asked", lambda _option: Answered(code, "", log))

    answers(127, "libgomp.so.1: cannot open shared object file")
    (finding,) = program_checks.check_llama_server(Config())
    assert (finding.level, "libgomp.so.1" in finding.text) == ("bad", True)
    answers(0, "version: 1")
    assert levels(program_checks.check_llama_server) == ["ok"]
    gpus = type("Gpus", (), {"found": ("one",), "warnings": ()})
    monkeypatch.setattr(program_checks, "list_gpus", lambda: gpus)
    assert levels(program_checks.check_llama_server) == ["ok", "bad"]


@pytest.mark.parametrize(("wrapper", "level"), [([], "bad"), (["false"], "bad"), (["env"], "ok")])
def test_without_a_parent_death_signal_the_missing_program_is_named(
    monkeypatch: pytest.MonkeyPatch, wrapper: list[str], level: str
) -> None:
    """No setpriv, and one that does not know the option."""
    monkeypatch.setattr(machine_checks, "ending_with_us", lambda: wrapper)
    (finding,) = machine_checks.check_ends(Config())
    assert (finding.level, "util-linux" in finding.todo) == (level, level == "bad")


def test_folders_without_room_or_permission_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is not made yet is judged by the one above it."""
    assert place_checks._room("folder", tmp_path / "a" / "b").level == "ok"
    monkeypatch.setattr(place_checks, "ROOM_BYTES", 1 << 62)
    assert place_checks._room("folder", tmp_path).level == "warn"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert place_checks._room("folder", tmp_path).level == "bad"


def test_a_keeper_that_does_not_listen_and_one_of_another_folder_are_named(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the process, and the command that ends it."""
    monkeypatch.setenv("KEEPWARM_RUNTIME_DIR", str(runtime_dir))
    lock = lock_keeper(runtime_dir)
    try:
        (keeper,) = place_checks.check_keeper(Config())
    finally:
        lock.release()
    assert (keeper.level, str(os.getpid()) in keeper.text) == ("bad", True)
    assert levels(place_checks.check_keeper) == ["ok"]
    other = Holder(4711, os.getuid(), "/srv/other")
    monkeypatch.setattr(place_checks, "device_holders", lambda _config: {"host": other})
    (devices,) = place_checks.check_locks(Config())
    assert (devices.level, "keepwarm keeper stop" in devices.todo) == ("bad", True)


def test_proxies_and_certificates_that_cannot_be_used_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No password of a proxy is shown."""
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
        "ssl_cert_dir",
        "curl_ca_bundle",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    assert levels(settings_checks.check_proxies) == ["ok"]
    monkeypatch.setenv("https_proxy", "http://ada:secret@proxy:3128")
    (proxy,) = settings_checks.check_proxies(Config())
    assert (proxy.level, "http://proxy:3128" in proxy.text) == ("ok", True)
    assert "secret" not in json.dumps(asdict(proxy))
    monkeypatch.setenv("https_proxy", "nonsense://proxy")
    assert levels(settings_checks.check_proxies) == ["bad"]
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent.pem"))
    assert levels(settings_checks.check_certificates) == ["bad"]
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/ca.pem")
    assert levels(settings_checks.check_certificates) == ["warn", "ok"]


def test_a_check_that_fails_is_a_finding_too() -> None:
    """A typed error is bad, and what the system refuses a warning."""

    def check_some_thing(_: Config) -> Iterator[Finding]:
        yield Finding("some thing", "ok", "seen")
        raise ConfigError("It cannot be.", hint="Mend it.")

    def check_another(_: Config) -> Iterator[Finding]:
        raise PermissionError(13, "Permission denied", "/sys/x")

    checks: list[Check] = [check_some_thing, check_another]
    found = [finding for check in checks for finding in found_by(check, Config())]
    assert [(f.check, f.level) for f in found] == [
        ("some thing", "ok"),
        ("some thing", "bad"),
        ("another", "warn"),
    ]
