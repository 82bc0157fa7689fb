"""What a search means, before it reaches a statement."""

import pytest

from adapters.user_search import found_by


@pytest.mark.parametrize(
    ("search", "values"),
    [
        ("Ada@Example.COM", ("ada@example.com%",)),
        (" ada@ ", ("ada@%",)),
        ("ada@bücher.example", ("ada@xn--bcher-kva.example%",)),
        ("A", ("a%", "A%", "% A%")),
        ("李", ("李%", "李%", "% 李%")),
        ("Ada  L", ("ada l%", "%Ada L%")),
        ("50%_\\x", ("50\\%\\_\\\\x%", "%50\\%\\_\\\\x%")),
        ("'-.", ()),
        ("%", ()),
    ],
)
def test_a_search_becomes_patterns(search: str, values: tuple[str, ...]) -> None:
    condition, found = found_by(search)
    assert found == values
    assert condition.count("$") == len(values)
    assert (condition == "false") is (not values)
