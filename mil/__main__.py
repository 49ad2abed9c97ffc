"""`python -m mil` is `wsvad`."""

from mil.cli import main

if __name__ == "__main__":
    main()
