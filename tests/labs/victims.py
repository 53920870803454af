"""Processes of a Ray cluster, found by what Ray calls them, and ended by SIGKILL."""

import os
import random
import signal
from pathlib import Path
from typing import Any


def processes(cluster: Any) -> list[int]:
    """What a cluster's nodes have started, in any order; other clusters of this machine are let alone."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()]
    pids = [pid for raylet in raylets for pid in descendants(raylet)]
    random.shuffle(pids)
    return pids


def title_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def strike(pid: int, title: str) -> bool:
    """SIGKILL a process of a title; it is stopped first, so that it is what it was when the signal comes."""
    if not title_of(pid).startswith(title):
        return False
    try:
        os.kill(pid, signal.SIGSTOP)
        if not title_of(pid).startswith(title):
            os.kill(pid, signal.SIGCONT)
            return False
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def kill_node(node: Any) -> bool:
    """`end_node`, if something on it is labelling."""
    raylet = node.all_processes["raylet"][0].process.pid
    if not any(title_of(pid).startswith("ray::Map") for pid in descendants(raylet)):
        return False
    end_node(node)
    return True


def end_node(node: Any) -> None:
    """SIGKILL a raylet and everything it started; the raylet first."""
    raylet = node.all_processes["raylet"][0].process.pid
    below = descendants(raylet)
    for pid in [raylet, *below, *descendants(raylet)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def descendants(parent: int) -> list[int]:
    """Everything that a process started, and what that started."""
    try:
        text = " ".join(one.read_text() for one in Path(f"/proc/{parent}/task").glob("*/children"))
    except (FileNotFoundError, ProcessLookupError):
        return []
    below = [int(pid) for pid in text.split()]
    return [*below, *(pid for child in below for pid in descendants(child))]
