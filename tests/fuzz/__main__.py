"""`python -m fuzz`, from the folder tests."""

from __future__ import annotations

import sys

from fuzz.run import main

sys.exit(main())
