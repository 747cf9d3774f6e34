"""MLE-bench competitions as a one-turn environment (paper appendix A.4): write a script, or improve one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from envs.base import InfrastructureError, Kind, Message, Outcome, SelfImprovementEnv, Task, Turn
from envs.mle_bench.competitions import Competition, ScoreRange, load_competition
from envs.mle_bench.grading import Grade, shared_grader
from envs.mle_bench.prompts import START_SCRIPT, extract_script, prompt, tail
from envs.sandbox.sandbox import Limits, Run, SandboxError, SandboxUnavailableError, Status, run_script
from envs.workers import usable_cpus

SUBMISSION = "submission.csv"
SLOTS_VARIABLE = "SANDBOX_SLOTS"
# How the feedback to a script begins that has a score.
SCORED = "Score: "
# So many times in a row a failing script is debugged before a greedy search goes back to the best one.
DEBUG_STEPS = 3

DEFAULTS: Mapping[str, Any] = {
    "competitions": None,
    "score_ranges": {},
    "timeout_s": 300.0,
    "memory_bytes": 8 << 30,
    "disk_bytes": 2 << 30,
    "threads": 1,
    "slots": None,
    "python": None,
    "grading_timeout_s": 60.0,
    "output_chars": 2000,
    "allow_unsandboxed": False,
    "keep_submission": False,
}


class Result(StrEnum):
    """What became of a response."""

    SCORED = "scored"
    NO_SCRIPT = "no_script"
    SYNTAX_ERROR = "syntax_error"
    SCRIPT_FAILED = "script_failed"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    TOO_MANY_PROCESSES = "too_many_processes"
    NO_SUBMISSION = "no_submission"
    INVALID_SUBMISSION = "invalid_submission"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One response, extracted, run and graded.

    Attributes:
        result: What became of it.
        message: Tells the policy.
        script: The script; None if the response has none.
        submission: The ``submission.csv`` that the script wrote, if it came so far.
        score: The competition's score, if there is one.
        seconds: How long the script ran.
    """

    result: Result
    message: str
    script: str | None = None
    submission: bytes | None = None
    score: float | None = None
    seconds: float = 0.0


