"""`glmttsctl voices` and `voice add|remove`: the registered voices."""

from __future__ import annotations

from pathlib import Path

import click

from .session import session, shared_options
from .ui.output import plain


@click.command()
@shared_options
def voices() -> None:
    """The voices for `say --voice`."""
    from .ui.table import print_table

    run = session()
    with run.client() as client:
        found = plain(client.voices())
    columns = ("name", "language", "description")
    run.show({"voices": found}, lambda answer: print_table(answer["voices"], columns, none="No voices."))


@click.group()
def voice() -> None:
    """Add and remove voices (for operators)."""


@voice.command()
@click.argument("name")
@click.argument("recording", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--text", required=True, help="What is said in the recording.")
@click.option("--language", help="Such as zh or en.")
@click.option("--description", help="For people who choose a voice.")
@click.option("--replace", is_flag=True, help="Replace a voice of this name.")
@shared_options
def add(*, name: str, recording: Path, text: str, language: str | None, description: str | None, replace: bool) -> None:
    """Register RECORDING (WAV, FLAC, OGG or MP3, 1 to 30 s) as the voice NAME."""
    run = session()
    keys = {"name": name, "text": text, "language": language, "description": description, "replace": replace or None}
    answer = run.ask("voice_add", timeout=60.0, body=recording.read_bytes(), **keys)
    words = f"Added the voice {name}: `glmttsctl say TEXT --voice {name} -o FILE` speaks with it."
    if warning := answer.get("warning"):
        words = f'Added the voice {name}, but {warning}. [engine] name = "glmtts" is the one that does.'
    run.show(answer, lambda _: words)


@voice.command()
@click.argument("name")
@shared_options
def remove(name: str) -> None:
    """Remove the voice NAME."""
    run = session()
    run.show(run.ask("voice_remove", name=name), lambda _: f"Removed the voice {name}.")
