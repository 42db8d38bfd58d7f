"""`python -m heft` is the command ``heft``."""

from heft.stream.cli.main import main

main()
