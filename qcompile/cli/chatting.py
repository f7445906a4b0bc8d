"""The commands of language models: chat, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qcompile.cli.console import Debug, Json, Threads, failures, print_json
from qcompile.errors import InputError

if TYPE_CHECKING:
    from qcompile.chat import Answer, Chat, Message

NO_TEMPLATE = "The model has no template of conversations: it goes on with the text, and need not answer."


def chat(
    folder: Annotated[Path, typer.Argument(help="What compile wrote of a language model with its tokenizer.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this, and end.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 512,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Talk to a language model. An empty line or the end of the input ends the conversation; Ctrl-C ends an answer."""
    with failures(as_json=False, debug=debug):
        from qcompile.artifact import load
        from qcompile.chat import Message

        talk = load(folder).open_chat(threads=threads)
        if not talk.has_template:
            Console(stderr=True).print(NO_TEMPLATE, style="yellow")
        said = [Message("system", system)] if system else []
        if prompt is not None and not prompt.strip():
            raise InputError("--prompt", "it is blank", "Say something")
        if prompt is not None:
            _say(talk, [*said, Message("user", prompt)], max_new_tokens)
            return
        while question := _question():
            said.append(Message("user", question))
            said.append(Message("assistant", _say(talk, said, max_new_tokens).text))


def export(
    model: Annotated[Path, typer.Argument(help="A Hugging Face folder with its tokenizer, or a GGUF file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .gguf file to write; replaced where it is.")],
    kind: Annotated[str, typer.Option("--type", "-t", help="Of the matrices: F16, Q8_0 or Q4_0.")] = "Q8_0",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a language model with its tokenizer as a GGUF file, for llama.cpp and what is built on it."""
    with failures(as_json, debug):
        from qcompile.artifact_gguf_export import export_gguf
        from qcompile.report.text import human_bytes

        path = export_gguf(model, output, kind=kind.upper())
        size = path.stat().st_size
        print_json({"path": str(path), "bytes": size}) if as_json else typer.echo(f"{path}, {human_bytes(size)}")


def _question() -> str:
    """Return the next line of the user, empty at the end; it asks on a terminal only."""
    if sys.stdin.isatty():
        Console(stderr=True).print("> ", end="", style="bold")
    return sys.stdin.buffer.readline().decode(sys.stdin.encoding, "replace").strip()  # some bytes are no text


def _say(talk: Chat, messages: list[Message], max_new_tokens: int) -> Answer:
    """Print an answer as it comes on the standard output, and its speed on the standard error."""
    stopped = False

    def show(piece: str) -> bool:
        try:
            sys.stdout.write(piece)
            sys.stdout.flush()
        except KeyboardInterrupt:
            nonlocal stopped
            stopped = True
        return not stopped

    answer = talk.answer(messages, max_new_tokens=max_new_tokens, show=show)
    sys.stdout.write("\n")
    sys.stdout.flush()
    Console(stderr=True).print(speed(answer), style="dim", highlight=False)
    return answer


def speed(answer: Answer) -> str:
    """Return how fast an answer came, in one line."""
    first = f"first token of {answer.prompt_tokens} after {answer.first_token_s:.2f} s"
    return f"{first}, then {answer.tokens_per_s:.0f} tokens/s ({answer.new_tokens} tokens)"
