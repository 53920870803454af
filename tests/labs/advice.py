"""List what messages of the package advise, and the test that does it.

`advice_of` finds every text of the package with a word of `ADVICE` in it. Each has one line below: under the test that
produces such a message and follows it to the letter, or, with the reason, where there is nothing to follow.
``tests/unit/test_advice.py`` fails for a text without a line, a line without a text, and a test that does not exist.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "ray_distill"
#: What makes a text an advice: a command, an option, or something to be done with a file.
ADVICE = re.compile(
    r"`ray-distill |\bray-distill [a-z]+ |(?<![\w-])--[a-z]|\brun it\b|same command|\bwait until\b"
    r"|\b(delete|restore|remove|move|rerun|again|anew|upgrade|unset|install|pip)\b"
    r"|\b(label|train|evaluate|run|take|fit)\b[^.;:]* first\b|\btake (one|a snapshot)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Text:
    """A text of the package: a string, or an f-string with ``{}`` for its values."""

    module: str
    """Path below the package."""
    line: int
    text: str


def texts() -> Iterator[Text]:
    """Yield every text of the package with several words, except docstrings."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        for line, text in _literals(ast.parse(path.read_text(encoding="utf-8"))):
            if re.search(r"\S\s+\S", text):
                yield Text(module, line, text)


def advice_of() -> Iterator[Text]:
    """Yield every text that advises something."""
    yield from (text for text in texts() if ADVICE.search(text.text))


def _literals(tree: ast.Module) -> Iterator[tuple[int, str]]:
    left_out = set[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            left_out.update(id(part) for part in node.values)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            left_out.add(id(node.value))
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values),
            )


_UNIT = "tests/unit/test_advice.py::"
_PROMOTE = "tests/unit/runtime/stages/test_promote.py::"
_STORES = "tests/property/test_changed_stores.py::test_one_disturbed_file_is_refused_or_harmless"
_ARTIFACTS = "tests/property/test_changed_artifacts.py::test_one_disturbed_file_is_refused_or_harmless"

