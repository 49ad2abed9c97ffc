"""Sides of a comparison, each a process of its own that works when told to, one after the other."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import click


def in_turns(
    commands: Mapping[str, Sequence[str]], envs: Mapping[str, Mapping[str, str]], rounds: int
) -> dict[str, list[Any]]:
    """Every side's answers, `rounds` of them after one that does not count.

    Args:
        commands: {side: command}. It reads a line, works, and answers with a line of JSON, until it is stopped.
        envs: {side: its environment}, of those that have one of their own.
        rounds: answers of each side.
    """
    pipe = subprocess.PIPE
    running = {
        side: subprocess.Popen(list(command), stdin=pipe, stdout=pipe, text=True, env=envs.get(side))
        for side, command in commands.items()
    }
    found: dict[str, list[Any]] = {side: [] for side in commands}
    try:
        for turn in range(rounds + 1):
            for side, process in running.items():
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                if not answer:
                    raise click.ClickException(f"the side '{side}' ended; its message is above")
                if turn:
                    found[side].append(json.loads(answer))
    finally:
        for process in running.values():
            process.terminate()
            process.wait()
    return found
