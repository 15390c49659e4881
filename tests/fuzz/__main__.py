"""`python -m tests.fuzz`: mutated inputs for every command; exit code 1 if one of them ends in an unexpected way."""

import argparse
import os
import sys


def main() -> int:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    from tests.fuzz.runner import SUBJECTS
    from tests.fuzz.session import run_session, show_case

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="over all subjects")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subject", choices=SUBJECTS, action="append", help="default: all")
    parser.add_argument("--case", type=int, help="of the one --subject: run it alone, show it, keep its input")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    subjects = asked.subject or SUBJECTS
    if asked.case is not None:
        return int(not show_case(subjects[0], asked.case, seed=asked.seed))
    return int(not run_session(cases=asked.cases, seed=asked.seed, subjects=subjects, workers=asked.workers))


if __name__ == "__main__":
    sys.exit(main())
