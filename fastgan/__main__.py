"""``python -m fastgan``: the command line."""

from fastgan.cli import main

if __name__ == "__main__":
    main()
