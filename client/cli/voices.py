"""`glmttsctl voices` and `voice add|remove|sample`: the voices for all, and those of the user alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from .session import Session, session, shared_options
from .ui.output import plain

#: A recording waits for its turn to be checked, which takes up to 20 s.
_ADD_TIMEOUT_S = 60.0
_COMPLETION_TIMEOUT_S = 1.0


def voice_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - click gives all three
    """The names of voices for the shell's completion; none where no daemon answers."""
    from glmtts.client import GlmttsError

    try:
        with session().client(_COMPLETION_TIMEOUT_S) as client:
            return [voice.name for voice in client.voices() if voice.name.startswith(incomplete)]
    except (GlmttsError, OSError):
        return []


@click.command()
@shared_options
def voices() -> None:
    """The voices for `say --voice`: those for all, and your own."""
    from .ui.table import print_table

    run = session()
    with run.client() as client:
        found = plain(client.voices())
    columns = ("name", "owner", "language", "description")
    run.show({"voices": found}, lambda answer: print_table(answer["voices"], columns, none="No voices."))


@click.group()
def voice() -> None:
    """Add, remove and hear voices.

    Voices for all are for operators: root and the daemon's user. Everybody else has voices of their own, as many as
    the daemon permits, which no other user sees; so do operators with --own.
    """


_whose = click.option(
    "--own/--shared",
    "own",
    default=None,
    help="A voice of yours alone, or one for all. By default one for all where you are an operator.",
)


@voice.command()
@click.argument("name")
@click.argument("recording", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--text", required=True, help="What is said in the recording.")
@click.option("--language", help="Such as zh or en.")
@click.option("--description", help="For people who choose a voice.")
@click.option("--replace", is_flag=True, help="Replace a voice of this name.")
@_whose
@click.option("--consent", is_flag=True, help="The person who is heard agrees; a voice of your own needs this.")
@shared_options
def add(
    *,
    name: str,
    recording: Path,
    text: str,
    language: str | None,
    description: str | None,
    replace: bool,
    own: bool | None,
    consent: bool,
) -> None:
    """Keep RECORDING (WAV, FLAC, OGG or MP3, 1 to 30 s) as the voice NAME."""
    from glmtts.client.connection import read_recording

    run = session()
    if own or (own is None and not _is_operator(run)):
        if not consent:
            raise click.UsageError(
                "A voice of your own needs --consent, by which you say that the person who is heard agrees to it."
            )
        with run.client(_ADD_TIMEOUT_S) as client:
            added = client.add_voice(
                name,
                recording,
                text=text,
                language=language or "",
                description=description or "",
                consent=True,
                replace=replace,
            )
        answer: dict[str, Any] = {**plain(added), "owner": "own"}
        if not answer["warning"]:
            del answer["warning"]
        whose = f"Added the voice {name}, which you alone have"
    else:
        keys = {"name": name, "text": text, "language": language, "description": description}
        body = read_recording(recording)
        answer = run.ask("voice_add", timeout=_ADD_TIMEOUT_S, body=body, replace=replace or None, **keys)
        whose = f"Added the voice {name}"
    words = f"{whose}: `glmttsctl say TEXT --voice {name} -o FILE` speaks with it."
    if warning := answer.get("warning"):
        words = f'{whose}, but {warning}. [engine] name = "glmtts" is the one that does.'
    run.show(answer, lambda _: words)


@voice.command()
@click.argument("name", shell_complete=voice_names)
@_whose
@click.option("--client", help="For operators: a voice of this client's own, as `glmttsctl limits` shows it.")
@shared_options
def remove(name: str, own: bool | None, client: str | None) -> None:
    """Remove the voice NAME. Jobs that wait to speak with it fail."""
    run = session()
    if own and client:
        raise click.UsageError("--own and --client exclude each other.")
    if not client and (own or (own is None and not _is_operator(run))):
        with run.client() as connection:
            connection.remove_voice(name)
        answer = {"name": name, "removed": True}
    else:
        answer = run.ask("voice_remove", name=name, client=client)
    run.show(answer, lambda _: f"Removed the voice {name}.")


@voice.command()
@click.argument("name", shell_complete=voice_names)
@click.option("-o", "file", required=True, metavar="FILE", help="Write the recording to FILE; `-` is standard output.")
@shared_options
def sample(name: str, file: str) -> None:
    """Write the recording of the voice NAME to a file."""
    run = session()
    with run.client() as client:
        found = client.voice_sample(name)
    if file == "-":
        sys.stdout.buffer.write(found.audio)
        sys.stdout.buffer.flush()
        return
    path = found.save(file)
    facts = {key: value for key, value in plain(found).items() if key != "audio"} | {"file": str(path)}
    run.show(facts, lambda _: f"{path}: {found.seconds:.1f} s of {found.format}, in which is said: {found.text}")


def _is_operator(run: Session) -> bool:
    """Whether the user may use the control socket, as far as that can be seen without a daemon."""
    from glmtts.protocol.endpoints import CONTROL, requests_endpoint, sibling_endpoint

    try:
        endpoint = sibling_endpoint(run.endpoint or requests_endpoint(), CONTROL)
    except ValueError:
        return False  # operators are on the daemon's machine
    path = endpoint.removeprefix("ipc://")
    return not os.path.lexists(path) or os.access(path, os.W_OK)
