"""`keepwarm run`: a conversation with a model at the terminal, or one answer to a pipe."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import click

from budget.errors import InvalidRequest, KeepwarmError
from shim.cli.commands.asking.chat import say_end
from shim.cli.commands.asking.conversation import Conversation
from shim.cli.commands.asking.printed_answer import PrintedAnswer
from shim.cli.commands.asking.slash_commands import NAMES, Leave, obey
from shim.cli.commands.asking.typed_lines import edit_lines, is_piped, is_typed, read_text
from shim.cli.console.at_model import brought, traced
from shim.cli.console.chosen_model import ChosenModel, choose
from shim.cli.console.failure import tell
from shim.cli.console.output import StatusLine
from shim.cli.console.progress import WaitingLine
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import model_argument, read_stdin, sampling_options
from shim.client import Shim


@click.command()
@model_argument
@click.argument("prompt", nargs=-1, metavar="[PROMPT...]")
@click.option("--system", default="", help="A system message before the conversation.")
@sampling_options
@click.pass_context
def run(
    ctx: click.Context, /, model: str, prompt: tuple[str, ...], system: str, **options: Any
) -> None:
    '''Talk with a model: it knows what was said before.

    MODEL is a name of the configuration, or the path of a GGUF file. Ctrl-C stops an answer, Ctrl-D
    or /exit leaves, /help lists the commands, and """ begins and ends a text of several lines. What
    is said is kept in memory only, unless /save writes it.

    With PROMPT, or with a text in a pipe, the command prints one answer and ends.

    Example: keepwarm run ./model.gguf
    '''
    chosen = choose(ctx, model)
    given = {name: value for name, value in options.items() if value is not None}
    question = _question(prompt)
    with ExitStack() as held:
        talk = Talk(ctx, chosen, Conversation(system, given), held)
        if question is not None:
            talk.ask(question)
        else:
            talk.until_over()


def _question(words: tuple[str, ...]) -> str | None:
    """The one prompt of a run that is no conversation: the text of a pipe, and the words after it."""
    if is_typed():
        return " ".join(words) if words else None
    piped = read_stdin().strip() if is_piped() or not words else ""
    question = "\n".join(part for part in (piped, " ".join(words)) if part)
    if not question:
        raise InvalidRequest(
            "The prompt on stdin is empty.", hint='Try: keepwarm run MODEL "a prompt".'
        )
    return question


class Talk:
    """A conversation with a model that may be changed on the way.

    Args:
        ctx: of the command.
        chosen: the model.
        conversation: its beginning.
        held: closes what is open at the end.
    """

    def __init__(
        self, ctx: click.Context, chosen: ChosenModel, conversation: Conversation, held: ExitStack
    ) -> None:
        self.ctx = ctx
        self.conversation = conversation
        self._line = StatusLine()
        self._held = held
        self._open(chosen)

    def _open(self, chosen: ChosenModel) -> None:
        chosen = brought(chosen, self._line, "chat")
        shim = Shim(chosen.config, inline=False)
        self._held.close()
        self.chosen, self._shim = chosen, self._held.enter_context(shim)
        self._held.enter_context(traced(chosen.config, "run"))

    def change_model(self, given: str) -> None:
        """Go on with another model; what was said stays.

        Raises:
            KeepwarmError: there is no such model; the present one stays.
        """
        self._open(choose(self.ctx, given))

    def until_over(self) -> None:
        """Ask what is typed, and obey commands, until the person leaves. Errors end no conversation."""
        edit_lines(NAMES)
        say(f"{self.chosen.model}: /help lists the commands, Ctrl-D leaves.", err=True)
        while True:
            try:
                text = read_text()
                if text.startswith("/"):
                    obey(self, text)
                elif text.strip():
                    self.ask(text)
            except (EOFError, Leave):
                click.echo(err=True)
                return
            except KeyboardInterrupt:
                click.echo("\nCtrl-D or /exit leaves.", err=True)
            except UnicodeDecodeError as error:
                say(f"keepwarm: that line is not {error.encoding}.", err=True)
            except KeepwarmError as error:
                tell(self.ctx, error)

    def ask(self, question: str) -> None:
        """Print the answer to a question, and keep both. What came before Ctrl-C is kept, too."""
        model, line = self.chosen.model, self._line
        messages = self.conversation.asked(question)
        with WaitingLine(line, model, self._shim.config, self._shim.runtime) as waiting:
            ask = partial(self._shim.stream, model, messages, **self.conversation.options)
            answer = PrintedAnswer(ask, waiting, quiet=False)
            try:
                reply = answer.read(stops=not self.chosen.entry.remote)
            except KeyboardInterrupt:
                if not is_typed():
                    raise
                if answer.text:
                    self.conversation.answered(question, answer.text)
                return
        self.conversation.answered(question, reply.content)
        say_end(line, reply)
        if reply.finish_reason == "length" and is_typed():
            click.echo("keepwarm: the answer is cut: max_tokens or the context ended it.", err=True)
