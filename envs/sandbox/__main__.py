"""Probes this machine: which tiers work, which bounds the kernel holds, and what becomes of scripts that attack it.

    python -m envs.sandbox                a quick look, by some attacks
    python -m envs.sandbox --attack       all attacks, in every tier, from root also as a user without privileges
    python -m envs.sandbox --attack disk  those with this word in their names

The exit code is 0 if some tier works and all that was tried was held in every tier that works.
"""

from __future__ import annotations

import argparse
import sys
from typing import get_args

from envs.sandbox import cgroup
from envs.sandbox.attacks import suite
from envs.sandbox.attacks.surroundings import surroundings
from envs.sandbox.sandbox import LACKS, SandboxUnavailableError, Tier, run_script

# One attack of each kind.
PROBES = (
    "reads files outside",
    "changes files outside",
    "connects to this machine",
    "signals and changes other processes",
    "makes every system call that is refused",
    "asks for more memory than there is",
    "fills the memory of many processes",
    "shares memory and drops its pages",
    "fills the buffers of sockets",
    "starts many processes",
    "uses CPU time in all of its processes",
    "ignores every signal",
    "fills the disk with empty files",
    "fills the disk with files without a name",
    "hands over a link to a secret",
)


def main(arguments: list[str] | None = None) -> int:
    """Prints what holds; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m envs.sandbox", description="Probes what the sandbox holds here.")
    parser.add_argument(
        "--attack", nargs="?", const="", metavar="WORD", help="play all attacks, or those with the word"
    )
    args = parser.parse_args(arguments)
    if args.attack is not None:
        return suite.main([name for name in suite.ATTACKS if args.attack in name])
    group = cgroup.parent()
    print(f"control groups: {f'made under {group}' if group else 'none can be made here, so a guard watches instead'}")
    worked, failures = 0, 0
    with surroundings() as around:
        for tier in get_args(Tier):
            try:
                run = run_script("pass", tier=tier)
            except SandboxUnavailableError as error:
                print(f"\n{tier}: does not work here\n  {error}")
                continue
            worked += 1
            print(f"\n{tier}: works{LACKS[tier]}")
            print("  bounds of the whole run: " + ", ".join(f"{name} {bound}" for name, bound in run.bounds.items()))
            for name in PROBES:
                outcome = suite.play(suite.ATTACKS[name], tier, around)
                failures += not outcome.held
                print(f"  {'held' if outcome.held else 'NOT HELD'}: {name} ({outcome.status}, {outcome.seconds:.1f} s)")
                for problem in outcome.problems:
                    print(f"    {problem}")
    return 0 if worked and not failures else 1


if __name__ == "__main__":
    sys.exit(main())
