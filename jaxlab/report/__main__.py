"""`python -m jaxlab.report`."""

import sys

from jaxlab.report.tables import main

if __name__ == "__main__":
    sys.exit(main())
