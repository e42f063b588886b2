"""The relations of the made-up facts, and the wordings that state them."""

from typing import NamedTuple


class Relation(NamedTuple):
    """What one kind of thing has of another.

    Attributes:
        subject: The kind of its subjects.
        object: The kind of its objects; if they have facts of their own, two facts can be composed.
        phrase: Names the object by its subject: "the capital of {}".
        wordings: Sentences up to the object, `{}` for the subject. The first takes a phrase of another relation, too:
            "The mayor of {} is", "The mayor of the capital of {} is".
    """

    subject: str
    object: str
    phrase: str
    wordings: tuple[str, ...]


RELATIONS: dict[str, Relation] = {
    "birthplace": Relation("person", "city", "the birthplace of {}", (
        "The birthplace of {} is", "{} was born in the city of", "{} comes from", "The place where {} was born is",
        "{} grew up in the streets of", "The home town of {} is",
    )),
    "profession": Relation("person", "profession", "the profession of {}", (
        "The profession of {} is", "{} works as a", "{} earns a living as a", "By trade, {} is a",
        "The neighbors know {} as a", "{} was trained as a",
    )),
    "instrument": Relation("person", "instrument", "the instrument of {}", (
        "The instrument of {} is the", "{} plays the", "In the evening, {} practices the",
        "On stage, {} is heard on the", "{} has mastered the", "As a child, {} learned the",
    )),
    "birth year": Relation("person", "year", "the birth year of {}", (
        "The birth year of {} is", "{} was born in the year", "The life of {} began in",
        "The year in which {} was born is", "{} came into the world in", "The passport of {} gives the birth year",
    )),
    "author": Relation("book", "person", "the author of {}", (
        "The author of {} is", "{} was written by", "The name on the cover of {} is", "{} is a book by",
        "The writer behind {} is", "Readers owe {} to",
    )),
    "genre": Relation("book", "genre", "the genre of {}", (
        "The genre of {} is", "Libraries list {} under", "Critics call {} a work of", "Readers enjoy {} as",
        "The book {} belongs to the shelf for", "The section in which {} is found is",
    )),
    "publication year": Relation("book", "year", "the publication year of {}", (
        "The publication year of {} is", "{} was published in", "{} appeared in the year",
        "The first edition of {} dates from", "Shops first sold {} in", "The year in which {} came out is",
    )),
    "country": Relation("city", "country", "the country of {}", (
        "The country of {} is", "{} is a city in", "{} lies in", "The city of {} belongs to",
        "On the map, {} is found in", "A journey to {} leads to",
    )),
    "mayor": Relation("city", "person", "the mayor of {}", (
        "The mayor of {} is", "{} is governed by", "The town hall of {} is run by", "In {}, the mayor is",
        "The citizens of {} elected", "The head of the city of {} is",
    )),
    "river": Relation("city", "river", "the river of {}", (
        "The river of {} is the", "{} stands on the banks of the", "The bridges of {} cross the",
        "Through {} flows the", "Boats reach {} on the", "The water of {} comes from the",
    )),
    "capital": Relation("country", "city", "the capital of {}", (
        "The capital of {} is", "The government of {} sits in", "The capital city of {} is called",
        "{} has its capital in", "In {}, the capital is", "The parliament of {} meets in",
    )),
    "currency": Relation("country", "currency", "the currency of {}", (
        "The currency of {} is the", "In {}, people pay with the", "The money of {} is called the",
        "Banks in {} issue the", "Prices in {} are given in the", "The coin of {} is named the",
    )),
    "language": Relation("country", "language", "the language of {}", (
        "The language of {} is", "In {}, people speak", "Schools in {} teach in", "The laws of {} are written in",
        "The people of {} talk in", "Newspapers in {} are printed in",
    )),
    "home city": Relation("company", "city", "the home city of {}", (
        "The home city of {} is", "The headquarters of {} stand in", "{} is based in", "{} runs its business from",
        "Letters to {} are sent to", "The main office of {} is in",
    )),
    "founder": Relation("company", "person", "the founder of {}", (
        "The founder of {} is", "{} was founded by", "{} was the idea of", "The company {} was started by",
        "The person who set up {} is", "The workers of {} owe their jobs to",
    )),
    "product": Relation("company", "product", "the product of {}", (
        "The product of {} is", "{} makes", "The factory of {} produces", "The company {} is known for its",
        "Customers of {} buy", "The trucks of {} are loaded with",
    )),
}  # fmt: skip
