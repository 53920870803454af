"""Keep the order of a run's records while one of them waits."""

from ray_distill.tracking.operations import CreateRun, LogArtifact, LogModel, Operation


class Blocked:
    """The runs that wait for an operation: their records, or their uploads alone."""

    def __init__(self) -> None:
        self._lanes: set[tuple[str, bool]] = set()

    def has(self, operation: Operation) -> bool:
        """Return whether an operation must wait for an earlier one; block what depends on it."""
        parent = operation.parent if isinstance(operation, CreateRun) else None
        found = _lane(operation) in self._lanes or (parent is not None and (parent, False) in self._lanes)
        if found:
            self.add(operation)
        return found

    def add(self, operation: Operation) -> None:
        """Let later operations of the run wait; a file that waits blocks files alone."""
        self._lanes.add(_lane(operation))
        if isinstance(operation, CreateRun):
            self._lanes.add((operation.run, True))


def is_upload(operation: Operation) -> bool:
    """Return whether an operation stores files."""
    return isinstance(operation, LogArtifact | LogModel)


def _lane(operation: Operation) -> tuple[str, bool]:
    return operation.run, is_upload(operation)
