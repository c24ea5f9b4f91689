"""`python -m detector` is `longwatch`."""

from detector.cli import main

if __name__ == "__main__":
    main()
