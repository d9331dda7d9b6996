"""`python -m ssae`, for launchers that want a module: torchrun -m ssae train ..."""

from ssae.cli import main

if __name__ == "__main__":
    main()