#: By test or hostile try, the texts that it follows: module, and a part of the text.
FOLLOWED: Mapping[str, tuple[tuple[str, str], ...]] = {
    # Files put back as they were: every artifact, every way of damage; what is read then is what was read before.
    _STORES: (
        ("labels/format/codecs/order.py", "restore the store's fits folder"),
        ("labels/format/fitted_arrays.py", "{}: found {}, the manifest names {}; restore the file"),
        ("labels/format/fitted_arrays.py", "but it is missing; restore it"),
        ("labels/format/parquet_shards.py", "its row ids cannot be read ({}); restore the file"),
        ("labels/format/parquet_shards.py", "not a readable Parquet file ({}); restore it"),
        ("labels/store/label_store.py", "the log promised {}; restore the file"),
        ("labels/store/label_store.py", "store.json or the log is another store's; restore it"),
        ("labels/store/reader.py", "its row ids are not those of the unit; restore the file"),
        ("labels/store/reader.py", "the log has no such file for unit {}; restore the log"),
        ("labels/store/reader.py", "the log promised {}; restore the file"),
        ("labels/store/reader.py", "restore the store's manifest and log, or label again"),
        ("labels/tools/audit.py", "restore the records"),
        ("sequences/attempts.py", "its row ids cannot be read ({}); restore the file"),
        ("sequences/attempts.py", "expected {}; restore the file"),
        ("storage/committed_units.py", "a value of the wrong kind ({}); restore it"),
        ("storage/files.py", "expected JSON, found something else ({}); restore the file"),
        ("storage/log.py", "restore the missing records"),
        ("storage/log.py", "later records but not this one; restore it"),
        ("storage/log.py", "expected a JSON record, found something else ({}); restore it"),
        ("storage/log.py", "expected a JSON object, found {}; restore it"),
        ("storage/log.py", "an earlier command recorded in {}; restore the records"),
        ("storage/receipts.py", "this file, but it is missing; restore it"),
        ("storage/receipts.py", "the log promised {} bytes with {}; restore the file"),
        ("storage/receipts.py", "upgrade, or restore the record"),
        ("storage/unit_store.py", "{}: {}; restore the record"),
        ("storage/unit_store.py", "the manifest is not JSON ({}); restore it"),
        ("storage/unit_store.py", "expected a store's manifest, found something else; restore it"),
        ("storage/unit_store.py", "restore the file, or use the version that wrote it"),
        ("storage/unit_store.py", "it was changed after its creation; restore it"),
        ("storage/unit_store.py", "restore it"),
        ("students/checkpoints/store.py", "restore it, or {}"),
        ("students/checkpoints/store.py", "is damaged: its digest is {}, not {}; restore it, or {}"),
    ),
    _ARTIFACTS: (
        ("models/core/checkpoint_files.py", "restore the files of the folder from a copy, or save or train"),
        ("models/core/checkpoint_files.py", "revision {} is pinned, found {}; restore them"),
        ("models/io/load.py", "if it loaded before, restore its files"),
        ("snapshots/manifest.py", "restore it, or {}"),
    ),
    "tests/unit/students/test_measure_start.py::test_a_damaged_measurement_is_deleted_and_measured_again": (
        ("students/measure_start.py", "delete it, and it is measured again"),
    ),
    "tests/unit/runtime/model_checks/test_choose_student.py::test_a_latency_is_measured_once_and_kept": (
        ("runtime/model_checks/choose_student.py", "delete it, and the student is chosen again"),
    ),
    "advice: the student's weights: flip; evaluate refuses; restored": (
        ("models/core/checkpoint_files.py", "give the folder of one, or restore its files"),
    ),
    "advice: the predictions: flip; promote refuses; restored": (
        ("runtime/stages/evaluate.py", "is not the file of the report {}"),
    ),
    "advice: the predictions: remove; promote refuses; restored": (
        ("runtime/stages/evaluate.py", "{} is missing: restore it, or {}"),
    ),
    "advice: an entry of the chain: flip; promote refuses; restored": (
        ("promotion/chain.py", "the entries before it result in {}: the chain was altered, restore it"),
        ("promotion/chain.py", "those before it now: the chain was altered, restore it"),
    ),
    "advice: the store's log: dropped; audit refuses; restored": (
        ("cli/render_results.py", "restore what is missing or corrupt from a copy"),
        ("labels/tools/audit.py", "restore the log; if no command ever committed a unit, label again"),
    ),
    # Files deleted: the next command makes or does without them, and keeps what was paid for.
    "advice: the result of evaluate is cut; run refuses; deleted": (
        ("runtime/core/session.py", "delete it, and the stage is run again"),
    ),
    "advice: the parent run's id is cut; promote refuses; deleted": (
        ("runtime/core/session.py", "delete it, and a new run is opened in the tracker"),
    ),
    "advice: the cost of an attempt is cut; promote refuses; deleted": (
        ("runtime/core/session.py", "delete it, and the cost of that attempt is not counted"),
    ),
    "advice: the forecast is cut; promote refuses; deleted": (
        ("runtime/forecast/plan_report.py", "delete it, and the forecast is not compared"),
    ),
    "advice: every kept result is cut; run refuses; each named file deleted": (
        ("runtime/stages/kept_results.py", "delete it, and it is made again"),
        ("students/export.py", "delete it to train this arm again"),
    ),
    "advice: a foreign file among the chain's pins; promote refuses; deleted": (
        ("storage/log.py", "not the name of a pin; restore or delete it"),
    ),
    "tests/unit/storage/test_committed_units.py::test_a_damaged_checkpoint_is_one_error_and_may_be_deleted": (
        ("storage/log.py", "delete it, the records contain the same data"),
    ),
    "tests/unit/storage/test_committed_units.py::test_a_text_of_a_checkpoint_that_cannot_be_read_is_one_error": (
        ("storage/committed_units.py", "delete the checkpoint, the records contain the same data"),
    ),
    _UNIT + "test_a_damaged_checkpoint_that_is_deleted_leaves_the_one_before": (
        ("students/checkpoints/store.py", "delete the folder of this checkpoint to resume from the one before"),
    ),
    _UNIT + "test_without_the_folder_of_damaged_checkpoints_training_starts_anew": (
        ("students/checkpoints/store.py", "restore them, or delete that folder to train from the start"),
        ("students/loop/train_loop.py", "{}; or delete {} to train from the start"),
    ),
    _UNIT + "test_without_the_folder_of_another_plan_training_starts_anew": (
        ("students/checkpoints/store.py", "resume with the same value, or delete {} to train from the start"),
    ),
    _UNIT + "test_recorded_steps_that_are_deleted_are_recorded_again": (
        ("runtime/stages/train.py", "delete it, and the curves are recorded again"),
    ),
    _UNIT + "test_files_of_a_trial_that_are_deleted_are_made_again": (
        ("runtime/sweep/trial_worker.py", "delete it, and the trial is judged again"),
        ("runtime/sweep/trial_tracking.py", "delete it, and the trial gets a new run"),
    ),
    _UNIT + "test_a_link_to_nothing_is_removed_or_mended": (("storage/files.py", "remove or mend the link"),),
    _UNIT + "test_a_source_file_that_is_not_whole_is_restored_or_removed": (
        ("snapshots/sources/file_bytes.py", "restore or remove the file"),
        ("snapshots/sources/file_bytes.py", "is not a whole {} file ({}): restore it"),
        ("snapshots/sources/file_bytes.py", "download the file again"),
    ),
    "tests/unit/models/heads/test_fit_head.py::test_a_damaged_head_is_deleted_and_fitted_again": (
        ("models/heads/fit_head.py", "restore its folder from a copy, or delete it and label into a new store"),
    ),
    _UNIT + "test_texts_of_another_generator_are_moved_away": (
        ("sequences/store.py", "restore store.json, or move the folder away"),
    ),
    "tests/unit/cli/test_at_work.py::test_attempts_are_deleted_only_while_nobody_labels": (
        ("storage/locks.py", "wait until it ends, or use another folder"),
    ),
    # Commands run.
    "advice: promote before evaluate": (("cli/resolve_references.py", "run `ray-distill {}` first"),),
    "advice: a report without the digests of its files; promote refuses; evaluated": (
        ("runtime/stages/evaluate.py", "run `ray-distill evaluate`: it judges again"),
    ),
    "advice: the chain altered, no copy; promote refuses; moved away, evaluated": (
        ("promotion/chain.py", "move the folder {} away to begin a chain without a champion"),
    ),
    "advice: a report whose champion is not in the chain; promote refuses; evaluated again": (
        ("runtime/stages/promote.py", "which is not in the decision chain: evaluate again"),
    ),
    "advice: a report beside no champion, though there is one; promote refuses; evaluated again": (
        ("promotion/chain.py", "but the champion is now {}: evaluate again, then promote"),
    ),
    "advice: the student's weights lost; evaluate refuses; folder deleted, trained": (
        ("models/io/trained.py", "or delete the folder and run `ray-distill train` to train it again"),
    ),
    "advice: the snapshot damaged; evaluate refuses; deleted and taken again": (
        ("snapshots/manifest.py", "delete the folder of the snapshot and take it again"),
        ("snapshots/reader.py", "so it is not a snapshot: check the URL, or take one"),
        ("students/data/streaming.py", "delete its folder and take it again, or set student.training.stream"),
        ("students/data/streaming.py", "the snapshot has changed; restore it"),
    ),
    "advice: the store's log lost, no copy; label refuses; labelled into a new store": (
        ("runtime/core/lost_store.py", "Without a copy, set labels.store to a new folder"),
    ),
    "advice: the teacher swapped; label refuses; labelled into a new store": (
        ("labels/model/manifest.py", "labels of this teacher need a new labels.store"),
        ("labels/format/codecs/__init__.py", "label again where the store is older than 0.2, into a new store"),
        ("losses/buckets.py", "for labels that exist, label again into a new store"),
        ("students/loop/nonfinite_report.py", "label again into a new store"),
        ("students/modules/student_module.py", "label again into a new store"),
        ("students/objective/validate_losses.py", "label again into a new store (labels.store) with a larger k"),
        ("tasks/answers/tokens/learn.py", "train with those of the labels, or label again into a new store"),
        ("tasks/answers/tokens/learn.py", "topk or dense, and label again into a new store"),
    ),
    "advice: the store deleted; train refuses; labelled again": (
        ("labels/store/label_store.py", "label a snapshot first"),
        ("labels/tools/export.py", "label a snapshot first"),
    ),
    "advice: the store deleted and filled elsewise; train refuses; labelled again": (
        ("labels/store/reader.py", "restore them, or label again"),
    ),
    "tests/unit/labels/store/test_label_store.py::test_a_label_set_with_a_hole_is_refused": (
        ("labels/store/reader.py", "run label again and use the reference it prints"),
    ),
    "advice: a promoted student trained anew; train refuses; another setting": (
        ("runtime/stages/train.py", "change the seed or another setting instead"),
    ),
    _PROMOTE + "test_a_registry_that_refuses_is_an_error_that_a_rerun_does_not_promise_to_mend": (
        ("runtime/stages/promote.py", "correct what it refuses"),
    ),
    _PROMOTE + "test_a_registry_that_is_down_is_repaired_by_the_same_command": (
        ("runtime/stages/promote.py", "run the command again to repair it"),
    ),
    "the alias moved to a foreign version, then promote --verify, which repairs it": (
        ("runtime/stages/follow_chain.py", "`ray-distill promote --verify` points the alias at it"),
    ),
    "advice: the alias names a version, the chain has no champion; --verify refuses; promoted": (
        ("runtime/stages/follow_chain.py", "`ray-distill promote` points it at one that passes"),
    ),
    "advice: relabel before label; labelled": (
        ("runtime/stages/relabel.py", "run `ray-distill label` (or `run`) first"),
    ),
    "advice: many files that no record names; --clean refuses; --clean --yes": (
        ("cli/render_results.py", "`--clean --yes` deletes them"),
    ),
    "advice: the best trial of a sweep is proposed; run": (
        ("cli/render_results.py", "ray-distill run {}"),
        ("runtime/sweep/publish.py", "ray-distill run {}"),
    ),
    "tests/cluster/test_sweep.py::test_no_finished_trial_is_repeated_and_others_go_on": (
        ("runtime/sweep/run_sweep.py", "the same command tries them again"),
        ("runtime/sweep/scheduler.py", "run the same command again to continue the sweep"),
    ),
    "tests/e2e/test_interruption.py::test_a_run_that_is_stopped_again_and_again_ends_as_one_that_is_not": (
        ("cli/last_resort.py", "the same command goes on from there"),
        ("cli/last_resort.py", "run it again with an output that can be written"),
        ("cli/__init__.py", "stopped: run the same command again to continue"),
        ("students/loop/train_loop.py", "and the same command goes on from there"),
    ),
    "tests/crash/test_training_killed.py::test_what_a_kill_leaves_is_trained_to_the_same_end": (
        ("runtime/training/launch.py", "run again to go on from it"),
    ),
    "tests/crash/test_labels_crash.py::test_a_full_disk_is_one_clear_error_and_the_run_resumes": (
        ("storage/remote.py", "no space left; free some and run again"),
        ("storage/remote.py", "run again if the cause may have passed"),
        ("storage/unit_store.py", "make the unit again"),
        ("runtime/stages/label.py", "run it again, and run `ray-distill audit`"),
    ),
    "tests/e2e/test_teacher_failures.py::test_a_teacher_that_fails_on_everything_is_one_error": (
        ("runtime/labelling/isolate_failures.py", "and run again"),
        ("teachers/vllm_teacher.py", "its engine is out of step; run again"),
    ),
    "tests/e2e/test_writing.py::test_a_command_that_is_killed_midway_writes_the_rest_when_it_is_run_again": (
        ("sequences/store.py", "run `ray-distill write`"),
        ("sequences/generator.py", "Restore its files on every machine, and run the same command again"),
        ("runtime/stages/generate.py", "run it again"),
    ),
    # Names of commands, options, packages and tools in messages.
    _UNIT + "test_commands_and_options_that_messages_name_exist": (
        ("cli/doctor_checks.py", "`ray-distill run CONFIG --dry-run` makes the same checks"),
        ("cli/doctor_checks.py", "use a larger cluster (--address)"),
        ("cli/commands.py", "--sample must be"),
        ("cli/commands.py", "--runtime-env must be a JSON object"),
        ("cli/commands.py", "--runtime-env must be JSON"),
        ("cli/commands.py", "--metadata needs name=value"),
        ("cli/parser.py", "a further argument of the job"),
        ("cli/parser.py", "with --clean"),
        ("cli/parser.py", "--no-resume starts again"),
        ("cli/submit_checks.py", "--set {}"),
        ("cli/submit_checks.py", "--argument {}"),
        ("cli/submit_checks.py", "--metadata {}"),
        ("cli/submit_checks.py", "--runtime-env {}"),
        ("config/campaign.py", "`ray-distill sweep` compares"),
        ("config/load.py", "--set needs name=value"),
        ("config/load.py", "--set {}: {} is not a YAML value"),
        ("config/load.py", "--set {}"),
        ("config/reading/values.py", "or pass it: --set"),
        ("config/student.py", "that `ray-distill label` printed for it"),
        ("models/heads/fit_head.py", "label through `ray-distill label` or `run`"),
        ("runtime/core/connection.py", "run `ray-distill doctor` to find the reason"),
        ("runtime/core/connection.py", "without --address this command starts a Ray of its own"),
        ("runtime/labelling/live_audit.py", "name a snapshot that it was filled from with --snapshot"),
        ("snapshots/sources/columns.py", "--set snapshot.columns.label=null"),
        ("students/engines/deepspeed_engine.py", "`ray-distill doctor` reports what is missing"),
    ),
    _UNIT + "test_packages_that_messages_name_are_those_of_the_project": (
        ("cli/doctor_checks.py", "Install again with the pinned versions"),
        ("cli/doctor_checks.py", "pip install ninja"),
        ("examples/mnist.py", "ray-distill[quickstart]"),
        ("examples/newsgroups.py", "ray-distill[golden]"),
        ("models/core/checkpoint_files.py", "pip install {}"),
        ("models/io/load.py", "pip install accelerate"),
        ("models/io/lora.py", "pip install peft"),
        ("storage/remote.py", "pip install 'ray-distill[{}]'"),
        ("storage/remote.py", "install the package it names"),
        ("tasks/answers/tokens/evaluation/harness.py", "ray-distill[lm-eval]"),
        ("tasks/answers/tokens/evaluation/overlap.py", "ray-distill[seq2seq]"),
        ("tasks/inputs/pair.py", "ray-distill[seq2seq]"),
    ),
    _UNIT + "test_commands_of_other_tools_that_messages_name_exist": (
        ("cli/cluster_address.py", "`ray start --head`"),
        ("cli/doctor_checks.py", "ray get-auth-token --generate"),
        ("cli/doctor_checks.py", "--allowed-hosts"),
        ("cli/submit.py", "ray job logs --follow"),
        ("cli/submit.py", "--address {} {}"),
        ("tracking/views.py", "mlflow ui --port"),
    ),
    "tests/unit/cli/test_submit.py::test_a_variable_that_would_win_over_the_address_is_an_error": (
        ("cli/cluster_address.py", "unset it, or make them equal"),
    ),
}

