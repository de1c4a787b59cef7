"""`python -m vqdistill` is the command line."""

from vqdistill.cli import main

if __name__ == "__main__":  # and not where a worker of the server loads it again
    main()
