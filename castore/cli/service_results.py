"""Results of a command on several services: the failure of one does not stop the others."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from castore.cli.document import error_fields
from castore.cli.messages import report
from castore.errors import CastoreError, IncompleteError, RevertInterruptedError, SeveralError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class ServiceResults:
    """Collects the result of each service, and raises one error for all failures at the end.

    collect_errors: False if one service was named alone: its error is raised unchanged. kind: what
    `services` names.
    """

    def __init__(self, services: Sequence[str], *, collect_errors: bool, kind: str = "services") -> None:
        self.entries: list[dict[str, Any]] = []
        """For JSON: one entry per service that succeeded or failed."""
        self.failed: dict[str, CastoreError] = {}
        self._count = len(services)
        self._kind = kind
        self.collect_errors = collect_errors

    @contextlib.contextmanager
    def service(self, name: str) -> Iterator[None]:
        """Run the block for one service; collect and report its error."""
        try:
            yield
        except RevertInterruptedError:
            raise
        except (CastoreError, OSError) as raised:
            if not self.collect_errors:
                raise
            error = raised if isinstance(raised, CastoreError) else CastoreError(str(raised))
            self.failed[name] = error
            entry = next((result for result in self.entries if result["service"] == name), None)
            if entry is None:
                entry = {"service": name}
                self.entries.append(entry)
            entry["error"] = error_fields(error, error.exit_code, str(error))
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                report(f"{name}: {error}")

    def finish(self) -> None:
        """Raise SeveralError if a service failed, with the exit code of the worst failure.

        A failure is worse than an incomplete generation; among failures, the highest exit code is used.
        """
        if not self.failed:
            return
        incomplete = [name for name, error in self.failed.items() if isinstance(error, IncompleteError)]
        lost = [name for name in self.failed if name not in incomplete]
        kinds = (("failed", lost), ("incomplete", incomplete))
        said = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds if names)
        error = SeveralError(f"of {self._count} {self._kind} {said}")
        codes = [self.failed[name].exit_code for name in lost or incomplete]
        error.exit_code = max(codes)
        raise error
