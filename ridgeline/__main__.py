"""``python -m ridgeline``: the command line."""

from ridgeline.apps.cli import main

if __name__ == "__main__":
    main()
