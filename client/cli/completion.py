"""`glmttsctl completion`: the script with which a shell completes our commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .failures import Failure


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash:  glmttsctl completion bash > ~/.local/share/bash-completion/completions/glmttsctl
    zsh:   glmttsctl completion zsh > "${fpath[1]}/_glmttsctl"
    fish:  glmttsctl completion fish > ~/.config/fish/completions/glmttsctl.fish
    """
    found = get_completion_class(shell)
    if found is None:
        raise Failure(f"no completion is known for {shell}")
    root = click.get_current_context().find_root().command
    click.echo(found(root, {}, "glmttsctl", "_GLMTTSCTL_COMPLETE").source())
