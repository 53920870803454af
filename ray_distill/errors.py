"""Every error a user can meet, in one tree.

    DistillError
    ├── ConfigError          the configuration, or two configurations that must agree
    ├── StorageError         a file system refused, lied, or is full
    │   ├── AlreadyExists    an exclusive create lost its race
    │   ├── InUse            another command is at work in a folder
    │   └── DamagedFile      the content of a file is not what was written
    ├── SnapshotError        the input cannot be frozen
    ├── LabelError           labels cannot be made, or must not be used
    │   ├── CorruptStore     bytes differ from what the log promised
    │   ├── StoreMismatch    a store made for another teacher, signal or data
    │   └── TeacherRefused   the teacher is below its floor, or cannot give the signal
    ├── ModelError           a model cannot be loaded, built or saved
    ├── TrainingError        a run cannot start, or cannot go on
    ├── EvaluationError      a measurement cannot be made
    ├── PromotionError       the decision chain or the registry refuses
    │   └── RegistryRefused  the registry refuses for good: trying again changes nothing
    ├── ClusterError         Ray, or a job on it, failed
    └── OutputError          stdout cannot be written

A message names the thing, what was found, what was expected, and what to do next. Commands print it on
one line without a traceback; anything outside this tree is a defect of ours and keeps its traceback.
"""


class DistillError(Exception):
    """Base of every error that is meant for the user."""


class ConfigError(DistillError):
    """The configuration is wrong, or disagrees with what it points at."""


class StorageError(DistillError):
    """A file system operation failed."""


class AlreadyExists(StorageError):
    """An exclusive create found the name taken: somebody else won the race."""


class InUse(StorageError):
    """Another command is at work in a folder; the same command works once that has ended."""


class DamagedFile(StorageError):
    """The content of a file is not what was written."""


class SnapshotError(DistillError):
    """The source cannot be frozen into a snapshot, or a snapshot is damaged."""


class LabelError(DistillError):
    """Labels cannot be made, read or trusted."""


class CorruptStore(LabelError):
    """Bytes in a label store differ from what its log promised."""


class StoreMismatch(LabelError):
    """A label store was made for other settings, data or another teacher."""


class TeacherRefused(LabelError):
    """The teacher is below the configured floor, or cannot give the configured signal."""


class ModelError(DistillError):
    """A model cannot be loaded, built, converted or saved."""


class ChangedModel(ModelError):
    """The files of a model are not those that were pinned or trained."""

    def __init__(self, message: str, *, found: str = "") -> None:
        """Keep the digest of the files that are there."""
        super().__init__(message)
        self.found = found


class TrainingError(DistillError):
    """A training run cannot start, or cannot go on."""


class Diverged(TrainingError):
    """A loss of a training run is not finite."""


class EvaluationError(DistillError):
    """A measurement cannot be made."""


class PromotionError(DistillError):
    """The decision chain or the model registry refuses."""


class RegistryRefused(PromotionError):
    """The model registry refuses a name, a model or a permission: the same request fails again."""


class ClusterError(DistillError):
    """Ray, or a job submitted to it, failed."""


class OutputError(DistillError):
    """Stdout cannot be written: its disk is full, for example."""
