"""What is made of pairs: the cost that they show, and how far it is to be trusted."""

import pytest

from bucatini.bench import isolation
from bucatini.bench.cells import CELLS

CELL = next(cell for cell in CELLS if cell.key == "crr")


def test_the_cost_is_the_mean_of_what_is_missing_in_each_pair() -> None:
    found = isolation.cost(CELL, [(90.0, 100.0), (196.0, 200.0), (94.0, 100.0)])
    assert found.isolated == 94
    assert found.bare == 100
    assert found.missing == pytest.approx(0.06)
    assert found.error == pytest.approx(0.04 / 3**0.5)


def test_the_page_has_a_line_for_each_cell() -> None:
    page = isolation.page([isolation.cost(CELL, [(90.0, 100.0), (94.0, 100.0)])], 2)
    assert "| TCP connect-request-response, 1/s | 92.0 | 100 | 8.0 ± 4.0 |\n" in page
    assert "Medians of 2 pairs" in page.replace("\n", " ")


def test_all_cells_are_there_and_more_is_better_in_each() -> None:
    chosen = [cell for cell in CELLS if cell.environment == isolation.ENVIRONMENT and cell.key in isolation.KEYS]
    assert len(chosen) == len(isolation.KEYS)
    assert all(cell.metrics[0].higher_is_better for cell in chosen)
