"""`python -m vqdistill` is the command line."""

from vqdistill.cli import main

main()
