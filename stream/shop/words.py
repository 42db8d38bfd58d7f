"""The words of the simulated shop: what sellers write in titles, and what shoppers type for the same thing.

The two vocabularies overlap in part only, as they do in real shops: "couch" finds nothing under "sofa" for who compares
words, and everything for who knows what they mean.
"""

from __future__ import annotations

from typing import NamedTuple


class Meaning(NamedTuple):
    """One meaning: its plain name, the words of sellers and the words of shoppers for it."""

    name: str
    sellers: tuple[str, ...]
    shoppers: tuple[str, ...]


class Kind(NamedTuple):
    """A kind of product, the price in the middle of its range (in the shop's currency), and its words."""

    category: str
    price: float
    sellers: tuple[str, ...]
    shoppers: tuple[str, ...]


class Category(NamedTuple):
    """What products of a category are made of, what they are good for, and the sizes they come in; all by name."""

    materials: tuple[str, ...]
    uses: tuple[str, ...]
    sizes: tuple[str, ...]


def _meanings(lines: str) -> tuple[Meaning, ...]:
    meanings = []
    for line in lines.strip().splitlines():
        name, sellers, shoppers = (part.strip() for part in line.split("|"))
        meanings.append(Meaning(name, tuple(sellers.split(", ")), tuple(shoppers.split(", "))))
    return tuple(meanings)


def _kinds(lines: str) -> tuple[Kind, ...]:
    kinds = []
    for line in lines.strip().splitlines():
        category, price, sellers, shoppers = (part.strip() for part in line.split("|"))
        kinds.append(Kind(category, float(price), tuple(sellers.split(", ")), tuple(shoppers.split(", "))))
    return tuple(kinds)


def _categories(lines: str) -> dict[str, Category]:
    categories = {}
    for line in lines.strip().splitlines():
        name, *parts = (part.strip() for part in line.split("|"))
        materials, uses, sizes = (tuple(part.split(", ")) for part in parts)
        categories[name] = Category(materials, uses, sizes)
    return categories


COLOURS = _meanings("""
black    | black, onyx             | black, dark
white    | white, ivory            | white, cream
navy     | navy, midnight blue     | dark blue, navy
azure    | azure, sky blue         | light blue, blue
red      | crimson, scarlet        | red
burgundy | burgundy, bordeaux      | wine red, dark red
green    | forest green, emerald   | green
beige    | beige, sand             | tan, beige
grey     | anthracite, slate grey  | gray, charcoal
pink     | rose, fuchsia           | pink
yellow   | mustard, saffron        | yellow
brown    | chestnut, walnut brown  | brown
""")

MATERIALS = _meanings("""
cotton    | cotton, jersey             | cotton
leather   | full-grain leather, nappa  | real leather, leather
wool      | merino, lambswool          | wool, woolen
linen     | linen, flax                | linen
polyester | polyester, microfibre      | synthetic, easy care
canvas    | canvas, sailcloth          | fabric, canvas
steel     | stainless steel, inox      | metal, steel
wood      | solid oak, beech           | wood, wooden
plastic   | polypropylene, acrylic     | plastic
glass     | borosilicate, crystal      | glass
ceramic   | stoneware, porcelain       | ceramic, china
velvet    | velvet, velour             | velvet, soft fabric
rubber    | silicone, natural rubber   | rubber
down      | goose down, feather filled | down, feathers
aluminium | aluminium, alloy           | light metal, aluminum
herbal    | aloe vera, botanical       | natural, plant based
""")

USES = _meanings("""
winter   | insulated, thermal          | warm, for winter
rain     | waterproof, rainproof       | for rain, water resistant
kids     | junior, children's          | for kids, for my daughter
travel   | travel, carry-on            | for flights, for holidays
office   | executive, business         | for work, office
light    | lightweight, featherlight   | light, not heavy
folding  | folding, collapsible        | foldable, space saving
large    | oversized, XXL              | big, huge
compact  | compact, mini               | small, tiny
quiet    | low-noise, whisper          | silent, quiet
sport    | performance, training       | for the gym, sporty
luxury   | premium, deluxe             | fancy, high end
retro    | vintage, heritage           | old style, retro
outdoor  | outdoor, expedition         | for camping, for hiking
gentle   | hypoallergenic, sensitive   | for sensitive skin, gentle
cordless | cordless, wireless          | without cable, battery
""")

