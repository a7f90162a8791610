"""The small encoder of the inference tests."""

from tests.inference.conftest import tiny_encoder  # noqa: F401
