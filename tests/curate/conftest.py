"""Fixtures shared by the tests of curation."""

import html

import pytest


@pytest.fixture
def empty_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports with empty charts, because drawing takes longer than curating a small pool."""
    from s5.curate import charts

    def svg(_: object, prefix: str, label: str) -> str:
        return f'<svg role="img" aria-label="{html.escape(label)}" class="{prefix}"></svg>'

    monkeypatch.setattr(charts, "_svg", svg)
