"""The command `analyze`: options and output."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any

import click

from castore.cli.options import LocalPath, common, json_option, print_json, split_program
from castore.model.sizes import parse_size

if TYPE_CHECKING:
    from castore.analysis.results import Analysis
    from castore.api.generation import Generation
    from castore.cli.context import CliContext

    _Sizes = click.ParamType[tuple[int, ...]]
    _Size = click.ParamType[int]
    _Price = click.ParamType[float]
else:
    _Sizes = _Size = _Price = click.ParamType

_GB = {"GB": 1.0, "TB": 1e-3, "GIB": 1e9 / (1 << 30), "TIB": 1e9 / (1 << 40)}


class Size(_Size):
    """A size, such as 64K or 4G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the size in bytes."""
        if isinstance(value, int):
            return value
        found = parse_size(value)
        if not found:
            self.fail(f"{value!r}: a size like 4G was expected", param, ctx)
        return found


class SizeList(_Sizes):
    """Sizes, separated by commas: `64K,256K`."""

    name = "sizes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the sizes in bytes."""
        if isinstance(value, tuple):
            return value
        sizes = [parse_size(text) for text in value.split(",")]
        found = tuple(size for size in sizes if size is not None)
        if len(found) < len(sizes):
            self.fail(f"{value!r}: sizes like 64K,256K,1M were expected", param, ctx)
        return found


class Price(_Price):
    """A price of space: `0.006/GB-month`, `5/TB-month`, `0.006`."""

    name = "price"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the price of 10^9 bytes per month."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(
            r"([0-9]{0,9}(?:\.[0-9]{1,9})?)(?:/(GB|TB|GiB|TiB)(?:-month)?)?", value, re.IGNORECASE
        )
        if found is None or not found[1]:
            self.fail(f"{value!r}: a price like 0.006/GB-month was expected", param, ctx)
        return float(found[1]) * _GB[(found[2] or "GB").upper()]


@click.command(
    epilog="Example: castore analyze /srv/wiki --price 0.006/GB-month   (see also 'castore help analyze')"
)
@click.argument("paths", metavar="[PATH | SERVICE@A..B]...", nargs=-1, type=LocalPath())
@click.option(
    "--exec", "program", metavar="'ARGV'", help="Run a program once, without a shell, and analyze its output."
)
@click.option(
    "--nights",
    is_flag=True,
    help="Each PATH is the state of the same data in one night, the oldest first: show the growth.",
)
@click.option(
    "--sample", is_flag=True, help="Read a random part of the data, and estimate with an error bound."
)
@click.option(
    "--sample-size", metavar="SIZE", type=Size(), help="How much --sample reads, such as 4G. Default: 1G."
)
@click.option(
    "--average",
    "averages",
    metavar="SIZES",
    type=SizeList(),
    help="Mean lengths of chunks to try, such as 64K,256K. Default: 8K to 1M.",
)
@click.option("--no-peers", is_flag=True, help="Do not simulate the chunking of other programs.")
@click.option("--no-levels", is_flag=True, help="Do not estimate other levels of zstd.")
@click.option("--price", metavar="PRICE", type=Price(), help="The price of space, such as 0.006/GB-month.")
@click.option(
    "--html", metavar="FILE", type=LocalPath(), help="Also write a page with interactive plots to FILE."
)
@json_option
@common
def analyze(
    context: CliContext,
    paths: tuple[str, ...],
    program: str | None,
    nights: bool,
    sample: bool,
    sample_size: int | None,
    averages: tuple[int, ...] | None,
    no_peers: bool,
    no_levels: bool,
    price: float | None,
    html: str | None,
    as_json: bool,
) -> None:
    """Show what data would take in a store with different settings. Nothing is stored.

    The data, files and directories or the output of a program, goes through the real pipeline once per
    setting: chunks of 8 KiB to 1 MiB on average, with and without deltas. The packs are counted and
    discarded. At the end a setting is recommended. Temporary files are in TMPDIR.

    SERVICE@A..B are the generations of a service from A to B, each as one night. This needs the identity.
    """
    from castore.analysis.page import check_library, page_of
    from castore.analysis.sampling import DEFAULT_SAMPLE
    from castore.analysis.settings import AVERAGES
    from castore.api.analysis import analyze as run
    from castore.cli.analysis_table import show_analysis
    from castore.cli.progress import show_progress

    if not paths and not program:
        raise click.UsageError("name a PATH, or a program with --exec", click.get_current_context())
    if html is not None:
        check_library()
        _check_folder(html)
    with contextlib.ExitStack() as stack:
        data = _generations(context, stack, paths[0]) if _is_range(paths) else paths
        progress = stack.enter_context(show_progress())
        found = run(
            *data,
            program=split_program("--exec", program) if program else (),
            nights=nights,
            sample=(sample_size or DEFAULT_SAMPLE) if sample or sample_size else 0,
            average_chunk_sizes=averages or AVERAGES,
            levels=not no_levels,
            peers=not no_peers,
            price=price,
            leave_out=[context.store_address(), *context.excluded_paths()],
            progress=progress,
        )
    if as_json:
        print_json(_plain(found))
    else:
        show_analysis(found)
    if html is not None:
        _write_page(html, page_of(found, program or " ".join(paths)))
    _report_unread(found)