#: Advice that no test follows, by the reason.
NOT_FOLLOWED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "needs another version of the project": (
        ("labels/model/manifest.py", "upgrade ray-distill"),
        ("snapshots/manifest.py", "upgrade ray-distill"),
    ),
    "needs other data or another model of the user's, of which the project knows nothing": (
        ("models/io/load.py", "correct config.json"),
        ("runtime/model_checks/teacher.py", "save the model again after resize_token_embeddings"),
        ("runtime/core/python_envs.py", "install the same version of tokenizers in both"),
        ("runtime/labelling/teacher_quality.py", "change splits, or remove the limit"),
        ("runtime/stages/snapshot.py", "{} reads {}: take a snapshot for this task"),
        ("runtime/stages/snapshot.py", "{} reads {} a row: take a snapshot for this task"),
        ("snapshots/sources/csv_source.py", "write it again with doubled quotes"),
        ("snapshots/sources/image_source.py", "unset snapshot.columns.{}"),
        ("cli/submit.py", "move data and models elsewhere"),
    ),
    "needs another machine": (
        ("cli/doctor_checks.py", "install g++"),
        ("cli/doctor_checks.py", "--shm-size=4g"),
        ("cli/doctor_checks.py", "Run one labeller at a time on it"),
        ("students/engines/engine.py", "install a CUDA build of torch"),
    ),
    "an internal error: no command leads there": (
        ("promotion/gate.py", "has no model `student`"),
        ("tasks/answers/tokens/evaluation/measures.py", "evaluate again with evaluation.bins"),
    ),
}