class MLEBenchEnv(SelfImprovementEnv):
    """One competition, one response with a Python script; quality is the normalised score of its submission.

    The script is the response's last fenced block. It runs in a sandbox, with the competition's public data
    as ``data``. A script that fails, is stopped, or leaves no valid ``submission.csv`` has quality 0.
    An ``improve`` step's return is the share of the possible gain that it made.

    Args:
        config: Options, also as RLlib's ``env_config``; None counts as absent.

            - ``competitions``: a competition's directory (see ``load_competition``), or several; required.
            - ``score_ranges``: by a competition's id, a mapping with its ``worst`` and ``best`` score; goes
              before those in its ``config.yaml`` and in the paper's table (``SCORE_RANGES``).
            - ``timeout_s``, ``memory_bytes``, ``disk_bytes``, ``threads``: what a script may use.
            - ``slots``: how many scripts run at once on this machine; others wait, which does not count as
              their time. By default what the environment variable ``SANDBOX_SLOTS`` says, else as many as have
              ``threads`` CPUs each.
            - ``python``: the interpreter of the scripts; by default this one.
            - ``grading_timeout_s``: a submission that takes more CPU time to grade is invalid.
            - ``output_chars``: how much of a failed script's output the feedback shows, from its end.
            - ``allow_unsandboxed``: run scripts without protection where no sandbox works.
            - ``keep_submission``: every outcome's ``files`` hold the ``submission.csv`` that the script wrote.

    Raises:
        FileNotFoundError: If a competition's file is missing.
        ValueError: If an option is unknown or has an impossible value, or a competition has no score range.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        options = dict(DEFAULTS)
        for key, value in (config or {}).items():
            if key not in DEFAULTS:
                raise ValueError(f"{type(self).__name__} has no option {key!r}: use {', '.join(DEFAULTS)}")
            if value is not None:
                options[key] = value
        for key in ("timeout_s", "memory_bytes", "disk_bytes", "threads", "slots", "grading_timeout_s", "output_chars"):
            if options[key] is not None and not options[key] > 0:
                raise ValueError(f"{key} is {options[key]!r}: it must be positive")
        directories = options["competitions"]
        if not directories:
            raise ValueError(
                "competitions is missing: name the directories of one or more competitions; "
                "`python -m envs.mle_bench.synthetic DIRECTORY` writes two small ones"
            )
        if isinstance(directories, str | Path):
            directories = [directories]
        competitions = [load_competition(directory) for directory in directories]
        super().__init__([Task(competition.id, competition.description) for competition in competitions])
        self.competitions = {competition.id: competition for competition in competitions}
        self.score_ranges = _score_ranges(competitions, options["score_ranges"])
        self.limits = Limits(
            wall_s=options["timeout_s"],
            memory_bytes=options["memory_bytes"],
            disk_bytes=options["disk_bytes"],
            threads=options["threads"],
        )
        self.slots: int = options["slots"] or _default_slots(options["threads"])
        self.python: str | None = options["python"]
        self.grading_timeout_s: float = options["grading_timeout_s"]
        self.output_chars: int = options["output_chars"]
        self.allow_unsandboxed: bool = options["allow_unsandboxed"]
        self.keep_submission: bool = options["keep_submission"]

    def prompt(self, task: Task) -> list[Message]:
        return self._chat(task, "base", START_SCRIPT)

    def messages(self, iterate: Turn | None = None, kind: Kind | None = None) -> list[Message]:
        """The chat that the policy answers now: one message, with the script of the iterate in it."""
        if iterate is None:
            iterate, kind = self.instance.iterate, self.instance.kind
        if iterate is None:
            return self.prompt(self.task)
        goal = "diverge" if kind == "diverge" else "improve" if _has_score(iterate) else "debug"
        return self._chat(self.task, goal, extract_script(iterate.response) or START_SCRIPT, iterate.feedback)

    def respond(self, task: Task, response: str) -> Outcome:
        attempt = self._attempt(task, response)
        metrics = {result.value: float(result is attempt.result) for result in Result}
        if attempt.script is not None:
            metrics["script_seconds"] = attempt.seconds
        if attempt.score is not None:
            metrics[f"score_{task.id}"] = attempt.score
        return Outcome(
            quality=0.0 if attempt.score is None else self.score_ranges[task.id].quality(attempt.score),
            feedback=attempt.message,
            valid=attempt.script is not None,
            metrics=metrics,
            files={SUBMISSION: attempt.submission} if self.keep_submission and attempt.submission is not None else {},
        )

    def reward(self, quality: float, previous: float | None) -> float:
        """The quality; of an ``improve`` step, its gain as a share of the largest possible one, at least -1."""
        if previous is None:
            return quality
        if previous == 1.0:
            return 0.0 if quality == 1.0 else -1.0
        return max(-1.0, (quality - previous) / (1.0 - previous))

    def solution(self, response: str) -> str:
        """The script, without the thoughts around it; all of the response if it has none."""
        return extract_script(response) or response

    def next_iterate(self, iterates: Sequence[Turn]) -> Turn | None:
        """The last script if it fails, to be debugged up to ``DEBUG_STEPS`` times in a row; else the best so far.

        Of equally good scripts it is the first. None stands for the empty script: no script has a score yet.
        """
        failures, depth = 0, 0  # of the script at hand: how often it and the ones it debugs fail
        for turn in iterates:
            # A script that was debugged is a step deeper, unless the context had no room for it.
            debugged = 0 < failures <= DEBUG_STEPS and turn.depth == depth + 1
            fails = extract_script(turn.response) is not None and not _has_score(turn)
            failures, depth = ((failures if debugged else 0) + 1 if fails else 0), turn.depth
        if 0 < failures <= DEBUG_STEPS:
            return iterates[-1]
        return max(filter(_has_score, iterates), key=lambda turn: turn.quality or 0.0, default=None)

    def demonstration(self, task: Task) -> Sequence[str]:
        """The response in ``demonstration.md`` beside the competition's ``config.yaml``.

        Raises:
            NotImplementedError: If there is none.
        """
        file = self.competitions[task.id].definition / "demonstration.md"
        if not file.is_file():
            raise NotImplementedError(f"{task.id} has no demonstration: {file} does not exist")
        return [file.read_text().strip()]

    def _chat(self, task: Task, goal: str, script: str, feedback: str | None = None) -> list[Message]:
        public = self.competitions[task.id].public
        content = prompt(
            goal,
            description=task.prompt,
            files=sorted(f"data/{file.name}{'/' * file.is_dir()}" for file in public.iterdir()),
            timeout_s=self.limits.wall_s,
            script=script,
            feedback=feedback,
        )
        return [{"role": "user", "content": content}]

    def _attempt(self, task: Task, response: str) -> Attempt:
        script = extract_script(response)
        if script is None:
            message = "The response has no script: no block begins with ```python and ends with ```."
            return Attempt(Result.NO_SCRIPT, message)
        try:
            run = run_script(
                script,
                data=self.competitions[task.id].public,
                files=[SUBMISSION],
                limits=self.limits,
                slots=self.slots,
                python=self.python,
                allow_unsandboxed=self.allow_unsandboxed,
            )
        except SandboxUnavailableError:
            raise  # no script will ever run here
        except SandboxError as error:
            raise InfrastructureError(str(error)) from error
        submission = run.files.get(SUBMISSION)
        result, message = _judge(run)
        if result is not Result.SCORED:
            if output := tail(run.output, self.output_chars):
                message += f" The end of its output:\n```\n{output}\n```"
            return Attempt(result, message, script, submission, seconds=run.seconds)
        assert submission is not None
        grade = self._grade(task.id, submission)
        if grade.score is None:
            message = f"The script wrote a {SUBMISSION} that is not valid: {grade.message}"
            return Attempt(Result.INVALID_SUBMISSION, message, script, submission, seconds=run.seconds)
        score_range = self.score_ranges[task.id]
        better = "higher" if score_range.higher_is_better else "lower"
        metric = self.competitions[task.id].metric
        message = f"{SCORED}{grade.score:g} ({metric}; {better} is better, the best is {score_range.best:g})."
        return Attempt(Result.SCORED, message, script, submission, grade.score, run.seconds)

    def _grade(self, name: str, submission: bytes) -> Grade:
        grader, score_range = shared_grader(self.competitions[name]), self.score_ranges[name]
        gold = grader.gold_score
        if score_range.quality(gold) == 0.0:
            raise ValueError(
                f"{name}: the right answers score {gold}, which is worth nothing from worst {score_range.worst} to "
                f"best {score_range.best}: correct its score range"
            )
        return grader.grade(submission, self.grading_timeout_s)


def _has_score(turn: Turn) -> bool:
    return (turn.feedback or "").startswith(SCORED)


def _default_slots(threads: int) -> int:
    given = os.environ.get(SLOTS_VARIABLE)
    if given is None:
        return max(1, usable_cpus() // threads)
    if not given.isdecimal() or int(given) == 0:
        raise ValueError(f"{SLOTS_VARIABLE} is {given!r}: set a number of scripts, at least 1")
    return int(given)


def _score_ranges(competitions: Sequence[Competition], given: Mapping[str, Any]) -> dict[str, ScoreRange]:
    names = [competition.id for competition in competitions]
    if unknown := sorted(set(given) - set(names)):
        raise ValueError(f"score_ranges names {unknown[0]!r}, which is not among the competitions: {', '.join(names)}")
    ranges = {}
    for competition in competitions:
        name = competition.id
        score_range = competition.score_range
        if name in given:
            score_range = ScoreRange.parse(given[name], f"score_ranges: {name}")
        if score_range is None:
            raise ValueError(
                f"{name} has no score range: set the option score_ranges={{{name!r}: {{'worst': …, 'best': …}}}}, or "
                f"the field score_range in {competition.definition / 'config.yaml'}"
            )
        ranges[name] = score_range
    return ranges


# What Python prints last of a script that it cannot parse; without a trace, since nothing has run yet.
_SYNTAX_ERROR = re.compile(r"(?:SyntaxError|IndentationError|TabError):[^\n]*\Z")

_STOPPED = {
    Status.TIMED_OUT: "The script was stopped after {seconds:.0f} seconds.",
    Status.OUT_OF_MEMORY: "The script was stopped because it used too much memory.",
    Status.DISK_FULL: "The script was stopped because it wrote too much to the disk.",
    Status.TOO_MANY_PROCESSES: "The script was stopped because it started too many processes.",
}


def _judge(run: Run) -> tuple[Result, str]:
    """What became of a script, with the message for the policy. SCORED means that there is a file to grade."""
    if run.status is Status.OK:
        if SUBMISSION in run.files:
            return Result.SCORED, ""
        return Result.NO_SUBMISSION, f"The script ended without writing {SUBMISSION}."
    if run.status is not Status.FAILED:
        return Result(run.status.value), _STOPPED[run.status].format(seconds=run.seconds)
    output = run.output.strip()
    if _SYNTAX_ERROR.search(output) and "Traceback (most recent call last)" not in output:
        return Result.SYNTAX_ERROR, "The script is not valid Python."
    return Result.SCRIPT_FAILED, f"The script failed (exit code {run.exit_code})."
