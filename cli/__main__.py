"""`python -m lmcleaner.cli`, for processes that another one starts."""

from lmcleaner.cli.main import main

main()
