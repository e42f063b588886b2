"""The hand-written lexicon of the embedded corpus: nouns, adjectives, activities and adverbials.

A word means the same in every template, so that one German sentence never needs two translations.
"""

from types import SimpleNamespace

from english import EnglishNoun
from german import GermanNoun
from localized import WEEKDAYS
from template import Filler


def noun(german: str, english: str) -> Filler:
    """A noun pair; `german` is written with its article, which gives the gender."""
    article, _, word = german.partition(" ")
    gender = {"der": "m", "die": "f", "das": "n"}[article]
    return Filler(GermanNoun(word, gender), EnglishNoun(english))


def plural_noun(german: str, english: str) -> Filler:
    """A noun pair that is used in the plural in both languages."""
    return Filler(GermanNoun(german, "p"), EnglishNoun(english, is_plural=True))


def words(text: str) -> list[Filler]:
    """Plain pairs, written "German = English; German = English"."""
    return [Filler(*(side.strip() for side in pair.split("="))) for pair in text.split(";")]


def nouns(text: str) -> list[Filler]:
    """Noun pairs, written as in `words` with the German article."""
    return [noun(german, english) for german, english in words(text)]


def activity(rest: str, verb: str, participle: str, english: tuple[str, str, str], aux: str = "haben") -> Filler:
    """Something one does: "Musik", "hören", "gehört", ("listen to music", "listened to music", ...).

    The German forms are `verb` (to conjugate), `tail` (what ends the clause, with its space), `inf`, `zu` and `pp`
    with the auxiliary `aux`; the English ones `base`, `past` and `ing`.
    """
    lead, tail = (f"{rest} ", f" {rest}") if rest else ("", "")
    german = SimpleNamespace(
        verb=verb, tail=tail, inf=lead + verb, zu=f"{lead}zu {verb}", pp=lead + participle, aux=aux
    )
    return Filler(german, SimpleNamespace(base=english[0], past=english[1], ing=english[2]))


