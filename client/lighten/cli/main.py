"""Entry point of ``lighten``."""

import typer

from lighten.cli import check, files, jobs, options, report, run, server, submit, token
from lighten.cli.errors import EXIT_CODES, LightenGroup

app = typer.Typer(
    name="lighten",
    cls=LightenGroup,
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.callback()(options.access)
app.command()(submit.submit)
app.command(epilog=EXIT_CODES)(run.run)
app.command()(jobs.watch)
app.command()(jobs.get)
app.command("list")(jobs.list_jobs)
app.command()(jobs.wait)
app.command()(jobs.cancel)
app.command()(jobs.delete)
app.command()(report.report)
app.command()(files.artifacts)
app.command()(files.download)
app.command()(files.upload)
app.command(epilog=EXIT_CODES)(check.check)
app.command()(server.capabilities)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)(server.server)
app.add_typer(token.app, name="token")
app.command()(server.version)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
