"""What is asked about a page: the answer is in it, the same seed asks the same, and a name joins two pages."""

import random

import pytest

from tests.training.test_facts import FILM, PERSON, TOWN
from training.asking import about_page
from training.facts import Fact, read_facts
from training.linking import Pages, chains, compare, compare_linked, links, measure
from training.recurring import GAP, recurring

TEXTS = {
    "The Salt Road (film)": FILM,
    "Ane Berg": PERSON,
    "Oldmere": TOWN + " In 1850, Oldmere built two bridges across the river. It was visited by Ane Berg in 1990.",
    "Ford Mill": "Ford Mill is a mill in Oldmere. It was built in 1800 by Ann Cole. Nobody in Oldmere knew Ann Cole.",
}
PAGES: Pages = {title: (text, read_facts(title, text)) for title, text in TEXTS.items()}


def asked(title: str, seeds: int = 40) -> dict[str, str]:
    """All that many seeds ask about a page, in lower case."""
    text, facts = PAGES[title]
    found = (pair for seed in range(seeds) for pair in about_page(random.Random(seed), title, text, facts))
    return {question.lower().rstrip("?"): answer for question, answer in found}


@pytest.mark.parametrize("title", TEXTS)
def test_answer_stands_in_the_page(title: str) -> None:
    found = asked(title)
    assert len(found) > 10
    for question, answer in found.items():
        assert answer in f"{title}\n{TEXTS[title]}"
        assert answer.lower() not in question
        assert "(film)" not in question
        assert "{" not in question


def test_same_seed_asks_the_same() -> None:
    text, facts = PAGES["Oldmere"]
    one, other = (about_page(random.Random(7), "Oldmere", text, facts) for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    "title, question, answer",
    [
        ("The Salt Road (film)", "who directed the salt road", "Ane Berg"),
        ("Oldmere", "how many bridges did oldmere build across the river in 1850", "two"),
        ("Oldmere", "who was oldmere visited by in 1990", "Ane Berg"),
        ("Ane Berg", "where was ane berg born", "Oslo, Norway"),
        ("The Salt Road (film)", "which film was directed by ane berg", "The Salt Road"),
    ],
)
def test_questions_from_facts_and_sentences(title: str, question: str, answer: str) -> None:
    assert asked(title)[question] == answer


def test_recurring_span_is_left_in_the_rest() -> None:
    found = recurring(random.Random(0), "Ford Mill", TEXTS["Ford Mill"])
    assert {span for _, span, _ in found} == {"Oldmere", "Ann Cole"}
    for question, span, rest in found:
        assert GAP in question
        assert span not in question
        assert span in rest


def test_chain_goes_over_the_page_that_is_named() -> None:
    known = links(PAGES)
    assert ("The Salt Road (film)", "director", "Ane Berg") in {(x.title, x.fact.relation, x.target) for x in known}
    found = list(chains(random.Random(0), PAGES, known))
    for chain in found:
        assert chain.answer in PAGES[chain.titles[1]][0]
        assert chain.titles[1].lower() not in chain.question.lower()
    assert "Oslo, Norway" in {chain.answer for chain in found}


def test_name_of_two_pages_is_no_link() -> None:
    doubled = {**PAGES, "Ane Berg (ship)": ("Ane Berg is a ship.", [])}
    assert all("Ane Berg" not in link.target for link in links(doubled))


def person(born: str, nation: str) -> list[Fact]:
    return [Fact("born", born, 0), Fact("nationality", nation, 0)]


def test_comparison_of_dates_and_of_values() -> None:
    pages = ("Ada Ek", person("3 May 1950", "Swedish")), ("Bo Ek", person("May 4, 1950", "Swedish"))
    found = {q.lower().rstrip("?"): a for seed in range(30) for q, a in compare(random.Random(seed), *pages)}
    assert found["who is older, ada ek or bo ek"] == "Ada Ek"
    assert found["who is younger, bo ek or ada ek"] == "Bo Ek"
    assert found["are ada ek and bo ek of the same nationality"] == "yes"


def test_year_alone_is_not_earlier_than_a_day_of_it() -> None:
    pages = ("Ada Ek", person("1950", "Swedish")), ("Bo Ek", person("May 4, 1950", "Danish"))
    assert {answer for seed in range(20) for _, answer in compare(random.Random(seed), *pages)} == {"no"}


@pytest.mark.parametrize(
    "relation, value, size",
    [
        ("population", "12,345", 12345),
        ("population", "1.5 million", 1.5e6),
        ("height", "10 m", 10),
        ("born", "x", None),
    ],
)
def test_measure(relation: str, value: str, size: float | None) -> None:
    assert measure(relation, value) == size


def test_comparison_over_two_links() -> None:
    works = {
        "Low Tide": ("", [Fact("definition", "1990 drama film", 0), Fact("director", "Ada Ek", 0)]),
        "High Tide": ("", [Fact("definition", "drama film", 0), Fact("director", "Bo Ek", 0)]),
        "Ada Ek": ("", person("1950", "Swedish")),
        "Bo Ek": ("", person("1960", "Swedish")),
    }
    one, other = links(works)
    drawn = (pair for seed in range(40) for pair in compare_linked(random.Random(seed), works, one, other))
    found = {question.lower().rstrip("?"): answer for question, answer in drawn}
    assert found["which film has the director who was born first, high tide or low tide"] == "Low Tide"
    assert found["which film has the director who is younger, low tide or high tide"] == "High Tide"
    assert found["do the films low tide and high tide have directors of the same nationality"] == "yes"
