"""What a search means, before it reaches a statement."""

import re

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
    condition, by_index, found = found_by(search)
    assert found == values
    assert condition.count("$") == len(values)
    assert by_index == condition
    assert (condition == "false") is (not values)


@pytest.mark.parametrize(
    ("search", "pieces"),
    [
        ("Lovelace", ["Lov", "ela"]),
        ("O'Shaughnessy-Bright", ["Sha", "ghn"]),
        ("Ada L. K. 1843", ["184", "Ada"]),
    ],
)
def test_a_long_search_asks_the_index_for_some_of_its_letters(search: str, pieces: list[str]) -> None:
    found = found_by(search)
    places = [int(place) for place in re.findall(r"substr\(\$2, (\d+), 3\)", found.by_index)]
    assert [found.values[1][place - 1 : place + 2] for place in places] == pieces
    assert "u.name_key || '' LIKE name_key($2)" in found.by_index


@pytest.mark.parametrize("search", ["a b c d e", "Lovel", "Müller-Lüdenscheid"])
def test_a_search_without_such_letters_is_asked_as_it_is(search: str) -> None:
    found = found_by(search)
    assert found.by_index == found.matches
