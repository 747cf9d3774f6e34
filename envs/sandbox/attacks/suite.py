"""Plays attacks in every tier that works here, as this user and, from root, as a user without privileges."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from envs.sandbox.attacks import bounds, files, memory, outcomes, reach
from envs.sandbox.attacks.attack import Attack
from envs.sandbox.attacks.surroundings import Surroundings, surroundings
from envs.sandbox.processes import descendants
from envs.sandbox.sandbox import Run, SandboxError, SandboxUnavailableError, Tier, _bwrap, available_tier, run_script

_MODULES = files, reach, memory, bounds, outcomes
ATTACKS: dict[str, Attack] = {attack.name: attack for module in _MODULES for attack in module.ATTACKS}
NOBODY = 65534
_ROOT = Path(__file__).parents[3]
# A limit that is held may be passed by this share, and wall-clock time, on a busy machine, by so many seconds.
_SLACK, _SLACK_S = 0.2, 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one attack.

    Attributes:
        attack: Its name.
        place: The tier and the user.
        status: How the script ended; empty if the sandbox failed.
        seconds: The script's wall-clock time.
        escapes: What it reached.
        survivors: What it left.
        errors: Why there is no run.
        exceeded: The bounds that are hard that it has passed by more than a fifth; the wall-clock time is one of them
            where the number of processes is.
        failures: What else was to hold and did not.
        watched: By how much it has passed each bound that is watched, as a multiple of the limit.
    """

    attack: str
    place: str
    status: str = ""
    seconds: float = 0.0
    escapes: Sequence[str] = ()
    survivors: Sequence[str] = ()
    errors: Sequence[str] = ()
    exceeded: Sequence[str] = ()
    failures: Sequence[str] = ()
    watched: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether all holds that must."""
        return not (self.escapes or self.survivors or self.errors or self.exceeded or self.failures)

    @property
    def problems(self) -> list[str]:
        """What does not hold, a line each."""
        found = []
        for kind in ("escapes", "survivors", "errors", "exceeded", "failures"):
            found += [f"{kind.removesuffix('s')}: {text}" for text in getattr(self, kind)]
        return found


def play(attack: Attack, tier: Tier, around: Surroundings) -> Outcome:
    """Plays one attack."""
    place = f"{tier}, {'root' if os.geteuid() == 0 else 'not root'}"
    before, processes, tempfile.tempdir = around.state(), descendants(), str(around.temporary)
    run, errors = None, []
    try:
        source = attack.source(around.out)
        run = run_script(source, data=around.data, files=attack.files, limits=attack.limits, tier=tier)
    except SandboxError as error:
        errors = [str(error)]
    finally:
        tempfile.tempdir = None
    survivors, escapes = around.left(processes), around.reached()
    if around.state() != before:
        escapes.append("something outside has changed")
    if run is None:
        return Outcome(attack.name, place, "", 0.0, escapes, survivors, errors)
    content = run.output + "".join(file.decode(errors="replace") for file in run.files.values())
    if "escaped" in run.output.split() or any(secret in content for secret in around.secrets):
        escapes.append(f"it printed {run.output[-500:]!r}")
    failures = []
    try:
        if not attack.holds(run):
            failures = [
                f"{run.status}, {run.exit_code}, after {run.seconds:.1f} s, peaks {run.peaks}: {run.output[-800:]!r}"
            ]
    except (ValueError, IndexError) as error:
        failures = [f"{run.status}, its output cannot be read ({error}): {run.output[-800:]!r}"]
    exceeded, watched = _exceeded(run, attack)
    return Outcome(attack.name, place, run.status, run.seconds, escapes, survivors, (), exceeded, failures, watched)


def _exceeded(run: Run, attack: Attack) -> tuple[list[str], dict[str, float]]:
    """The bounds that were passed: hard ones in words, watched ones as multiples of the limit."""
    limits, hard, watched = attack.limits, [], {}
    allowed: dict[str, float] = {
        "memory_bytes": limits.memory_bytes,
        "processes": limits.processes,
        "disk_bytes": limits.disk_bytes,
    }
    if limits.cpu_s is not None:
        allowed["cpu_s"] = limits.cpu_s
    for name, limit in allowed.items():
        if run.peaks[name] > (1 + _SLACK) * limit:
            if run.bounds[name] == "hard":
                hard.append(f"{name}: {run.peaks[name]:g} of {limit:g}")
            else:
                watched[name] = run.peaks[name] / limit
    if run.seconds > (1 + _SLACK) * limits.wall_s + _SLACK_S:
        if run.bounds["processes"] == "hard":
            hard.append(f"wall_s: {run.seconds:.1f} of {limits.wall_s:g}")
        else:  # hundreds of processes leave the guard little of the CPU
            watched["wall_s"] = run.seconds / limits.wall_s
    return hard, watched


def play_all(attacks: Iterable[Attack], tiers: Iterable[Tier] = get_args(Tier)) -> Iterator[Outcome]:
    """Plays attacks as this process' user in every tier that works, and says which do not."""
    with surroundings() as around:
        for tier in tiers:
            try:
                available_tier(tier=tier)
            except SandboxUnavailableError as error:
                print(f"{tier} does not work for user {os.geteuid()}: {error}", file=sys.stderr)
                continue
            for attack in attacks:
                yield play(attack, tier, around)


