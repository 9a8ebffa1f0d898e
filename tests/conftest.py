"""What every test shares."""

from __future__ import annotations

import logging

import pytest
import structlog

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
pytest.register_assert_rewrite("tests.support.contracts")
