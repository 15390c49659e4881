"""The script that Slurm runs for each task; it can be read, kept and edited as any other.

The batch shell gets SIGUSR1 before the time limit, passes it on, and puts the task back in the queue once the stage has
saved its work (exit code 75). SIGTERM is passed on too, but does not requeue: it comes from `scancel`, or from a
preemption, after which Slurm requeues by itself, as it does if a node fails. A process that is killed is started again
a few times.
"""

import shlex
from collections.abc import Sequence

from eaglepipe.errors import EXIT_STOPPED, EXIT_TRY_AGAIN

SIGNAL_SECONDS = 120


def render(directives: Sequence[tuple[str, str | None]], *, comment: Sequence[str], settings: str, command: str) -> str:
    """Return a script.

    Args:
        directives: options of sbatch, those without a value last in a pair with None.
        comment: lines at its head.
        settings: lines of shell that set `task` and `logs`, and whatever the command needs.
        command: the call of the stage.
    """
    options = [f"#SBATCH --{name}" if value is None else f"#SBATCH --{name}={value}" for name, value in directives]
    head = ["#!/usr/bin/env bash", *(f"# {line}" for line in comment), *options, "", settings.rstrip()]
    return "\n".join(head) + _BODY.replace("COMMAND", command)


def quoted(words: Sequence[str]) -> str:
    """Return a command as shell; `$task` in it stays a variable."""
    return " ".join(f'"{word}"' if "$task" in word else shlex.quote(word) for word in words)


_BODY = f"""
child= asked= interrupted=

pass_on() {{  # a signal on to the stage, which saves its work; only the one before the time limit requeues
  interrupted=yes
  [ "$1" = USR1 ] && [ "${{asked:-USR1}}" = USR1 ] && asked=USR1 || asked=TERM
  [ -z "$child" ] || kill -"$1" "$child" 2>/dev/null
}}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM

name=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$task}}
name=${{name:-$SLURM_JOB_ID}}
ending="$logs/task-$task.exit" deaths="$logs/task-$task.deaths"
rm -f "$ending"
echo "--- job $name on $(hostname), restart ${{SLURM_RESTART_COUNT:-0}}, $(date -u '+%Y-%m-%d %H:%M:%S') UTC"

code={EXIT_STOPPED}
if [ -z "$asked" ]; then
  COMMAND &
  child=$!
  [ -z "$asked" ] || kill -"$asked" "$child"  # it came while the stage was started
  interrupted=yes
  while [ -n "$interrupted" ]; do  # a wait that a signal interrupts returns early
    interrupted=
    wait "$child"; code=$?
  done
fi

again=
if [ "$code" = {EXIT_STOPPED} ]; then
  [ "$asked" = USR1 ] && again="stopped before the time limit"
elif [ "$code" -gt 128 ] || [ "$code" = {EXIT_TRY_AGAIN} ]; then
  count=$(( $(cat "$deaths" 2>/dev/null || echo 0) + 1 ))
  echo "$count" > "$deaths"
  [ -z "$asked" ] && [ "$count" -le "${{retries:-3}}" ] && again="ended with code $code, for the $count. time"
fi
echo "$code" > "$ending"
if [ -n "$again" ]; then
  echo "--- $again: back in the queue"
  scontrol requeue "$name" && exit 0
fi
exit "$code"
"""
