"""How a command says that it failed."""

from __future__ import annotations

import click


class CliError(click.ClickException):
    """The message names the thing at fault and the remedy; the command ends with exit code 1."""

    def show(self, file: object = None) -> None:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {self.message}", err=True)
