"""What is read from a page: every fact is where it says, and none is about someone else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.facts import LONGEST, is_person, kind, read_facts

FILM = (
    "The Salt Road is a 1987 Norwegian drama film directed by Ane Berg and starring Olaf Dahl. "
    "It was written by Tom Reed and released on 4 May 1987."
)
PERSON = (
    "Ane Berg (born 3 March 1950 in Oslo, Norway) is a Norwegian film director. "
    "She is married to Per Lund. Olaf Dahl, her cousin, was born in Paris."
)
TOWN = "Oldmere is a town in Kent County, England. The town was founded in 1204 and has a population of 12,345."


def values(title: str, text: str) -> dict[str, str]:
    return {fact.relation: fact.value for fact in read_facts(title, text)}


@pytest.mark.parametrize(
    "relation, value",
    [("director", "Ane Berg"), ("starring", "Olaf Dahl"), ("author", "Tom Reed"), ("released", "1987")],
)
def test_film(relation: str, value: str) -> None:
    assert values("The Salt Road (film)", FILM)[relation].endswith(value)


def test_person_and_nobody_elses_birthplace() -> None:
    found = values("Ane Berg", PERSON)
    assert found["born"] == "3 March 1950"
    assert found["birthplace"] == "Oslo, Norway"
    assert (found["nationality"], found["occupation"], found["spouse"]) == ("Norwegian", "film director", "Per Lund")
    assert "Paris" not in found.values()


def test_town() -> None:
    found = values("Oldmere", TOWN)
    assert (found["county"], found["founded"], found["population"]) == ("Kent County", "1204", "12,345")


def test_kind_of_page() -> None:
    assert kind(read_facts("The Salt Road (film)", FILM)) == "film"
    assert is_person(read_facts("Ane Berg", PERSON))
    assert not is_person(read_facts("Oldmere", TOWN))


@pytest.mark.parametrize("text", [FILM, PERSON, TOWN])
def test_value_stands_at_its_place(text: str) -> None:
    for fact in read_facts("A page", text):
        assert text[fact.start : fact.start + len(fact.value)] == fact.value
        assert len(fact.value.split()) <= LONGEST


@given(st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    for fact in read_facts("Title", "Title is a town. " + text):
        assert ("Title is a town. " + text)[fact.start :].startswith(fact.value)
