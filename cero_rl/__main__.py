"""`python -m cero_rl`: the same commands as `cero-rl`."""

import sys

from cero_rl.cli import main

sys.exit(main())
