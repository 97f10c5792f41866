"""`glmttsctl ping` and `info`, about the daemon, and `completion`, about glmttsctl itself."""

from __future__ import annotations

import time
from typing import Any

import click
from click.shell_completion import get_completion_class

from .session import QUICK_TIMEOUT_S, session, shared_options, timeout_option
from .ui.humanize import duration
from .ui.output import plain, print_pairs

#: Some engines have a hundred voices.
_VOICES_SHOWN = 10


@click.command()
@timeout_option()
@shared_options
def ping(timeout: float | None) -> None:
    """Is the daemon there?"""
    run = session()
    with run.client(timeout or QUICK_TIMEOUT_S) as client:
        began = time.perf_counter()
        answer = client.ping()
        took_ms = (time.perf_counter() - began) * 1_000
        endpoint = client.endpoint
    words = f"glmttsd {answer.version} at {endpoint}, up for {duration(answer.uptime_s)}, answered in {took_ms:.1f} ms"
    facts = {**plain(answer), "endpoint": endpoint, "round_trip_ms": round(took_ms, 3)}
    run.show(facts, lambda _: words)


@click.command()
@shared_options
def info() -> None:
    """The daemon's engine, voices, limits and options."""
    run = session()
    with run.client() as client:
        answer = plain(client.info())
    run.show(answer, _print_info)


def _print_info(answer: dict[str, Any]) -> None:
    options = answer.pop("options", None) or {}
    voices = [voice.get("name", "?") for voice in answer.get("voices", [])]
    more = len(voices) - _VOICES_SHOWN
    answer["voices"] = [*voices[:_VOICES_SHOWN], *([f"and {more} more: glmttsctl voices"] if more > 0 else [])]
    print_pairs(answer)
    if described := _options(options):
        click.echo("options (--option KEY=VALUE)")
        print_pairs(described, indent="  ")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash:  glmttsctl completion bash > ~/.local/share/bash-completion/completions/glmttsctl
    zsh:   glmttsctl completion zsh > "${fpath[1]}/_glmttsctl"
    fish:  glmttsctl completion fish > ~/.config/fish/completions/glmttsctl.fish
    """
    script = get_completion_class(shell)
    assert script is not None
    root = click.get_current_context().find_root().command
    click.echo(script(root, {}, "glmttsctl", "_GLMTTSCTL_COMPLETE").source())


def _options(schema: dict[str, Any]) -> dict[str, str]:
    """Each option of the engine in a line, from their JSON Schema."""
    properties = _resolved(schema, schema).get("properties") or {}
    return {name: _in_words(_resolved(item, schema)) for name, item in properties.items()}


def _resolved(item: Any, schema: dict[str, Any]) -> dict[str, Any]:
    """``item``, or the definition in the schema that its ``$ref`` names."""
    if not isinstance(item, dict):
        return {}
    reference = item.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/$defs/"):
        found = (schema.get("$defs") or {}).get(reference.removeprefix("#/$defs/"))
        return found if isinstance(found, dict) else {}
    return item


def _in_words(item: dict[str, Any]) -> str:
    choices = item.get("enum") or [choice.get("type", "any") for choice in item.get("anyOf") or []]
    words = " | ".join(map(str, choices)) if choices else str(item.get("type", "any"))
    bounds = [
        f"{sign} {item[key]}"
        for key, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
        if key in item
    ]
    if bounds:
        words += " " + " and ".join(bounds)
    if item.get("default") is not None:
        words += f", default {item['default']}"
    if item.get("description"):
        words += f": {item['description']}"
    return words
