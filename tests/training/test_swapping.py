"""An answer replaced by another: in the passage and in everything that is asked about it."""

import random

from training.real import Item
from training.swapping import Names, asking, swapped

TEXT = "Ola Brandt\nOla Brandt painted The Last Ferry in 1974. The city has 4,321 people, and Brandt lives in Oslo."
ITEMS = [
    Item("Who painted The Last Ferry?", "Ola Brandt", (TEXT,)),
    Item("When did Ola Brandt paint it?", "1974", (TEXT,)),
    Item("How many people has the city?", "4,321", (TEXT,)),
    Item("What has the city?", "4,321 people", (TEXT,)),
]
OTHERS = [
    Item("Who sings?", "Mira Holt", ("",)),
    Item("Who runs?", "Ada of Ribe", ("",)),
    Item("Where?", "Ribe", ("",)),
]
NAMES = Names([*ITEMS, *OTHERS])


def test_everything_that_names_the_answer_names_the_other_one() -> None:
    for seed in range(50):
        text, items = swapped(random.Random(seed), NAMES, TEXT, ITEMS)
        assert all(item.answer in text and item.passages == (text,) for item in items) or text == TEXT
        if "Ola Brandt" not in text:
            who = items[0].answer
            assert who in ("Mira Holt", "Ada of Ribe") and text.startswith(f"{who}\n{who} painted")
            assert items[1].text == f"When did {who} paint it?" and "Brandt lives in Oslo" in text
        assert len(items) == len(ITEMS)


def test_another_answer_is_of_the_kind_of_the_question() -> None:
    rng = random.Random(0)
    assert {NAMES.other(rng, ITEMS[0]) for _ in range(50)} == {"Ola Brandt", "Mira Holt", "Ada of Ribe"}
    assert all(str(NAMES.other(rng, ITEMS[1])).isdigit() for _ in range(5))
    assert str(NAMES.other(rng, ITEMS[2]))[1] == ","
    assert NAMES.other(rng, ITEMS[3]) is None, "words that are no name stay"
    assert asking("In which city?") == "which" and asking("Name it.") == ""


def test_an_answer_that_stands_there_already_is_no_other() -> None:
    names = Names([*ITEMS[:1], Item("Who?", "Brandt", ("",))])
    seen = {swapped(random.Random(seed), names, TEXT, ITEMS[:1])[0] for seed in range(20)}
    assert seen == {TEXT}
