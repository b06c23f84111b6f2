"""The command `serve`: give a client on another machine access to a store."""

from __future__ import annotations

import click

from castore.cli.options import LocalPath


@click.command(epilog="Example: castore serve --stdio --append-only /srv/castore")
@click.option("--stdio", is_flag=True, required=True, help="Answer on standard input and output.")
@click.option("--append-only", is_flag=True, help="Only add and read: refuse to delete.")
@click.option("--create", is_flag=True, help="Create the directory if there is none.")
@click.argument("path", type=LocalPath())
def serve(stdio: bool, append_only: bool, create: bool, path: str) -> None:
    """Answer the requests of a castore that uses the store at PATH by an ssh:// URL.

    That castore starts this command through ssh. It encrypts and decrypts; this side needs no key. 'castore
    help remote' has the line for ~/.ssh/authorized_keys that allows a key this command only.
    """
    import os
    import sys

    from castore.errors import StorageError, UnreachableError, UsageError
    from castore.state.directories import absolute
    from castore.storage import LocalStorage
    from castore.storage.serve import Server
    from castore.storage.wire import Frames

    del stdio
    if sys.stdin.isatty() or sys.stdout.isatty():
        raise UsageError("'castore serve --stdio' is started by a castore on another machine, through ssh")
    # What is printed by accident must not end up between the answers.
    directory = absolute(path)
    with os.fdopen(os.dup(1), "wb") as answers, os.fdopen(os.dup(0), "rb") as requests:
        os.dup2(2, 1)
        server = Server(
            lambda: LocalStorage(directory, create=create), Frames(requests, answers), append_only=append_only
        )
        try:
            server.run()
        except UnreachableError as error:
            raise StorageError(f"the client went away in the middle of a request: {error}") from None
