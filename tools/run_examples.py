"""Run the examples as a reader would, each within two minutes: `python tools/run_examples.py [NAME ...]`.

What they need is fetched first. A package that cannot be had is named, the examples that need nothing of it
still run, and the program ends with 1. The keeper that some of them start is private, and ends with this
program.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# The folder above has to be on the path first, because this file is run as a program.
from tools.own_python import by_own_python  # noqa: E402

if __name__ == "__main__":
    by_own_python()

from tools.fetch_models import fetch_all  # noqa: E402
from tools.setup_run import SetupError, say  # noqa: E402
from tools.side_environment import build  # noqa: E402

LIMIT_S: Final = 120
END_LIMIT_S: Final = 30
LINES: Final = 30
"""Of an example's output that are shown."""
EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "own_model.py": (),
    "three_agents.py": (),
    "judge_batch.py": (),
    "pipeline.py": ("models",),
    "document_assistant.py": ("models",),
    "voice_agent.py": ("models", "voice"),
}
"""What each needs beside the environment of `make setup`."""


def get_ready(needs: Sequence[str]) -> set[str]:
    """Fetch and build what is needed; returns what is there. Says why something is not."""
    there = set[str]()
    if "models" in needs and fetch_all(ROOT / "models" / "real"):
        there.add("models")
    if "voice" in needs:
        try:
            build("voice")
            there.add("voice")
        except SetupError as error:
            say(f"error: {error}")
    return there


@contextmanager
def private_keeper() -> Iterator[dict[str, str]]:
    """An environment whose keeper is nobody else's; it is ended at the end."""
    with tempfile.TemporaryDirectory(prefix="kw-examples-") as folder:
        places = ("KEEPWARM_LOCK_DIR", "XDG_STATE_HOME", "KEEPWARM_RUNTIME_DIR")
        env = {**os.environ, **{name: str(Path(folder) / name) for name in places}}
        for name in places:
            Path(env[name]).mkdir(mode=0o700)
        try:
            yield env
        finally:
            stop_keeper(env)


def stop_keeper(env: Mapping[str, str]) -> None:
    """End the keeper of an environment, if one runs."""
    keepwarm = str(Path(sys.executable).with_name("keepwarm"))
    subprocess.run([keepwarm, "keeper", "stop"], env=env, capture_output=True, timeout=LIMIT_S)


def run(name: str, env: Mapping[str, str]) -> bool:
    """Whether an example ended well in its time; shows the end of what it printed."""
    start_s = time.monotonic()
    command = [sys.executable, str(ROOT / "examples" / name)]
    with subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            said, _ = process.communicate(timeout=LIMIT_S)
            code = f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            said, code = ended(process), f"not through after {LIMIT_S} s"
        except KeyboardInterrupt:
            ended(process)
            raise
    well = code == "exit code 0"
    for line in said.splitlines()[-LINES:]:
        print(f"    {line}")
    print(
        f"examples/{name}: {'' if well else code + ', '}{time.monotonic() - start_s:.1f} s",
        flush=True,
    )
    return well


def ended(process: subprocess.Popen[str]) -> str:
    """What an example said that is ended as by Ctrl-C: it ends its engines and removes its folders."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=END_LIMIT_S)[0]
    except subprocess.TimeoutExpired as error:
        process.kill()
        # Not what comes until its pipe is closed: a process that it started may hold that for ever.
        return (error.stdout or b"").decode(errors="replace")


def main() -> int:
    """Run the examples that the command line names, or all of them; 0 when all ended well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="all, if left out")
    names: list[str] = parser.parse_args().names or list(EXAMPLES)
    if strange := sorted(set(names) - set(EXAMPLES)):
        parser.error(f"no example is called {', '.join(strange)}; they are {', '.join(EXAMPLES)}")
    there = get_ready([need for name in names for need in EXAMPLES[name]])
    failed = list[str]()
    with private_keeper() as env:
        for name in names:
            missing = [need for need in EXAMPLES[name] if need not in there]
            if missing:
                print(f"examples/{name}: not run, because {' and '.join(missing)} is not there")
            if missing or not run(name, env):
                failed.append(name)
    print(f"{len(names) - len(failed)} of {len(names)} examples ended well", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
