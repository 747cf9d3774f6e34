"""MLE-bench competitions as a one-turn environment (paper appendix A.4): write a script, or improve one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt

from envs.base import InfrastructureError, Kind, Message, Outcome, SelfImprovementEnv, Task, Turn
from envs.mle_bench.competitions import Competition, ScoreRange, load_competition
from envs.mle_bench.grading import Grade, shared_grader
from envs.mle_bench.prompts import START_SCRIPT, extract_script, prompt, tail
from envs.options import Options
from envs.sandbox.job import Limits, default_slots
from envs.sandbox.sandbox import Run, SandboxError, SandboxUnavailableError, Status, run_script

SUBMISSION = "submission.csv"
# The feedback to a script that has a score begins with this.
SCORED = "Score: "
# So many times in a row a failing script is debugged before a greedy search goes back to the best one.
DEBUG_STEPS = 3


class MLEBenchOptions(Options):
    """The options of :class:`MLEBenchEnv`."""

    competitions: Annotated[
        tuple[Path, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str | Path) else value)
    ] = Field((), description="A competition's directory (see `load_competition`), or several. It is required.")
    score_ranges: dict[str, ScoreRange] = Field(
        {},
        description="By a competition's id, a mapping with its `worst` and `best` score. It goes before the range in "
        "the competition's `config.yaml` and in the paper's table.",
    )
    timeout_s: PositiveFloat = Field(300.0, description="The seconds that a script may take.")
    memory_bytes: PositiveInt = Field(8 << 30, description="The memory that a script may use.")
    disk_bytes: PositiveInt = Field(2 << 30, description="The disk space that a script may use.")
    threads: PositiveInt = Field(1, description="The threads that numerical libraries start in a script.")
    slots: PositiveInt | None = Field(
        None,
        description="How many scripts run at once on this machine. Others wait, which does not count as their time. By "
        "default what the environment variable `SANDBOX_SLOTS` says, else as many as have `threads` CPUs each.",
    )
    python: str | None = Field(None, description="The interpreter of the scripts; by default this one.")
    grading_timeout_s: PositiveFloat = Field(
        60.0, description="The CPU seconds that grading may take. A submission that takes more is invalid."
    )
    output_chars: PositiveInt = Field(
        2000, description="How much of a failed script's output the feedback shows, from its end."
    )
    allow_unsandboxed: bool = Field(False, description="Whether scripts run without protection where no sandbox works.")
    keep_submission: bool = Field(
        False, description="Whether the `files` of every outcome hold the `submission.csv` that the script wrote."
    )


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


class MLEBenchEnv(SelfImprovementEnv):
    """One competition, one response with a Python script; quality is the normalised score of its submission.

    The script is the response's last fenced block. It runs in a sandbox, with the competition's public data as
    ``data``. A script that fails, is stopped, or leaves no valid ``submission.csv`` has quality 0. An ``improve``
    step's return is the share of the possible gain that it made.

    Its options, RLlib's ``env_config``, are those of :class:`MLEBenchOptions`; a ValueError names one that cannot be
    used, a FileNotFoundError a competition's file that is missing.
    """

    max_turns = 1

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self.options = options = MLEBenchOptions.parse(config)
        if not options.competitions:
            raise ValueError(
                "competitions is missing: name the directories of one or more competitions; "
                "`python -m envs.mle_bench.synthetic DIRECTORY` writes two small ones"
            )
        competitions = [load_competition(directory) for directory in options.competitions]
        super().__init__([Task(competition.id, competition.description) for competition in competitions])
        self.competitions = {competition.id: competition for competition in competitions}
        self.score_ranges = _score_ranges(competitions, options.score_ranges)
        self.limits = Limits(
            wall_s=options.timeout_s,
            memory_bytes=options.memory_bytes,
            disk_bytes=options.disk_bytes,
            threads=options.threads,
        )
        self.slots: int = options.slots or default_slots(options.threads)

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
        script = extract_script(response)
        if script is None:
            message = "The response has no script: no block begins with ```python and ends with ```."
            return Outcome(0.0, message, valid=False, metrics=_counted(Result.NO_SCRIPT))
        run = self._run(task, script)
        submission = run.files.get(SUBMISSION)
        result, message = _judge(run)
        metrics, quality = {"script_seconds": run.seconds}, 0.0
        if result is Result.SCORED:
            assert submission is not None
            grade = self._grade(task.id, submission)
            if grade.score is None:
                result = Result.INVALID_SUBMISSION
                message = f"The script wrote a {SUBMISSION} that is not valid: {grade.message}"
            else:
                score_range = self.score_ranges[task.id]
                quality, metrics[f"score_{task.id}"] = score_range.quality(grade.score), grade.score
                better = "higher" if score_range.higher_is_better else "lower"
                metric = self.competitions[task.id].metric
                message = f"{SCORED}{grade.score:g} ({metric}; {better} is better, the best is {score_range.best:g})."
        elif output := tail(run.output, self.options.output_chars):
            message += f" The end of its output:\n```\n{output}\n```"
        files = {SUBMISSION: submission} if self.options.keep_submission and submission is not None else {}
        return Outcome(quality, message, metrics=_counted(result) | metrics, files=files)

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

    def _run(self, task: Task, script: str) -> Run:
        try:
            return run_script(
                script,
                data=self.competitions[task.id].public,
                files=[SUBMISSION],
                limits=self.limits,
                slots=self.slots,
                python=self.options.python,
                allow_unsandboxed=self.options.allow_unsandboxed,
            )
        except SandboxUnavailableError:
            raise  # no script will ever run here
        except SandboxError as error:
            raise InfrastructureError(str(error)) from error

    def _grade(self, name: str, submission: bytes) -> Grade:
        grader, score_range = shared_grader(self.competitions[name]), self.score_ranges[name]
        gold = grader.gold_score
        if score_range.quality(gold) == 0.0:
            raise ValueError(
                f"{name}: the right answers score {gold}, which is worth nothing from worst {score_range.worst} to "
                f"best {score_range.best}: correct its score range"
            )
        return grader.grade(submission, self.options.grading_timeout_s)


def _counted(result: Result) -> dict[str, float]:
    return {each.value: float(each is result) for each in Result}


def _has_score(turn: Turn) -> bool:
    return (turn.feedback or "").startswith(SCORED)


def _score_ranges(competitions: Sequence[Competition], given: Mapping[str, ScoreRange]) -> dict[str, ScoreRange]:
    names = [competition.id for competition in competitions]
    if unknown := sorted(set(given) - set(names)):
        raise ValueError(f"score_ranges names {unknown[0]!r}, which is not among the competitions: {', '.join(names)}")
    ranges = {}
    for competition in competitions:
        score_range = given.get(competition.id) or competition.score_range
        if score_range is None:
            raise ValueError(
                f"{competition.id} has no score range: set the option "
                f"score_ranges={{{competition.id!r}: {{'worst': …, 'best': …}}}}, or the field score_range in "
                f"{competition.definition / 'config.yaml'}"
            )
        ranges[competition.id] = score_range
    return ranges


# What Python prints last of a script that it cannot parse; without a trace, since nothing has run yet.
_SYNTAX_ERRORS = ("SyntaxError:", "IndentationError:", "TabError:")

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
    last_line = output.rpartition("\n")[2]
    if any(error in last_line for error in _SYNTAX_ERRORS) and "Traceback (most recent call last)" not in output:
        return Result.SYNTAX_ERROR, "The script is not valid Python."
    return Result.SCRIPT_FAILED, f"The script failed (exit code {run.exit_code})."