def _is_range(paths: tuple[str, ...]) -> bool:
    """Return whether SERVICE@A..B, or SERVICE@A, is given instead of paths."""
    return len(paths) == 1 and "@" in paths[0] and not os.path.lexists(paths[0])


def _generations(context: CliContext, stack: contextlib.ExitStack, what: str) -> list[Generation]:
    """Open the store, and return the generations of SERVICE@A..B, the oldest first."""
    from castore.errors import UsageError
    from castore.services.selectors import split

    name, selectors = split(what)
    first, dots, last = selectors.partition("..")
    if dots and not (first and last):
        raise UsageError(f"{what!r}: write SERVICE@A..B, such as {name}@1..latest")
    store = stack.enter_context(context.open_store())
    service = store.service(name)
    low = service.generation(first)
    high = service.generation(last) if dots else low
    if low.number > high.number:
        raise UsageError(f"{what}: the range ends before it begins; write {name}@{last}..{first}")
    within = [
        generation for generation in service.generations() if low.number <= generation.number <= high.number
    ]
    return sorted(within, key=lambda generation: generation.number)


def _check_folder(path: str) -> None:
    """Raise UsageError before the analysis if its page could not be written."""
    from castore.errors import UsageError

    folder = os.path.dirname(path) or "."
    if os.path.isdir(path) or not os.path.isdir(folder):
        raise UsageError(f"--html: cannot write {path}: name a file in an existing directory")


def _write_page(path: str, page: str) -> None:
    """Write the page, or replace the file. Raises UsageError."""
    from castore.errors import UsageError

    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        raise UsageError(f"--html: cannot write {path}: {error.strerror}") from None


def _plain(found: Analysis) -> dict[str, Any]:
    """Return the results as JSON has them."""
    import msgspec

    from castore.cli import formatting

    warnings = [
        {"part": part, "path": formatting.printable(path), "reason": reason}
        for part, path, reason in found.warnings
    ]
    plain: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(found, warnings=[]))
    return {**plain, "warnings": warnings}


def _report_unread(found: Analysis) -> None:
    """Print the files that could not be read. Raises IncompleteError if there are any."""
    from castore.cli import formatting
    from castore.cli.messages import report_first
    from castore.errors import IncompleteError

    if found.warnings:
        report_first([f"{formatting.printable(path)}: {reason}" for _, path, reason in found.warnings])
        files = formatting.count(len(found.warnings), "file is", "files are")
        raise IncompleteError(
            f"{files} missing in the figures, or inconsistent: run it as a user who may read them"
        )
