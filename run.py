"""`python run.py` is the command `darts-lite`."""

from darts_lite.commands.cli import main

if __name__ == "__main__":
    main(prog_name="run.py")
