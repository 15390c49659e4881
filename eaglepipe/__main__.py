"""`python -m eaglepipe` is the command line."""

from eaglepipe.cli import main

main()
