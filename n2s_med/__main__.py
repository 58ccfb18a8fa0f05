"""``python -m n2s_med`` is ``n2s-med``."""

from n2s_med.cli import main

main()
