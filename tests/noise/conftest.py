"""Let the inherited suite's assertions explain themselves."""

import pytest

pytest.register_assert_rewrite("laws")
