"""Tests, and what they share: a package, so that an installed package of this name does not hide it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
