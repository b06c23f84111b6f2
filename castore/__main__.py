"""`python -m castore`."""

from castore.cli.main import main

main()