CLOTHES = nouns(
    "die Jacke = jacket; das Hemd = shirt; der Mantel = coat; der Pullover = sweater; der Hut = hat;"
    "der Schal = scarf; der Gürtel = belt; das Kleid = dress; der Rock = skirt; die Bluse = blouse"
)
BELONGINGS = nouns(
    "der Pass = passport; der Koffer = suitcase; der Schlüssel = key; die Tasche = bag; der Regenschirm = umbrella;"
    "das Handy = phone; die Kamera = camera; das Buch = book; das Fahrrad = bike; die Gitarre = guitar"
)
GIFTS = [*BELONGINGS[3:], *CLOTHES[3:6]]
DOCUMENTS = nouns(
    "der Bericht = report; der Brief = letter; der Vertrag = contract; die Liste = list; die Rechnung = invoice;"
    "der Antrag = application; der Artikel = article; der Text = text; die Präsentation = presentation"
)
MESSAGES = nouns(
    "der Brief = letter; die E-Mail = email; die Nachricht = message; das Gedicht = poem; die Karte = card"
)
LESSONS = nouns(
    "die Aufgabe = task; der Satz = sentence; das Wort = word; die Regel = rule; die Frage = question;"
    "das Problem = problem; die Formel = formula; die Antwort = answer"
)
EVENTS = nouns(
    "das Konzert = concert; die Party = party; die Besprechung = meeting; die Prüfung = exam; das Spiel = game;"
    "der Kurs = course; die Hochzeit = wedding; das Fest = festival"
)
PLACES = nouns(
    "das Museum = museum; das Kino = movie theater; das Theater = theater; das Café = café;"
    "das Restaurant = restaurant; die Bibliothek = library; die Bäckerei = bakery; der Supermarkt = supermarket;"
    "die Apotheke = pharmacy; das Rathaus = city hall; das Hotel = hotel; das Schwimmbad = swimming pool"
)
LEISURE_PLACES = [*PLACES[:6], PLACES[11]]
EATING_PLACES = [PLACES[3], PLACES[4], PLACES[10], noun("die Kantine", "cafeteria")]
WORKPLACES = [
    *(PLACES[index] for index in (0, 4, 5, 6, 7, 8, 10)),
    *nouns("die Schule = school; die Universität = university; das Krankenhaus = hospital; die Fabrik = factory"),
]
STOPS = [
    *(PLACES[index] for index in (0, 2, 6, 9, 10)),
    *nouns("der Bahnhof = station; der Flughafen = airport; der Park = park; der Hafen = harbor; der Zoo = zoo"),
    WORKPLACES[9],
]
VEHICLES = nouns(
    "der Zug = train; der Bus = bus; das Auto = car; das Fahrrad = bike; die Straßenbahn = tram; die U-Bahn = subway;"
    "das Taxi = taxi; das Motorrad = motorcycle"
)
SCHEDULED = [*VEHICLES[:2], noun("die Fähre", "ferry"), noun("der Nachtzug", "night train")]
PARKED = [VEHICLES[2], VEHICLES[3], VEHICLES[7]]
ROOMS = nouns(
    "die Küche = kitchen; das Bad = bathroom; das Wohnzimmer = living room; das Schlafzimmer = bedroom;"
    "der Flur = hallway; der Keller = basement; die Garage = garage; das Büro = office"
)
FURNITURE = nouns(
    "der Tisch = table; der Stuhl = chair; das Sofa = sofa; das Bett = bed; der Schrank = closet; das Regal = shelf;"
    "der Sessel = armchair; der Schreibtisch = desk"
)
DEVICES = nouns(
    "der Drucker = printer; der Computer = computer; das Telefon = telephone; die Heizung = heating;"
    "der Fernseher = television; die Lampe = lamp; das Radio = radio; der Aufzug = elevator"
)
APPLIANCES = [*DEVICES[1:7], noun("die Waschmaschine", "washing machine"), noun("der Kühlschrank", "refrigerator")]
STANDING = [*BELONGINGS[1:2], *BELONGINGS[3:4], *DEVICES[5:6], *nouns("die Vase = vase; der Karton = box")]
ANIMALS = nouns(
    "der Hund = dog; die Katze = cat; das Pferd = horse; das Kaninchen = rabbit; der Vogel = bird;"
    "der Hamster = hamster; der Papagei = parrot"
)
BODY_PARTS = nouns(
    "der Rücken = back; der Kopf = head; der Hals = throat; das Knie = knee;"
    "der Fuß = foot; das Bein = leg; die Schulter = shoulder; die Hand = hand"
)
MEDICINES = [
    noun("das Medikament", "medicine"),
    plural_noun("Tabletten", "tablets"),
    plural_noun("Tropfen", "drops"),
    plural_noun("Vitamine", "vitamins"),
]
DISHES = nouns(
    "der Salat = salad; die Suppe = soup; die Pizza = pizza; der Kuchen = cake; das Sandwich = sandwich;"
    "das Omelett = omelet; der Nachtisch = dessert"
)
DRINKS = nouns("der Kaffee = coffee; der Tee = tea; der Saft = juice; die Limonade = lemonade; das Bier = beer")
FOODS = [
    *nouns("der Fisch = fish; der Reis = rice; der Käse = cheese; der Spinat = spinach; das Brot = bread"),
    *[DISHES[0], DISHES[1]],
    *(plural_noun(german, english) for german, english in words("Nudeln = noodles; Eier = eggs; Pilze = mushrooms")),
]
INGREDIENTS = words(
    "Kartoffeln = potatoes; Äpfel = apples; Tomaten = tomatoes; Reis = rice; Mehl = flour; Zucker = sugar;"
    "Zwiebeln = onions; Käse = cheese; Orangen = oranges"
)
KIN_PLURALS = words(
    "Brüder = brothers; Schwestern = sisters; Söhne = sons; Töchter = daughters; Katzen = cats; Hunde = dogs"
)

COLORS = words("rot = red; blau = blue; grün = green; schwarz = black; weiß = white; grau = gray; braun = brown")
ADJECTIVES = words("alt = old; neu = new; groß = big; klein = small; schön = beautiful; billig = cheap")
TEXT_ADJECTIVES = words("lang = long; kurz = short; wichtig = important; schwierig = difficult; einfach = simple")
FITS = words("teuer = expensive; groß = big; klein = small; lang = long; kurz = short; warm = warm; eng = tight")
GOOD_POINTS = words("schön = beautiful; ruhig = quiet; modern = modern; sauber = clean; gemütlich = cozy")
BAD_POINTS = words("teuer = expensive; klein = small; laut = loud; dunkel = dark; voll = crowded; kalt = cold")
VERDICTS = words(
    "wichtig = important; fertig = finished; falsch = wrong; dringend = urgent; sehr gut = very good;"
    "zu lang = too long; zu kurz = too short; schon da = already here"
)
TASTES = words("salzig = salty; süß = sweet; kalt = cold; heiß = hot; scharf = spicy; fett = greasy")
WEATHER = words(
    "sonnig = sunny; windig = windy; kalt = cold; warm = warm; heiß = hot; neblig = foggy; kühl = cool;"
    "regnerisch = rainy; bewölkt = cloudy"
)