def play_as_nobody(names: Sequence[str]) -> Iterator[Outcome]:
    """Plays attacks as a user without privileges, in a process of its own."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *([os.path.dirname(bwrap)] if (bwrap := _bwrap()) else [])])
    code = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from envs.sandbox.attacks import suite; suite.serve()"
    with subprocess.Popen(
        [reachable_interpreter(), "-B", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": path},
        cwd="/",
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        with process.stdin:
            json.dump(list(names), process.stdin)
        for line in process.stdout:
            yield Outcome(**json.loads(line))
    if process.returncode != 0:
        raise RuntimeError(f"the attacks as user {NOBODY} ended with code {process.returncode}")


def serve() -> None:
    """Plays the attacks that are named on stdin, and writes their outcomes to stdout."""
    for outcome in play_all([ATTACKS[name] for name in json.load(sys.stdin)]):
        print(json.dumps(dataclasses.asdict(outcome)), flush=True)


def reachable_interpreter() -> str:
    """A Python of version 3.11 or later that the user 65534 can start.

    Raises:
        OSError: If there is none.
    """
    test = "import sys; sys.exit(sys.version_info < (3, 11))"
    candidates = [sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"]
    for candidate in filter(os.path.exists, candidates):
        try:
            result = subprocess.run([candidate, "-c", test], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/")
        except PermissionError:
            continue
        if result.returncode == 0:
            return candidate
    raise OSError(f"user {NOBODY} can start none of {candidates}: the sandbox cannot be attacked as this user")


def main(names: Sequence[str] = ()) -> int:
    """Plays attacks, prints the table, and returns the exit code.

    Args:
        names: Of the attacks; by default all.
    """
    names = names or list(ATTACKS)
    outcomes: list[Outcome] = []
    played = [play_all([ATTACKS[name] for name in names])]
    if os.geteuid() == 0:
        played.append(play_as_nobody(names))
    for some in played:
        for outcome in some:
            outcomes.append(outcome)
            for problem in outcome.problems:
                print(f"{outcome.place}: {outcome.attack}\n  {problem}", flush=True)
    print(table(outcomes))
    return summary(outcomes)


def table(outcomes: Sequence[Outcome]) -> str:
    """A line for each attack and a column for each place: how it ended, in capitals where something does not hold."""
    places = list(dict.fromkeys(outcome.place for outcome in outcomes))
    by_name: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        by_name.setdefault(outcome.attack, {})[outcome.place] = outcome
    lines = ["", f"{'attack':62}" + "".join(f"{place:23}" for place in places)]
    for name, of_places in by_name.items():
        shown = name.encode("ascii", "backslashreplace").decode()
        cells = [_cell(of_places.get(place)) for place in places]
        lines.append((f"{shown[:60]:62}" + "".join(f"{cell:23}" for cell in cells)).rstrip())
    return "\n".join(lines)


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return "-"
    if outcome.held:
        return outcome.status
    kinds = ("escapes", "survivors", "errors", "exceeded", "failures")
    return " ".join(kind.upper() for kind in kinds if getattr(outcome, kind))


def summary(outcomes: Sequence[Outcome]) -> int:
    """Prints what was counted; the exit code is 0 if some attacks were played and all held."""
    watched: dict[str, float] = {}
    for outcome in outcomes:
        for name, times in outcome.watched.items():
            watched[name] = max(watched.get(name, 0.0), times)
    print(f"\n{len(outcomes)} runs of {len({outcome.attack for outcome in outcomes})} attacks")
    for label, kind in (
        ("escapes", "escapes"),
        ("survivors", "survivors"),
        ("SandboxErrors", "errors"),
        ("hard bounds exceeded by more than 20 %", "exceeded"),
        ("other things that did not hold", "failures"),
    ):
        print(f"{sum(bool(getattr(outcome, kind)) for outcome in outcomes):6} {label}")
    seen = ", ".join(f"{name} by {times:.1f} times the limit" for name, times in watched.items())
    print(f"Watched bounds that were passed for a moment: {seen or 'none'}")
    return 0 if outcomes and all(outcome.held for outcome in outcomes) else 1
