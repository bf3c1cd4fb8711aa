"""`python -m aios.shell` is `aios`."""

from .cli import main

if __name__ == "__main__":
    main()
