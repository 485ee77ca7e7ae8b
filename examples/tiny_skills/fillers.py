"""What dialogs are filled with, and which of it is kept for measuring."""

import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from llama import Tokenizer

HELD_OUT_EVERY = 10
# Kinds of fillers of which there are too few to keep some out.
SHARED = ("color", "day", "hobby", "instrument", "language", "transport")

# Kinds that any word can be the end of.
NAMES = ("a thing", "animal", "food", "job", "person", "pet", "shop", "spot", "thing", "town")


def is_held_out(text: str) -> bool:
    """Whether a name, a number, a pair of numbers, ... is kept for measuring.

    Its checksum decides, so that it stays on its side whatever list it comes from.
    """
    return zlib.crc32(text.encode()) % HELD_OUT_EVERY == 0


def is_held_out_pair(a: int | float, b: int | float) -> bool:
    """The same of two numbers in any order. Sums with a one-digit number are all trained."""
    return min(a, b) >= 10 and is_held_out(f"{min(a, b)} {max(a, b)}")


def with_end(filler: str, word: str) -> str:
    """`word` in place of the last one, with its capital: "by the window" becomes "by the cloud"."""
    start, space, last = filler.rpartition(" ")
    return start + space + (word.title() if last[0].isupper() else word.lower())


def items(text: str) -> tuple[str, ...]:
    """What commas part."""
    return tuple(item.strip() for item in text.split(","))


