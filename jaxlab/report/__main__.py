"""`python -m jaxlab.report`."""

import sys

from jaxlab.report.table import main

if __name__ == "__main__":
    sys.exit(main())