#: Texts that report, name or are sent to another program, and advise nothing.
NO_ADVICE: tuple[tuple[str, str], ...] = (
    ("storage/files.py", "delete it"),  # what could not be done
    ("cli/parser.py", "delete files that no record names"),
    ("cli/parser.py", "also label a sample again"),
    ("cli/parser.py", "snapshot.source, read again"),
    ("cli/render_results.py", "rows labelled again"),
    ("config/labels.py", "the first by row id"),
    ("config/student.py", "whose function is called with them again"),
    ("evaluation/measures/drift.py", "did not move"),
    ("evaluation/report/assemble.py", "Compare sizes, not speed, or evaluate again"),
    ("examples/packages.py", "--hash=sha256"),
    ("labels/tools/audit.py", "ray-distill audit --clean"),
    ("models/io/save.py", "could not be loaded again"),
    ("runtime/labelling/live_audit.py", "labelling a sample again"),
    ("runtime/stages/evaluate.py", "so all models are judged again"),
    ("runtime/stages/follow_chain.py", "which was registered again"),
    ("runtime/stages/label.py", "its metrics are used again"),
    ("runtime/stages/relabel.py", "its numbers are used again"),
    ("runtime/training/launch.py", "not begin anew"),
    ("snapshots/sources/layout.py", "unless it has delete files"),
    ("students/export.py", "trained by ray-distill from the stored labels"),
    ("students/export.py", "trained by ray-distill for comparison"),
    ("students/loop/best_result.py", "the run is trained again"),
    ("students/loop/best_result.py", "cannot be used and is trained again"),
    ("tracking/delivery/reports.py", "is tried again, also by the next command"),
    ("tracking/delivery/reports.py", "are written when the server is available again"),
    ("tracking/delivery/reports.py", "is available again: wrote"),
    ("tracking/delivery/spool.py", "DELETE FROM waiting"),
    ("tracking/delivery/spool.py", "DELETE FROM attempts"),
)
