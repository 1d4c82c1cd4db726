"""`python -m llmopt` is the same program as the console script."""

from llmopt.cli import main

if __name__ == "__main__":
    main()
