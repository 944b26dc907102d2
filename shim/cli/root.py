"""The `keepwarm` group: its commands, and how an error is reported."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any, Final

import click

from budget.errors import InternalError, KeepwarmError, OutOfMemory
from shim.cli.console.failure import EXIT_INTERRUPTED, exit_code, tell
from shim.cli.console.interrupt_and_memory import ctrl_c_raises, lack_of_memory
from shim.cli.lazy import LazyGroup

COMMANDS: Final = {
    "chat": ("asking.chat:chat", "Ask a model and print its answer as it comes."),
    "run": ("asking.interactive:run", "Talk with a model: it knows what was said before."),
    "embed": ("asking.embed:embed", "Turn texts into vectors."),
    "call": ("asking.calling:call", "Call a Python model and print its result as JSON."),
    "rerank": (
        "asking.verb_commands:rerank",
        "Order documents by their relevance for a query, the most relevant first.",
    ),
    "transcribe": ("asking.verb_commands:transcribe", "Print what is said in an audio file."),
    "speak": ("asking.verb_commands:speak", "Speak a text into a WAV file."),
    "tokenize": ("asking.verb_commands:tokenize", "Print the ids of a text's tokens."),
    "ps": ("ps.command:ps", "Show what is resident, leased, pinned and waiting."),
    "list": (
        "about.listing:list_models",
        "List the models: what they are, and whether they are loaded.",
    ),
    "show": (
        "about.showing:show_model",
        "Show the facts of a model: its file, its settings, and its engine.",
    ),
    "logs": (
        "about.logs:logs",
        "Print the end of the log of a model's engine; without MODEL, of the keeper's log.",
    ),
    "top": ("ps.top:top", "Show live what the keeper holds and does."),
    "plan": ("plan.command:plan", "Show what would be resident, on which device, and why."),
    "inspect": ("inspect.command:inspect", "Show what a GGUF file takes before it is loaded."),
    "build": (
        "build:build",
        "Measure this machine and the models once, and write the plan that later starts use.",
    ),
    "recommend": (
        "recommend:recommend",
        "Say how each model would run here: whole, split or on the CPU, and how fast.",
    ),
    "load": ("models:load", "Make a model resident without a request."),
    "unload": ("models:unload", "Unload a model as soon as its last lease ends."),
    "stop": (
        "models:stop",
        "Unload a model now; one that is in use, when the last request that uses it ends.",
    ),
    "pin": ("models:pin", "Make a model resident and keep it until `unpin`."),
    "unpin": ("models:unpin", "Let a pinned model be evicted again."),
    "release": ("models:release", "Tell the keeper that a model may be evicted first."),
    "forget": (
        "inspect.forget:forget",
        "Forget the bytes that earlier loads of a model were found to take.",
    ),
    "keeper": ("keeper:keeper_group", "Start, stop and watch the background keeper."),
    "kv": ("kv:kv_group", "Show and delete the KV state that is kept on disk."),
    "config": ("config.command:config_group", "Check, show, reload and trust the configuration."),
    "trace": ("trace.command:trace_group", "List, open, explain and compare the traces of runs."),
    "simulate": (
        "simulate.command:simulate",
        "Replay a trace of requests under several eviction policies.",
    ),
    "doctor": (
        "doctor.command:doctor",
        "Check what keepwarm needs of this machine, and say what to do.",
    ),
    "completion": (
        "completion:completion",
        "Print the script by which a shell completes commands, options and names of models.",
    ),
    "version": ("about.version:version", "Print the versions of keepwarm and llama.cpp."),
}
ELSEWHERE: Final = {
    "ask": "chat",
    "create": "config show",
    "generate": "chat",
    "help": "--help",
    "info": "show",
    "kill": "stop",
    "log": "logs",
    "ls": "list",
    "models": "list",
    "pull": "load",
    "restart": "keeper stop",
    "rm": "stop or kv clear (keepwarm deletes no model files)",
    "serve": "keeper start",
    "start": "keeper start",
    "status": "ps or keeper status",
}
"""Names that other programs use, and the commands that serve here."""


class Root(LazyGroup):
    """Reports every error once, in one shape; the exit code says whose fault the error is."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            with ctrl_c_raises():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        except KeepwarmError as error:
            tell(ctx, error)
            ctx.exit(exit_code(error))
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            said = lack_of_memory(error)
            if said is None:
                traceback.print_exc(file=sys.stderr)
            name = type(error).__name__
            told = OutOfMemory(said) if said else InternalError(f"{name}: {error}")
            tell(ctx, told)
            ctx.exit(exit_code(told))


@click.group(
    "keepwarm",
    cls=Root,
    lazy=COMMANDS,
    elsewhere=ELSEWHERE,
    plugin_lines={"demo": "Run four small models under a budget for half of them."},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done; 1 a bug of keepwarm; 2 the caller's mistake; 3 too much to do now, try "
    "later; 4 an engine, an endpoint, a file or the keeper failed, or stdout cannot be written; "
    "130 interrupted; 141 the reader of stdout ended.",
)
@click.version_option(package_name="keepwarm", message="keepwarm %(version)s")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=None,
    help="The configuration file. Default: $KEEPWARM_CONFIG, ./keepwarm.toml, or the user's file.",
)
def main(config: Path | None) -> None:
    """One byte budget over every model on this machine.

    The file keepwarm.toml names the models. A background keeper holds them warm between commands.
    """
