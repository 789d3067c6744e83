"""`python -m procmgr`: the console command under another name."""

import sys

from procmgr.cli.main import main

sys.exit(main())