GIRLS = tuple(
    """Abby Alice Amelia Amy Anna Bella Betty Carla Chloe Clara Daisy Dora Ella Emily Emma Eva
    Fiona Flora Gina Grace Hanna Helen Ida Irene Ivy Jane Jenny Julia Kate Kim Laura Lena Lily Lisa
    Lola Lucy Maria Mary Mia Molly Nina Nora Olga Olivia Paula Penny Rita Rosa Ruth Sally Sara Sofia
    Sue Tina Vera Wendy Zoe""".split()
)
BOYS = tuple(
    """Adam Andy Anton Ben Bill Bob Carl Charlie Chris Dan David Eric Felix Frank Fred George Greg
    Hank Harry Henry Hugo Ivan Jack Jake Jim Joe John Karl Leo Luke Marco Mark Max Mike Nick Noah
    Oliver Oscar Otto Paul Pedro Peter Ralph Ray Rob Roger Sam Simon Steve Ted Tim Toby Tom Victor
    Walter Will Zack""".split()
)
PETS = tuple(
    """Bingo Bobo Buddy Bubbles Coco Cookie Ducky Fluffy Ginger Goldie Hopper Kitty Lucky Luna Milo
    Mittens Momo Nemo Patch Pepper Pip Poppy Rex Rocky Rusty Shadow Smoky Snowy Spot Sunny Tiger
    Tweety Waggy Whiskers Ziggy""".split()
)
TOWNS = items(
    """Athens, Berlin, Boston, Bristol, Cairo, Chicago, Dallas, Delhi, Denver, Dublin, Florence,
    Geneva, Genoa, Hamburg, Havana, Hong Kong, Istanbul, Kyoto, Lagos, Leeds, Lima, Lisbon, London,
    Lyon, Madrid, Manila, Miami, Milan, Moscow, Munich, Nairobi, Naples, New York, Oslo,
    Oxford, Paris, Perth, Porto, Prague, Quebec, Riga, Rome, Salzburg, San Diego, Santiago, Seattle,
    Seoul, Sofia, Sydney, Tokyo, Toronto, Tunis, Turin, Venice, Vienna, Warsaw, York, Zurich"""
)
MADE_UP = (
    """Al Bar Bel Bran Cal Cor Dal Dar Del El Fal Fen Gal Gor Hal Jor Kal Kel Lor Mal Mar Mel Mor
    Nal Nor Or Pal Per Ral Ron Sel Tal Tor Ul Val Ver Wil Yor Zan Zor""".split(),
    "b d f g k l m n s t v".split(),
    "a ia ina ella ora ita o an in ik us on or ent".split(),
    "ora ania esk ino una opol".split(),
)
TOWN_PARTS = (
    """Ash Black Bridge Clear Deep East Elm Fair Green High King Lake Long Mill North Oak Queen Red
    River Sand Silver South Stone West White Wind""".split(),
    "bury burg dale field ford haven port ton ville wood".split(),
)
COLORS = """black blue brown golden gray green orange pink purple red silver turquoise violet white
yellow""".split()
THINGS = """bag basket bell bike blanket book bottle bowl box brush bucket camera candle cap chair
clock coat cup drum guitar hammer hat jar kettle key kite knife ladder lamp letter map mirror mug
pan pen pillow plate radio ring rope scarf shirt spoon table tent towel toy vase wallet""".split()
COUNTED = """apples balls balloons bananas beans books bottles boxes buttons cakes candies cards
carrots chairs coins cookies cups eggs flowers grapes hats keys lemons letters marbles nuts oranges
peaches pears pencils pens pictures plates plums potatoes rocks shells spoons stamps stars stickers
stones tickets tomatoes toys""".split()
FOODS = items(
    """apple pie, bananas, bean soup, bread, burgers, carrots, cheese, cherries, chicken, chocolate,
    cookies, corn, eggs, fish, grapes, honey, ice cream, lemon cake, mushrooms, noodles, nuts,
    oranges, pancakes, pasta, peaches, pears, peas, pizza, plums, popcorn, potatoes, rice, salad,
    sandwiches, strawberries, tomato soup, waffles, yogurt"""
)
JOBS = items(
    """a baker, a barber, a builder, a bus driver, a clown, a cook, a dancer, a dentist, a doctor,
    a farmer, a firefighter, a fisherman, a gardener, a hunter, a judge, a lawyer, a mechanic,
    a miner, a nurse, a painter, a pilot, a plumber, a police officer, a poet, a programmer,
    a sailor, a scientist, a shoemaker, a singer, a soldier, a tailor, a teacher, a vet, a waiter,
    a writer, an actor, an artist, an author, an engineer"""
)
ANIMALS = items(
    """a bear, a bird, a bunny, a cat, a cow, a dog, a donkey, a duck, a fish, a fox, a frog,
    a goat, a hamster, a hen, a horse, a lizard, a monkey, a mouse, a parrot, a pig, a pony,
    a rabbit, a sheep, a snake, a spider, a squirrel, a swan, a turtle, an elephant, an owl"""
)
HOBBIES = """baking camping chess cooking cycling dancing drawing fishing gardening hiking jogging
knitting painting photography pottery reading rowing running sailing sewing singing skating skiing
surfing swimming tennis walking writing yoga""".split()
INSTRUMENTS = """banjo cello clarinet drums flute guitar harp horn organ piano saxophone trombone
trumpet tuba ukulele viola violin xylophone""".split()
LANGUAGES = """Arabic Chinese Czech Danish Dutch English Finnish French German Greek Hindi Hungarian
Italian Japanese Korean Latin Norwegian Persian Polish Portuguese Russian Spanish Swahili Swedish
Thai Turkish Welsh""".split()
SPOTS = items(
    """behind the barn, behind the curtain, behind the door, behind the sofa, beside the lamp,
    by the window, in the attic, in the bathroom, in the car, in the cellar, in the closet,
    in the drawer, in the garage, in the garden, in the hall, in the kitchen, in the tree,
    near the fence, next to the oven, next to the stairs, on the balcony, on the chair,
    on the desk, on the roof, on the shelf, on the table, under the bed, under the bench,
    under the bridge, under the rug"""
)
TRANSPORT = items(
    "by bike, by boat, by bus, by car, by ferry, by plane, by taxi, by train, by tram"
)
SHOPS = items(
    """bakery, bank, bookshop, cafe, cinema, flower shop, gallery, gym, hotel, library, market,
    museum, pharmacy, pool, post office, restaurant, supermarket, theater, toy store, zoo"""
)
MONTHS = """January February March April May June July August September October November
December""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
EXCLAMATIONS = """Amen Aye Boom Bravo Captain Cheers Done Dude End Friend Hooray Indeed Listen Look
Madam Master Okay Over Please Quack Right Sir Stop Sure True Well Wow Yes Yippee""".split()


def _number(rng: random.Random) -> str:
    return str(rng.randint(*rng.choice(((2, 20), (21, 99), (100, 999), (1000, 9999)))))


def _made_up(rng: random.Random) -> str:
    start, middle, end, _ = MADE_UP
    return rng.choice(start) + rng.choice(middle) + rng.choice(end)


def _town(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(TOWNS)
    if rng.random() < 0.5:
        return "".join(map(rng.choice, TOWN_PARTS))
    return rng.choice(MADE_UP[0]) + rng.choice(MADE_UP[1]) + rng.choice(MADE_UP[3])


FILLERS: dict[str, Callable[[random.Random], str]] = {
    "age": lambda rng: str(rng.randint(2, 99)),
    "animal": lambda rng: rng.choice(ANIMALS),
    "book": lambda rng: f'"The {rng.choice(COLORS).title()} {rng.choice(THINGS).title()}"',
    "color": lambda rng: rng.choice(COLORS),
    "date": lambda rng: f"{rng.choice(MONTHS)} {rng.randint(1, 30)}",
    "day": lambda rng: rng.choice(DAYS),
    "event": lambda rng: (
        f"the {rng.choice('art book garden music school street summer winter'.split())} "
        f"{rng.choice('concert fair market meeting party race show'.split())}"
    ),
    "exclamation": lambda rng: rng.choice(EXCLAMATIONS),
    "food": lambda rng: rng.choice(FOODS),
    "hobby": lambda rng: rng.choice(HOBBIES),
    "instrument": lambda rng: f"the {rng.choice(INSTRUMENTS)}",
    "job": lambda rng: rng.choice(JOBS),
    "language": lambda rng: rng.choice(LANGUAGES),
    "length": lambda rng: f"{_number(rng)} {rng.choice(('miles', 'feet', 'meters'))}",
    "minutes": lambda rng: f"{rng.randint(2, 90)} {rng.choice(('minutes', 'hours'))}",
    "number": _number,
    "person": lambda rng: _made_up(rng) if rng.random() < 0.5 else rng.choice(GIRLS + BOYS),
    "pet": lambda rng: _made_up(rng) if rng.random() < 0.3 else rng.choice(PETS),
    "phone": lambda rng: f"{rng.randint(100, 999)}-{rng.randint(100, 999)}",
    "price": lambda rng: f"{_number(rng)} dollars",
    "shop": lambda rng: f"the {rng.choice('big new old red small'.split())} {rng.choice(SHOPS)}",
    "spot": lambda rng: rng.choice(SPOTS),
    "thing": lambda rng: f"the {rng.choice(COLORS)} {rng.choice(THINGS)}",
    "a thing": lambda rng: f"a {rng.choice(COLORS[:4])} {rng.choice(THINGS)}",
    "time": lambda rng: f"{rng.randint(1, 12)}:{5 * rng.randint(0, 11):02}",
    "town": _town,
    "train": lambda rng: f"the {rng.choice(('bus', 'train', 'boat'))} to {_town(rng)}",
    "transport": lambda rng: rng.choice(TRANSPORT),
    "year": lambda rng: str(rng.randint(1700, 2024)),
}


def made_up_words(
    rng: random.Random,
    tokenizer: Tokenizer,
    words: Sequence[str],
    held_out: Iterable[str],
    times: int,
) -> list[str]:
    """Words that do not exist, of the tokens that `words` have, so that each is spelled often.

    A token hides its letters: only a word in which it occurs tells them. What occurs in fewer than
    `times` of `words`, each as it stands after a space, is put together with others until it does.
    None of them contains a word in `held_out`.
    """
    forbidden = re.compile("|".join(map(re.escape, sorted(held_out))) or "(?!)")  # or nothing
    split = [tokenizer.encode(f" {word}") for word in words]
    seen = Counter(token for tokens in split for token in set(tokens))
    starts = sorted({tokens[0] for tokens in split})
    others = sorted({token for tokens in split for token in tokens[1:]})
    made: dict[str, None] = {}
    for token in starts + others:
        for _ in range(50):
            if seen[token] >= times:
                break
            tokens = [token] if token in starts else [rng.choice(starts), token]
            tokens += rng.choices(others, k=rng.randint(1, 2))
            word = tokenizer.decode(tokens).strip()
            as_it_is = tokenizer.encode(f" {word}") == tokens
            if as_it_is and len(word) <= 12 and word not in made and not forbidden.search(word):
                made[word] = None
                seen.update(set(tokens))
    return list(made)
