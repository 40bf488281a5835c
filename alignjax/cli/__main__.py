"""``python -m alignjax.cli`` is the command ``alignjax``."""

import sys

from alignjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