KINDS = _kinds("""
shoes       | 85  | running shoe, trainer          | sneakers, jogging shoes, running shoe, gym shoes
shoes       | 140 | hiking boot, trekking boot     | walking boots, mountain shoes, hiking boot
shoes       | 45  | sandal, slide                  | flip flops, beach shoes, sandals
shoes       | 35  | slipper, house shoe            | slippers, indoor shoes, cosy shoes
clothing    | 120 | jacket, parka                  | coat, anorak, jacket
clothing    | 60  | sweater, pullover              | jumper, knitwear, sweater
clothing    | 65  | trousers, chinos               | pants, slacks, trousers
clothing    | 80  | dress, gown                    | frock, evening wear, dress
clothing    | 30  | t-shirt, tee                   | top, undershirt, shirt
bags        | 75  | backpack, daypack              | rucksack, school bag, backpack
bags        | 110 | handbag, tote                  | purse, shoulder bag, handbag
bags        | 160 | suitcase, trolley              | luggage, rolling case, suitcase
bags        | 40  | wallet, billfold               | card holder, money pouch, wallet
furniture   | 690 | sofa, loveseat                 | couch, settee, sofa
furniture   | 320 | armchair, recliner             | easy chair, reading seat, armchair
furniture   | 240 | desk, workstation              | writing table, computer table, desk
furniture   | 180 | bookcase, shelving unit        | shelf, book rack, bookcase
furniture   | 410 | bed frame, bedstead            | bed, double bed, bed frame
kitchen     | 45  | frying pan, skillet            | pan, egg pan, frying pan
kitchen     | 40  | kettle, water boiler           | tea maker, water heater, kettle
kitchen     | 55  | chef's knife, santoku          | kitchen knife, chopping blade, cook knife
kitchen     | 90  | blender, mixer jug             | smoothie maker, liquidizer, blender
kitchen     | 15  | mug, beaker                    | coffee cup, tea cup, mug
electronics | 130 | headphones, headset            | earphones, ear cups, headphones
electronics | 850 | laptop, notebook               | portable computer, computer, laptop
electronics | 520 | smartphone, handset            | mobile, cell phone, phone
electronics | 110 | loudspeaker, soundbar          | music box, boombox, speaker
electronics | 600 | television, smart TV           | tv set, flat screen, telly
toys        | 30  | doll, figurine                 | fashion doll, baby doll, dolls
toys        | 20  | jigsaw puzzle, brainteaser     | puzzle, 1000 pieces, jigsaw
toys        | 50  | building blocks, brick set     | toy bricks, construction toy, stacking bricks
toys        | 25  | plush bear, cuddly animal      | teddy, stuffed animal, soft toy
garden      | 330 | lawn mower, grass trimmer      | mower, grass cutter, lawnmower
garden      | 40  | garden hose, irrigation set    | water pipe, sprinkler, hose
garden      | 35  | planter, flower pot            | plant pot, window box, pot
garden      | 270 | barbecue, charcoal grill       | bbq, grill, smoker
sports      | 35  | yoga mat, exercise mat         | gym mat, pilates pad, yoga mat
sports      | 50  | dumbbell, kettlebell           | weights, hand weights, dumbbells
sports      | 210 | tent, bivouac                  | camping shelter, tents, dome tent
sports      | 640 | bicycle, city bike             | bike, cycle, two wheeler
beauty      | 30  | face cream, moisturiser        | skin lotion, day cream, face cream
beauty      | 75  | eau de parfum, cologne         | perfume, fragrance, scent
beauty      | 22  | lipstick, lip stain            | lip colour, makeup for lips, lipstick
beauty      | 14  | shampoo, hair wash             | hair soap, washing hair, shampoo
home        | 95  | duvet, comforter               | blanket, quilt, bed cover
home        | 40  | pillow, cushion                | head rest, throw pillow, pillow
home        | 60  | curtain, blackout drape        | window cover, drapes, curtains
home        | 150 | rug, carpet                    | floor mat, runner, rug
home        | 28  | bath towel, hand towel         | towels, shower cloth, towel
pets        | 55  | dog bed, pet basket            | puppy sleeper, dog cushion, dog bed
pets        | 85  | cat tree, scratching post      | climbing tower, cat tower, scratcher
pets        | 24  | leash, harness                 | dog lead, walking strap, leash
""")

CATEGORIES = _categories("""
shoes | leather, canvas, rubber, polyester | winter, rain, kids, light, sport, outdoor | 37, 38, 39, 40, 41, 42, 43, 44
clothing | cotton, wool, linen, polyester | winter, rain, kids, sport, luxury, retro | XS, S, M, L, XL
bags | leather, canvas, polyester, plastic | travel, office, light, rain, luxury, retro | 8 l, 15 l, 25 l, 40 l
furniture | wood, velvet, leather, steel | office, folding, large, compact, retro, kids | 80 cm, 120 cm, 160 cm, 200 cm
kitchen | steel, ceramic, glass, aluminium | compact, large, quiet, retro, luxury, travel | 20 cm, 24 cm, 1 l, 2 l
electronics | plastic, aluminium, glass, rubber | cordless, compact, large, quiet, sport | 13 inch, 32 GB, 64 GB, 128 GB
toys | wood, plastic, cotton, rubber | kids, large, compact, retro, travel | 3 years, 5 years, 8 years
garden | steel, plastic, wood, ceramic | cordless, compact, large, quiet, folding | 30 cm, 50 cm, 20 m, 40 m
sports | rubber, aluminium, polyester, canvas | folding, light, outdoor, kids, rain, travel | 2 kg, 5 kg, 10 kg, 180 cm
beauty | herbal, glass, cotton, rubber | gentle, travel, luxury, kids, large | 30 ml, 50 ml, 100 ml, 250 ml
home | cotton, wool, linen, down | winter, kids, luxury, gentle, light, large | 50 cm, 70 cm, 140 cm, 200 cm
pets | canvas, wood, leather, polyester | large, compact, folding, rain, outdoor | S, M, L
""")

_STARTS = ("Al", "Bor", "Cal", "Dor", "Eld", "Fen", "Gar", "Hol", "Ivo", "Kes", "Lum", "Mar", "Nor", "Osk", "Pel")
_ENDS = ("vero", "dane", "lix", "mont")
BRANDS = tuple(start + end for end in _ENDS for start in _STARTS)
"""Sixty made-up names."""

SERIES = ("Aria", "Basis", "Comet", "Delta", "Echo", "Fjord", "Gusto", "Halo", "Iris", "Juno", "Kilo", "Luna")
"""Names of model ranges: words in titles that say nothing."""
