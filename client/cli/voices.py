"""`glmttsctl voices` and `voice add|remove`: the voices that can be named."""

from __future__ import annotations

from pathlib import Path

import click

from .session import session, shared_options
from .ui.output import plain, print_json, print_table


@click.command()
@shared_options
def voices() -> None:
    """The voices that `say --voice` knows."""
    run = session()
    with run.client() as client:
        found = plain(client.voices())
    if run.json:
        print_json({"voices": found})
    else:
        print_table(found, ("name", "language", "description"), none="No voices.")


@click.group()
def voice() -> None:
    """Add and remove voices (for operators)."""


@voice.command()
@click.argument("name")
@click.argument("recording", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--text", required=True, help="What is said in the recording.")
@click.option("--language", help="Such as zh or en.")
@click.option("--description", help="For those who choose a voice.")
@click.option("--replace", is_flag=True, help="Take the place of a voice of this name.")
@shared_options
def add(*, name: str, recording: Path, text: str, language: str | None, description: str | None, replace: bool) -> None:
    """Register RECORDING (WAV, FLAC, OGG or MP3, 1 to 30 s) as the voice NAME."""
    run = session()
    with run.control(timeout=60.0) as control:
        answer = control.call(
            "voice_add",
            body=recording.read_bytes(),
            name=name,
            text=text,
            language=language,
            description=description,
            replace=replace or None,
        )
    if run.json:
        print_json(plain(answer))
    elif warning := answer.get("warning"):
        click.echo(f'The voice {name} is there, but {warning}. [engine] name = "glmtts" is the one that does.')
    else:
        click.echo(f"The voice {name} is there: `glmttsctl say TEXT --voice {name} -o FILE` speaks with it.")


@voice.command()
@click.argument("name")
@shared_options
def remove(name: str) -> None:
    """Remove the voice NAME."""
    run = session()
    with run.control() as control:
        answer = control.call("voice_remove", name=name)
    if run.json:
        print_json(plain(answer))
    else:
        click.echo(f"The voice {name} is gone.")