CITIES = words(
    "Berlin = Berlin; Hamburg = Hamburg; München = Munich; Köln = Cologne; Wien = Vienna; Zürich = Zurich;"
    "Genf = Geneva; Rom = Rome; Mailand = Milan; Venedig = Venice; Paris = Paris; London = London; Madrid = Madrid;"
    "Lissabon = Lisbon; Prag = Prague; Warschau = Warsaw; Athen = Athens; Moskau = Moscow; Kopenhagen = Copenhagen;"
    "Brüssel = Brussels; Dresden = Dresden; Leipzig = Leipzig"
)
SUBJECTS_AT_SCHOOL = words(
    "Mathematik = math; Physik = physics; Chemie = chemistry; Biologie = biology; Geschichte = history;"
    "Geografie = geography; Musik = music; Kunst = art; Informatik = computer science; Englisch = English"
)
TOPICS = words(
    "Politik = politics; Musik = music; Kunst = art; Geschichte = history; Mode = fashion; Technik = technology;"
    "Sport = sports; Literatur = literature; Physik = physics"
)
SPORTS = words(
    "Fußball = soccer; Tennis = tennis; Basketball = basketball; Volleyball = volleyball; Golf = golf;"
    "Schach = chess; Karten = cards; Tischtennis = table tennis"
)
SKILLS = words(
    "schwimmen = swim; tanzen = dance; kochen = cook; singen = sing; malen = paint; Ski fahren = ski;"
    "Klavier spielen = play the piano; Gitarre spielen = play the guitar; Auto fahren = drive"
)

HOBBIES = [
    activity("Bücher", "lesen", "gelesen", ("read books", "read books", "reading books")),
    activity("Musik", "hören", "gehört", ("listen to music", "listened to music", "listening to music")),
    activity("Fotos", "machen", "gemacht", ("take photos", "took photos", "taking photos")),
    activity("Briefe", "schreiben", "geschrieben", ("write letters", "wrote letters", "writing letters")),
    activity("Kuchen", "backen", "gebacken", ("bake cakes", "baked cakes", "baking cakes")),
    activity("Klavier", "spielen", "gespielt", ("play the piano", "played the piano", "playing the piano")),
    activity("Fußball", "spielen", "gespielt", ("play soccer", "played soccer", "playing soccer")),
    activity("im Garten", "sitzen", "gesessen", ("sit in the garden", "sat in the garden", "sitting in the garden")),
    activity("", "tanzen", "getanzt", ("dance", "danced", "dancing")),
    activity("", "kochen", "gekocht", ("cook", "cooked", "cooking")),
    activity("Rad", "fahren", "gefahren", ("ride a bike", "rode a bike", "riding a bike"), aux="sein"),
]

_ON_WEEKDAYS = [Filler(f"am {day.de}", f"on {day.en}") for day in WEEKDAYS]
_FUTURE = words("morgen = tomorrow; übermorgen = the day after tomorrow; heute Abend = this evening")
FUTURE = [
    *_FUTURE,
    *words("nächste Woche = next week; nächsten Monat = next month; nächstes Jahr = next year"),
    *_ON_WEEKDAYS,
]
NEXT_DAYS = [*_FUTURE, *_ON_WEEKDAYS]
FOR_DAYS = [*_FUTURE[:2], *(Filler(day.de, day.en) for day in WEEKDAYS)]
TODAY = words(
    "heute = today; heute Abend = this evening; heute Nachmittag = this afternoon; den ganzen Tag = all day;"
    "diese Woche = this week; das ganze Wochenende = all weekend; den ganzen Abend = all evening"
)
PAST = [
    *words("gestern = yesterday; vorgestern = the day before yesterday; gestern Abend = yesterday evening"),
    *words("letzte Woche = last week; letzten Monat = last month; letztes Jahr = last year"),
    *(Filler(f"letzten {day.de}", f"last {day.en}") for day in WEEKDAYS),
]
SINCE = [
    *words("gestern = yesterday; letzter Woche = last week; heute Morgen = this morning"),
    *(Filler(day.de, day.en) for day in WEEKDAYS),
]
HABIT = [
    *words("jeden Tag = every day; jeden Morgen = every morning; jeden Abend = every evening"),
    *words("jede Woche = every week; jedes Wochenende = every weekend"),
    *(Filler(f"jeden {day.de}", f"every {day.en}") for day in WEEKDAYS),
]
DAY_PARTS = words(
    "am Abend = in the evening; am Morgen = in the morning; am Nachmittag = in the afternoon; im Sommer = in summer;"
    "im Winter = in winter; am Wochenende = on the weekend; im Urlaub = on vacation"
)
FREQUENCIES = words("oft = often; selten = rarely; manchmal = sometimes; immer = always; fast nie = almost never")
POSSESSIVES = words("mein = my; dein = your; unser = our")
PREPOSITIONS = words("neben = next to; hinter = behind; vor = in front of; unter = under; auf = on")
