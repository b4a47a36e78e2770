"""The entry point of `python -m rorqual`, which runs the command line `rorqual`."""

from rorqual.cli.main import main

if __name__ == "__main__":
    main()
