"""`jetllm completion`: the script that lets a shell complete commands, options and models' names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from inference.console import print_line

_VARIABLE = "_JETLLM_COMPLETE"
_INSTALL = {
    "bash": "jetllm completion bash > ~/.local/share/bash-completion/completions/jetllm",
    "zsh": "jetllm completion zsh > ~/.zfunc/_jetllm; in ~/.zshrc before compinit: fpath+=~/.zfunc",
    "fish": "jetllm completion fish > ~/.config/fish/completions/jetllm.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(_INSTALL)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script with which SHELL completes commands, options and the names of models.

    Its first line says where to put it.

    \b
    Examples:
      jetllm completion bash > ~/.local/share/bash-completion/completions/jetllm
      jetllm completion fish > ~/.config/fish/completions/jetllm.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click has these three
    script = kind(ctx.find_root().command, {}, "jetllm", _VARIABLE).source_template
    names = {"complete_func": "_jetllm_completion", "complete_var": _VARIABLE, "prog_name": "jetllm"}
    head = "#compdef jetllm\n" if shell == "zsh" else ""
    body = (script % names).strip().removeprefix("#compdef jetllm").strip()
    print_line(f"{head}# install: {_INSTALL[shell]}\n\n{body}")
