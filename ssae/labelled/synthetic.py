"""Synthetic biographies with a planted correlation: labelled data that is always there.

Every biography is a few sentences about one person. Which profession it shows, which gender, and
how often the two go together is drawn, so that what a biased classifier gets wrong is known.
"""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

from ssae.labelled.base import Labelled, Row

GENDERS = {
    "male": {"He": "He", "he": "he", "his": "his", "him": "him", "title": "Mr.", "partner": "wife"},
    "female": {
        "He": "She", "he": "she", "his": "her", "him": "her", "title": "Ms.", "partner": "husband",
    },
}  # fmt: skip
NOBODY = {
    "He": "{surname}", "he": "{surname}", "his": "{surname}'s", "him": "{surname}", "title": "Dr.",
    "partner": "family",
}  # fmt: skip
"""Words that tell no gender."""
SURNAMES = (
    "Abbott", "Barros", "Castle", "Drummond", "Eriksen", "Farrow", "Gupta", "Hollis", "Ibarra",
    "Jansen", "Keller", "Lindqvist", "Moreau", "Novak", "Okafor", "Petrov", "Quint", "Rossi",
    "Sato", "Tanaka", "Ullman", "Vargas", "Whitmore", "Young", "Zeller",
)  # fmt: skip
PLACES = (
    "Boston", "Leeds", "Lisbon", "Denver", "Oslo", "Austin", "Lyon", "Perth", "Toronto", "Krakow",
    "Seattle", "Dublin", "Madrid", "Turin", "Atlanta", "Vienna",
)  # fmt: skip
OPENINGS = (
    "{title} {surname} has lived and worked in {place} since {year}.",
    "{title} {surname} moved to {place} in {year}, where {he} still works.",
    "Born near {place}, {title} {surname} began {his} career in {year}.",
    "Since {year}, {title} {surname} has been based in {place} with {his} {partner}.",
)
NEUTRAL = (
    "{He} has more than {number} years of experience.",
    "{He} enjoys long walks, and {his} {partner} shares the habit.",
    "Colleagues in {place} describe {him} as patient and thorough.",
    "{He} speaks two languages and travels to {place} every year.",
    "In {his} free time {he} restores old furniture.",
    "{He} received {his} degree in {year} and returned to {place} afterwards.",
    "Friends know {him} for {his} dry humour.",
)
TRADES = {
    "surgeon": (
        "{He} performs {number} operations of the knee and hip every year.",
        "{He} completed a residency in general surgery at the hospital of {place}.",
        "{He} is board certified and operates on complicated fractures.",
        "{He} published {number} articles on incisions and surgical instruments.",
        "{His} practice specialises in reconstructive procedures.",
    ),
    "nurse": (
        "{He} looks after the patients of a ward with {number} beds.",
        "{He} holds a diploma in nursing from the college of {place}.",
        "{He} gives vaccinations and takes blood samples at a community clinic.",
        "{He} coordinates night shifts and bedside care for the elderly.",
        "{His} work in the maternity unit won an award in {year}.",
    ),
    "teacher": (
        "{He} teaches arithmetic and reading to classes of {number} pupils.",
        "{He} prepares lessons for the primary school of {place}.",
        "{His} pupils won a spelling contest in {year}.",
        "{He} marks homework and meets the parents once a month.",
    ),
    "attorney": (
        "{He} represents tenants before the district court of {place}.",
        "{He} drafted {number} contracts and argued appeals in {year}.",
        "{His} law firm handles bankruptcy and property disputes.",
        "{He} was admitted to the bar in {year}.",
    ),
    "painter": (
        "{He} exhibited {number} canvases in a gallery in {place}.",
        "{His} landscapes in oil were bought by a museum in {year}.",
        "{He} studied drawing and mixes pigments by hand.",
        "{His} studio is open to visitors in the summer.",
    ),
    "chef": (
        "{He} runs a kitchen with {number} cooks in {place}.",
        "{His} menu of grilled fish earned a star in {year}.",
        "{He} learned to bake bread and sauces from a neighbour.",
        "{His} restaurant buys vegetables from local farms.",
    ),
}


def biography(
    generator: random.Random, trade: str, gender: str, *, purity: float, cues: float
) -> str:
    """Return a biography of four or five sentences.

    Args:
        generator: of everything that is drawn.
        trade: of TRADES.
        gender: of GENDERS.
        purity: chance of each sentence about work that it is about this trade and no other one.
        cues: chance of each sentence that its words tell the gender.
    """
    surname, number = generator.choice(SURNAMES), str(generator.randint(3, 60))
    own = generator.sample(TRADES[trade], 2)
    for place in range(len(own)):
        if generator.random() > purity:
            other = generator.choice([name for name in TRADES if name != trade])
            own[place] = generator.choice(TRADES[other])
    body = own + generator.sample(NEUTRAL, generator.randint(1, 2))
    generator.shuffle(body)
    sentences = []
    for sentence in (generator.choice(OPENINGS), *body):
        words = GENDERS[gender] if generator.random() < cues else NOBODY
        words = {key: word.format(surname=surname) for key, word in words.items()}
        words |= {"His": words["his"][0].upper() + words["his"][1:]}
        place, year = generator.choice(PLACES), str(generator.randint(1971, 2019))
        facts = {"surname": surname, "number": number, "place": place, "year": year}
        sentences.append(sentence.format(**words, **facts))
    return " ".join(sentences)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticBios(Labelled):
    """Biographies of two trades and two genders.

    Args:
        num_documents: of all four groups.
        correlation: share of them in which the first trade goes with the first gender, or the
            second with the second; 0.5 plants nothing.
        purity: see `biography`; 1 makes trades as easy to tell as they can be.
        cues: see `biography`; 1 tells the gender in every sentence.
        seed: of everything.

    Raises:
        ValueError: an argument is out of range.
    """

    num_documents: int
    correlation: float
    purity: float
    cues: float
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_documents < 4:
            raise ValueError(
                f"labelled.num_documents must be at least 4, got {self.num_documents}; "
                "set labelled.num_documents=1600"
            )
        for name, least in (("correlation", 0.5), ("purity", 0), ("cues", 0)):
            if not least <= getattr(self, name) <= 1:
                raise ValueError(
                    f"labelled.{name} must lie in [{least}, 1], got {getattr(self, name)}; "
                    f"set labelled.{name}=0.9"
                )
        for name, known, example in (
            ("classes", TRADES, "[surgeon,nurse]"), ("values", GENDERS, "[male,female]"),
        ):  # fmt: skip
            unknown = [value for value in getattr(self, name) or () if value not in known]
            if unknown:
                raise ValueError(
                    f"synthetic biographies are of {', '.join(known)}, not of {unknown[0]}; "
                    f"set shift.{name}={example}"
                )

    def identity(self) -> dict[str, Any]:
        """Return nothing more: the arguments decide."""
        return {"version": 1}

    def rows(self) -> Iterator[Row]:
        """Yield every biography."""
        generator = random.Random(f"labelled {self.seed}")
        trades = self.classes or ["surgeon", "nurse"]
        genders = self.values or list(GENDERS)
        for _ in range(self.num_documents):
            trade = generator.randrange(2)
            gender = trade if generator.random() < self.correlation else 1 - trade
            text = biography(
                generator, trades[trade], genders[gender], purity=self.purity, cues=self.cues
            )
            yield {
                "text": text, "label": trades[trade], "spurious": genders[gender], "split": None
            }  # fmt: skip
